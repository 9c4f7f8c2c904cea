// The logarithm of softmax along an axis of K numbers, forward and backward; what is computed is derived in log_softmax.py.
//
// Forward    log_softmax_forward_columns    a thread per row       grid ceil(R / 128)   block 128   the naive one; used for other axes than the last
//            log_softmax_forward_warp       a warp per row         grid ceil(R / 4)     block 128   used for K <= 1024
//            log_softmax_forward_block      a block per row        grid R               block 256   used for longer rows
// Backward   log_softmax_backward_columns, _warp, _block: the same
//
// Bytes moved (float32, R rows of K numbers): 8 R K forward, 12 R K backward, if every number comes from memory once. Along the last axis a thread
// per row reads addresses K numbers apart, 32 cache lines at a load, and its row three times. A warp per row reads neighbouring addresses and
// keeps the row in registers, up to 32 numbers a lane; only longer rows are read again, from the cache. Along another axis the numbers of one row lie
// apart and those of neighbouring rows side by side: there a thread per row is what reads neighbouring addresses.
//
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is K / (numbers in a V); ITEMS how many of them a lane holds.
#include "rows.cuh"

// --- forward

// instances: log_softmax_forward_columns<float>, log_softmax_forward_columns<double>
template <typename T>
__global__ void __launch_bounds__(128) log_softmax_forward_columns(const T* __restrict__ x, T* __restrict__ y, long long columns, int length,
                                                                   int inner)
{
    const long long column = blockIdx.x * 128LL + threadIdx.x;
    if (column >= columns) return;
    const long long start = column_start(column, length, inner);
    x += start;
    y += start;
    T largest = lowest<T>();
    for (int k = 0; k < length; k++) largest = max(largest, x[(long long)k * inner]);
    const T log_sum = log(sum_in_pieces<T>(length, [&](int k) { return exp(x[(long long)k * inner] - largest); }));
    for (int k = 0; k < length; k++) y[(long long)k * inner] = x[(long long)k * inner] - largest - log_sum;
}

// instances: log_softmax_forward_warp<float, float, 1>, log_softmax_forward_warp<float, float, 8>, log_softmax_forward_warp<float, float, 32>
// instances: log_softmax_forward_warp<float, float4, 1>, log_softmax_forward_warp<float, float4, 2>, log_softmax_forward_warp<float, float4, 8>
// instances: log_softmax_forward_warp<double, double, 1>, log_softmax_forward_warp<double, double, 8>, log_softmax_forward_warp<double, double, 32>
template <typename T, typename V, int ITEMS>
__global__ void __launch_bounds__(128) log_softmax_forward_warp(const V* __restrict__ x, V* __restrict__ y, int rows, int packs)
{
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;                                          // the whole warp: its shuffles miss nobody
    WarpRow<T, V, ITEMS> numbers(x, row, packs);
    T largest = lowest<T>(), sum = 0;
    numbers.each([&](T& v) { largest = max(largest, v); });
    largest = warp_max(largest);
    numbers.each([&](T& v) {
        v -= largest;                                                 // a row of -inf: -inf - -inf is nan, as in the definition
        sum += exp(v);
    });
    const T log_sum = log(warp_sum(sum));
    numbers.each([&](T& v) { v -= log_sum; });
    numbers.store(y, row);
}

// instances: log_softmax_forward_block<float, float>, log_softmax_forward_block<float, float4>, log_softmax_forward_block<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) log_softmax_forward_block(const V* __restrict__ x, V* __restrict__ y, int packs)
{
    const int row = blockIdx.x;
    T largest = lowest<T>(), sum = 0;
    each_of_row<T>(x, row, packs, [&](T v) { largest = max(largest, v); });
    largest = block_max(largest);
    each_of_row<T>(x, row, packs, [&](T v) { sum += exp(v - largest); });
    sum = block_sum(sum);
    const T log_sum = log(sum);
    for (int p = threadIdx.x; p < packs; p += 256) {
        auto pack = packs_of<T>(x)[(long long)row * packs + p];
        for (T& v : pack.v) v = v - largest - log_sum;
        packs_of<T>(y)[(long long)row * packs + p] = pack;
    }
}

// --- backward: dx = dy - exp(y) sum(dy)

// instances: log_softmax_backward_columns<float>, log_softmax_backward_columns<double>
template <typename T>
__global__ void __launch_bounds__(128) log_softmax_backward_columns(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                                                                    long long columns, int length, int inner)
{
    const long long column = blockIdx.x * 128LL + threadIdx.x;
    if (column >= columns) return;
    const long long start = column_start(column, length, inner);
    dy += start;
    y += start;
    dx += start;
    const T sum = sum_in_pieces<T>(length, [&](int k) { return dy[(long long)k * inner]; });
    for (int k = 0; k < length; k++) {
        const long long i = (long long)k * inner;
        dx[i] = dy[i] - exp(y[i]) * sum;
    }
}

// instances: log_softmax_backward_warp<float, float, 1>, log_softmax_backward_warp<float, float, 8>, log_softmax_backward_warp<float, float, 32>
// instances: log_softmax_backward_warp<float, float4, 1>, log_softmax_backward_warp<float, float4, 2>, log_softmax_backward_warp<float, float4, 8>
// instances: log_softmax_backward_warp<double, double, 1>, log_softmax_backward_warp<double, double, 8>
// instances: log_softmax_backward_warp<double, double, 32>
template <typename T, typename V, int ITEMS>
__global__ void __launch_bounds__(128) log_softmax_backward_warp(const V* __restrict__ dy, const V* __restrict__ y, V* __restrict__ dx, int rows,
                                                                 int packs)
{
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    WarpRow<T, V, ITEMS> gradient(dy, row, packs);
    const WarpRow<T, V, ITEMS> numbers(y, row, packs);
    T sum = 0;
    gradient.each([&](T& g) { sum += g; });
    sum = warp_sum(sum);
    gradient.each(numbers, [&](T& g, T out) { g -= exp(out) * sum; });
    gradient.store(dx, row);
}

// instances: log_softmax_backward_block<float, float>, log_softmax_backward_block<float, float4>, log_softmax_backward_block<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) log_softmax_backward_block(const V* __restrict__ dy, const V* __restrict__ y, V* __restrict__ dx, int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const auto dy_row = packs_of<T>(dy) + (long long)blockIdx.x * packs, y_row = packs_of<T>(y) + (long long)blockIdx.x * packs;
    T sum = 0;
    each_of_row<T>(dy, blockIdx.x, packs, [&](T g) { sum += g; });
    sum = block_sum(sum);
    for (int p = threadIdx.x; p < packs; p += 256) {
        auto g = dy_row[p];
        const auto out = y_row[p];
        for (int k = 0; k < N; k++) g.v[k] = g.v[k] - exp(out.v[k]) * sum;
        packs_of<T>(dx)[(long long)blockIdx.x * packs + p] = g;
    }
}
