// Softmax along an axis of K numbers, forward and backward; what is computed is derived in softmax.py.
//
// Forward    softmax_forward_columns    a thread per row       grid ceil(R / 128)   block 128   the naive one; used for other axes than the last
//            softmax_forward_warp       a warp per row         grid ceil(R / 4)     block 128   used for K <= 1024
//            softmax_forward_block      a block per row        grid R               block 256   used for longer rows
// Backward   softmax_backward_columns, _warp, _block: the same
//
// Bytes moved (float32, R rows of K numbers): 8 R K forward, 12 R K backward, if every number comes from memory once. Along the last axis a thread
// per row reads addresses K numbers apart, 32 cache lines at a load, and its row three times. A warp per row reads neighbouring addresses and
// keeps the row in registers, up to 32 numbers a lane; only longer rows are read again, from the cache. Along another axis the numbers of one row lie
// apart and those of neighbouring rows side by side: there a thread per row is what reads neighbouring addresses.
//
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is K / (numbers in a V); ITEMS how many of them a lane holds.
#include "rows.cuh"

// --- forward

// instances: softmax_forward_columns<float>, softmax_forward_columns<double>
template <typename T>
__global__ void __launch_bounds__(128) softmax_forward_columns(const T* __restrict__ x, T* __restrict__ y, long long columns, int length, int inner)
{
    const long long column = blockIdx.x * 128LL + threadIdx.x;
    if (column >= columns) return;
    const long long start = column_start(column, length, inner);
    x += start;
    y += start;
    T largest = lowest<T>();
    for (int k = 0; k < length; k++) largest = max(largest, x[(long long)k * inner]);
    const T sum = sum_in_pieces<T>(length, [&](int k) { return exp(x[(long long)k * inner] - largest); });
    for (int k = 0; k < length; k++) y[(long long)k * inner] = exp(x[(long long)k * inner] - largest) / sum;
}

// instances: softmax_forward_warp<float, float, 1>, softmax_forward_warp<float, float, 8>, softmax_forward_warp<float, float, 32>
// instances: softmax_forward_warp<float, float4, 1>, softmax_forward_warp<float, float4, 2>, softmax_forward_warp<float, float4, 8>
// instances: softmax_forward_warp<double, double, 1>, softmax_forward_warp<double, double, 8>, softmax_forward_warp<double, double, 32>
template <typename T, typename V, int ITEMS>
__global__ void __launch_bounds__(128) softmax_forward_warp(const V* __restrict__ x, V* __restrict__ y, int rows, int packs)
{
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;                                          // the whole warp: its shuffles miss nobody
    WarpRow<T, V, ITEMS> numbers(x, row, packs);
    T largest = lowest<T>(), sum = 0;
    numbers.each([&](T& v) { largest = max(largest, v); });
    largest = warp_max(largest);
    numbers.each([&](T& v) { sum += v = exp(v - largest); });          // a row of -inf: -inf - -inf is nan, as in the definition
    const T share = T(1) / warp_sum(sum);
    numbers.each([&](T& v) { v *= share; });
    numbers.store(y, row);
}

// instances: softmax_forward_block<float, float>, softmax_forward_block<float, float4>, softmax_forward_block<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) softmax_forward_block(const V* __restrict__ x, V* __restrict__ y, int packs)
{
    const int row = blockIdx.x;
    T largest = lowest<T>(), sum = 0;
    each_of_row<T>(x, row, packs, [&](T v) { largest = max(largest, v); });
    largest = block_max(largest);
    each_of_row<T>(x, row, packs, [&](T v) { sum += exp(v - largest); });
    sum = block_sum(sum);
    const T share = T(1) / sum;
    for (int p = threadIdx.x; p < packs; p += 256) {
        auto pack = packs_of<T>(x)[(long long)row * packs + p];
        for (T& v : pack.v) v = exp(v - largest) * share;
        packs_of<T>(y)[(long long)row * packs + p] = pack;
    }
}

// --- backward: dx = y (dy - sum(dy y))

// instances: softmax_backward_columns<float>, softmax_backward_columns<double>
template <typename T>
__global__ void __launch_bounds__(128) softmax_backward_columns(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                                                                long long columns, int length, int inner)
{
    const long long column = blockIdx.x * 128LL + threadIdx.x;
    if (column >= columns) return;
    const long long start = column_start(column, length, inner);
    dy += start;
    y += start;
    dx += start;
    const T sum = sum_in_pieces<T>(length, [&](int k) { return dy[(long long)k * inner] * y[(long long)k * inner]; });
    for (int k = 0; k < length; k++) {
        const long long i = (long long)k * inner;
        dx[i] = y[i] * (dy[i] - sum);
    }
}

// instances: softmax_backward_warp<float, float, 1>, softmax_backward_warp<float, float, 8>, softmax_backward_warp<float, float, 32>
// instances: softmax_backward_warp<float, float4, 1>, softmax_backward_warp<float, float4, 2>, softmax_backward_warp<float, float4, 8>
// instances: softmax_backward_warp<double, double, 1>, softmax_backward_warp<double, double, 8>, softmax_backward_warp<double, double, 32>
template <typename T, typename V, int ITEMS>
__global__ void __launch_bounds__(128) softmax_backward_warp(const V* __restrict__ dy, const V* __restrict__ y, V* __restrict__ dx, int rows,
                                                             int packs)
{
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    WarpRow<T, V, ITEMS> gradient(dy, row, packs);
    const WarpRow<T, V, ITEMS> numbers(y, row, packs);
    T sum = 0;
    gradient.each(numbers, [&](T& g, T out) { sum += g * out; });
    sum = warp_sum(sum);
    gradient.each(numbers, [&](T& g, T out) { g = out * (g - sum); });
    gradient.store(dx, row);
}

// instances: softmax_backward_block<float, float>, softmax_backward_block<float, float4>, softmax_backward_block<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) softmax_backward_block(const V* __restrict__ dy, const V* __restrict__ y, V* __restrict__ dx, int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const auto dy_row = packs_of<T>(dy) + (long long)blockIdx.x * packs, y_row = packs_of<T>(y) + (long long)blockIdx.x * packs;
    T sum = 0;
    for (int p = threadIdx.x; p < packs; p += 256) {
        const auto g = dy_row[p], out = y_row[p];
        for (int k = 0; k < N; k++) sum += g.v[k] * out.v[k];
    }
    sum = block_sum(sum);
    for (int p = threadIdx.x; p < packs; p += 256) {
        auto g = dy_row[p];
        const auto out = y_row[p];
        for (int k = 0; k < N; k++) g.v[k] = out.v[k] * (g.v[k] - sum);
        packs_of<T>(dx)[(long long)blockIdx.x * packs + p] = g;
    }
}
