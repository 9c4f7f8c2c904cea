// The error function of every number; what erf.py does on the CPU.
//
//   erf_of   a thread per number   grid ceil(n / 256)   block 256
//
// Bytes moved: 8 for every float. CUDA's erff is off by at most 2 units in the last place, its erf for doubles too. It is the derivative's and the
// definitions' way; GELU has kernels of its own (gelu.cu), so no packs here.

// instances: erf_of<float>, erf_of<double>
template <typename T>
__global__ void __launch_bounds__(256) erf_of(const T* __restrict__ x, T* __restrict__ y, long long count)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < count) y[i] = erf(x[i]);
}
