// The running statistics of a batch norm, moved towards those of a batch, in place; the formulas are in norm.py.
//
//   running_statistics   a thread per channel   grid 1   block 256   used
//
// Bytes moved (float32): 24 C + 16, of a few thousand channels at most: what counts is that it is one launch and not the eight of the formulas. The
// arrays stay where they are, so that a captured graph finds them; the number of batches is counted here too, as a graph's launches pass no numbers.
//
// momentum below 0: all batches so far weigh equally. unbias: n / (n - 1) for n values per channel.

// instances: running_statistics<float>, running_statistics<double>
template <typename T>
__global__ void __launch_bounds__(256) running_statistics(const T* __restrict__ mean, const T* __restrict__ var, T* __restrict__ running_mean,
                                                          T* __restrict__ running_var, long long* __restrict__ batches, int channels, T momentum,
                                                          T unbias)
{
    const T take = momentum < 0 ? T(1) / T(*batches + 1) : momentum;
    __syncthreads();                                                  // all have read the number
    if (threadIdx.x == 0) ++*batches;
    for (int c = threadIdx.x; c < channels; c += 256) {
        running_mean[c] = (1 - take) * running_mean[c] + take * mean[c];
        running_var[c] = (1 - take) * running_var[c] + take * unbias * var[c];
    }
}
