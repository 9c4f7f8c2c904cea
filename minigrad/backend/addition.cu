// The sum of two large arrays; see addition.py.
//
//   add_naive   a thread per number       grid ceil(n / 256)        block 256
//   add         a thread per 4 packs      grid ceil(packs / 1024)   block 256    used
//
// Bytes moved: 12 for every float, which is what they must be. How fast they move depends on how many loads are on their way: a thread of `add` asks
// for eight packs, 128 bytes, before it waits for the first, and a multiprocessor has room for five such blocks (44 registers a thread on sm_90).
// `total` may be x or y, so nothing here is __restrict__: every thread has read its numbers before it writes them, and no other thread reads them.
// V is what is read at once: float, float4 or double.

// instances: add_naive<float>
template <typename T>
__global__ void __launch_bounds__(256) add_naive(const T* x, const T* y, T* total, long long count)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < count) total[i] = x[i] + y[i];
}

__device__ __forceinline__ float sum(float a, float b) { return a + b; }
__device__ __forceinline__ double sum(double a, double b) { return a + b; }
__device__ __forceinline__ float4 sum(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// instances: add<float>, add<float4>, add<double>
template <typename V>
__global__ void __launch_bounds__(256) add(const V* x, const V* y, V* total, long long packs)
{
    const long long first = blockIdx.x * 1024LL + threadIdx.x;
    V a[4], b[4];
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (first + 256 * k < packs) a[k] = x[first + 256 * k], b[k] = y[first + 256 * k];
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (first + 256 * k < packs) total[first + 256 * k] = sum(a[k], b[k]);
}
