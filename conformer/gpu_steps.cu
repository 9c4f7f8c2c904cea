// What a training step on the GPU leaves behind for the host, which reads it some steps later: a row of `records` (steps of an epoch, 4).
//
//   note   a warp per image, one block, so that sums have one order   grid 1   block 1024   used
//
// Bytes moved (float32): 8 B K of logits and 8 B of labels: a few microseconds, most of them the launch. Column 0 of a row is the loss, 1 to 3 are how
// many images the CNN head, the transformer head and the sum of both got right; with images taken in parts, `first` and `last` say where a step begins
// and ends, and the row adds up. counters: the number of the step in the run, and its place in the epoch, which is the row; both count on at the end.
// T is the type of a number of the network.

constexpr int WARPS = 32;

// A number and its place. Of two, the larger one and then the one that comes first counts, as in NumPy; so does the first nan.
template <typename T>
struct Largest {
    T value;
    int place;

    __device__ __forceinline__ void take(T other, int at)
    {
        const bool nan = value != value, other_nan = other != other;
        const bool same = nan ? other_nan : other == value;
        if (same ? at < place : !nan && (other_nan || other > value)) value = other, place = at;
    }
    // The same over a warp, in all lanes.
    __device__ __forceinline__ int over_warp()
    {
        for (int apart = WARPS / 2; apart > 0; apart /= 2) {
            const T other = __shfl_xor_sync(0xffffffff, value, apart);
            const int at = __shfl_xor_sync(0xffffffff, place, apart);
            take(other, at);
        }
        return place;
    }
};

// instances: note<float>, note<double>
template <typename T>
__global__ void __launch_bounds__(1024) note(const T* __restrict__ cnn, const T* __restrict__ transformer, const long long* __restrict__ labels,
                                             const T* __restrict__ loss, double* __restrict__ records, unsigned long long* __restrict__ counters,
                                             int images, int classes, bool first, bool last)
{
    __shared__ int right[WARPS][3];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int mine[3] = {0, 0, 0};
    for (int image = warp; image < images; image += WARPS) {
        const T* a = cnn + (long long)image * classes;
        const T* b = transformer + (long long)image * classes;
        const int start = lane < classes ? lane : 0;                  // lanes without a class look at class 0, too
        Largest<T> best[3] = {{a[start], start}, {b[start], start}, {a[start] + b[start], start}};
        for (int k = lane + 32; k < classes; k += 32) {
            best[0].take(a[k], k);
            best[1].take(b[k], k);
            best[2].take(a[k] + b[k], k);
        }
        for (int head = 0; head < 3; head++) mine[head] += best[head].over_warp() == labels[image];
    }
    if (lane == 0)
        for (int head = 0; head < 3; head++) right[warp][head] = mine[head];
    double* row = records + 4 * counters[1];
    __syncthreads();
    if (threadIdx.x < 4) {
        double sum = 0;
        if (threadIdx.x == 0)
            sum = *loss;
        else
            for (int k = 0; k < WARPS; k++) sum += right[k][threadIdx.x - 1];
        row[threadIdx.x] = first ? sum : row[threadIdx.x] + sum;
    }
    if (last && threadIdx.x < 2) ++counters[threadIdx.x];             // all threads have read counters[1] before the barrier
}
