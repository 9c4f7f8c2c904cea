// What linear.py leaves to a kernel: adding the bias to R rows of O features, and its gradient, the sums of the columns. The products are cuBLAS's.
//
// Adding       linear_add_bias_naive       a thread per number          grid ceil(R O / 256)        block 256
//              linear_add_bias             a thread per pack            grid ceil(packs / 256)      block 256         used
// Summing      column_sums_naive           a thread per column          grid ceil(O / 128)          block 128
//              column_sums                 rows cut into S slices       grid (S, ceil(O / 32))      block (32, 8)     used
//              column_sums_total           adds the slices              grid ceil(O / 32)           block (32, 16)    used
//
// Bytes moved (float32): 8 R O adding, which a product with the bias in its last step would save, but CuPy offers none; 4 R O summing. A thread per
// column keeps O threads busy, a GPU has 100,000; S slices keep S times as many, and each still reads 128 consecutive bytes with its neighbours.
//
// Nothing is added by atomics: every sum has one order, so a run can be repeated bit for bit. That is why summing takes two kernels.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is O / (numbers in a V).
#include "pack.cuh"
#include "slices.cuh"

// instances: linear_add_bias_naive<float>
template <typename T>
__global__ void linear_add_bias_naive(T* __restrict__ y, const T* __restrict__ bias, long long count, int features)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < count) y[i] += bias[i % features];
}

// instances: linear_add_bias<float, float>, linear_add_bias<float, float4>, linear_add_bias<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) linear_add_bias(V* __restrict__ y, const V* __restrict__ bias, long long count, int packs)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= count) return;
    auto pack = packs_of<T>(y)[i];
    const auto added = packs_of<T>(bias)[i % packs];
    for (int k = 0; k < sizeof(V) / sizeof(T); k++) pack.v[k] += added.v[k];
    packs_of<T>(y)[i] = pack;
}

// instances: column_sums_naive<float>
template <typename T>
__global__ void column_sums_naive(const T* __restrict__ x, T* __restrict__ total, int rows, int columns)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    T sum = 0;
    for (int row = 0; row < rows; row++) sum += x[(long long)row * columns + c];
    total[c] = sum;
}

// Slice s takes rows s, s + S, s + 2 S, ... in steps of 8 (threadIdx.y). Its sums go to partial (S, O).
// instances: column_sums<float>, column_sums<double>
template <typename T>
__global__ void __launch_bounds__(256) column_sums(const T* __restrict__ x, T* __restrict__ partial, int rows, int columns)
{
    __shared__ T sums[8][32];
    const int c = blockIdx.y * 32 + threadIdx.x, slice = blockIdx.x, slices = gridDim.x;
    T sum = 0;
    if (c < columns) {
#pragma unroll 4                                                      // so that four loads are on their way at a time; the order of addition stays
        for (long long row = slice + slices * threadIdx.y; row < rows; row += slices * 8) sum += x[row * columns + c];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= columns) return;
    for (int k = 1; k < 8; k++) sum += sums[k][threadIdx.x];
    partial[(long long)slice * columns + c] = sum;
}

// total (O,) = sum of partial (S, O) over S
// instances: column_sums_total<float>, column_sums_total<double>
template <typename T>
__global__ void __launch_bounds__(512) column_sums_total(const T* __restrict__ partial, T* __restrict__ total, int slices, int columns)
{
    add_slices(partial, total, slices, columns);
}
