// Layer normalisation of R rows of C channels, forward and backward; what is computed is derived in layer_norm.py.
//
// Forward           layer_norm_forward_naive    a thread per row                  grid ceil(R / 128)          block 128
//                   layer_norm_forward          a warp per row, packs             grid ceil(R / 4)            block 128         used
// Gradient of x     layer_norm_backward_naive   a thread per row                  grid ceil(R / 128)          block 128
//                   layer_norm_backward         a warp per row, packs             grid ceil(R / 4)            block 128         used
// Of weight, bias   layer_norm_columns_naive    a thread per channel              grid ceil(C / 128)          block 128
//                   layer_norm_columns          rows cut into S slices            grid (ceil(C / 32), S)      block (32, 8)     used
//                   layer_norm_columns_sum      adds the slices                   grid ceil(2 C / 32)         block (32, 16)    used
// Of all three      layer_norm_backward_all     a warp walks down rows            grid S                      block 256         used; then the sum
//
// Bytes moved (float32). A thread per row makes the 32 lanes of a warp read addresses C floats apart: every load touches 32 cache lines, and only if
// all of them stay in the cache until the next channels are read does a byte come from memory once. A warp per row reads 512 consecutive bytes at a
// time, and its row, read three times, stays in the first-level cache:  forward 8 R C,  gradient of x 12 R C,  of weight and bias 8 R C, of all three
// 12 R C, as they are made of the same numbers: dy and x are read once, where a row fits into a warp's registers, and dx is written.
//
// Nothing is added by atomics: every sum has one order, so a run can be repeated bit for bit. That is why the columns take two kernels.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is C / (numbers in a V). A null weight is 1, a null bias 0.
#include "pack.cuh"
#include "slices.cuh"

// --- forward

// A row's mean and 1 / deviation from its average, which was rounded, and what is left of its numbers' sum and squares around that. Where the mean is
// large beside the deviation, the average's rounding would count as a deviation: equal numbers would come out as noise.
template <typename T>
struct Moments {
    T mean, rstd;

    __device__ __forceinline__ Moments(T average, T left, T squares, T channels, T eps)
    {
        left /= channels;
        const T square = squares / channels;
        const bool infinite = square == __int_as_float(0x7f800000);   // then rstd is 0 and so is y, whatever the mean, which may be infinite too
        const T var = infinite ? square : square - left * left;
        mean = infinite ? T(0) : average + left;
        rstd = rsqrt((var < 0 ? T(0) : var) + eps);                   // a NaN stays one
    }
};

// instances: layer_norm_forward_naive<float>
template <typename T>
__global__ void layer_norm_forward_naive(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y,
                                         T* __restrict__ mean, T* __restrict__ rstd, int rows, int channels, T eps)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (long long)row * channels;
    y += (long long)row * channels;
    T sum = 0;
    for (int c = 0; c < channels; c++) sum += x[c];
    const T average = sum / channels;
    T left = 0, squares = 0;                                          // around the average: E[x^2] - E[x]^2 would cancel
    for (int c = 0; c < channels; c++) left += x[c] - average, squares += (x[c] - average) * (x[c] - average);
    const Moments<T> moments(average, left, squares, T(channels), eps);
    for (int c = 0; c < channels; c++) y[c] = (x[c] - moments.mean) * moments.rstd * (weight ? weight[c] : T(1)) + (bias ? bias[c] : T(0));
    mean[row] = moments.mean;
    rstd[row] = moments.rstd;
}

// instances: layer_norm_forward<float, float>, layer_norm_forward<float, float4>, layer_norm_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) layer_norm_forward(const V* __restrict__ x, const V* __restrict__ weight, const V* __restrict__ bias,
                                                          V* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int rows, int packs, T eps)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;                                          // the whole warp: its shuffles miss nobody
    const auto x_row = packs_of<T>(x) + (long long)row * packs;
    const T channels = T(packs) * N;

    T sum = 0;
    for (int p = lane; p < packs; p += 32) {
        const auto pack = x_row[p];                                   // one load; `x_row[p].v[k]` would be N of them
        for (T v : pack.v) sum += v;
    }
    const T average = warp_sum(sum) / channels;

    T left = 0, squares = 0;
    for (int p = lane; p < packs; p += 32) {
        const auto pack = x_row[p];
        for (T v : pack.v) left += v - average, squares += (v - average) * (v - average);
    }
    left = warp_sum(left);
    const Moments<T> moments(average, left, warp_sum(squares), channels, eps);

    for (int p = lane; p < packs; p += 32) {
        auto pack = x_row[p];
        for (T& v : pack.v) v = (v - moments.mean) * moments.rstd;
        if (weight) {
            const auto w = packs_of<T>(weight)[p];
            for (int k = 0; k < N; k++) pack.v[k] *= w.v[k];
        }
        if (bias) {
            const auto b = packs_of<T>(bias)[p];
            for (int k = 0; k < N; k++) pack.v[k] += b.v[k];
        }
        packs_of<T>(y)[(long long)row * packs + p] = pack;
    }
    if (lane == 0) mean[row] = moments.mean, rstd[row] = moments.rstd;
}

// --- the gradient of x: with g = dy weight and x_hat = (x - mean) rstd,  dx = rstd (g - mean(g) - x_hat mean(g x_hat))

// instances: layer_norm_backward_naive<float>
template <typename T>
__global__ void layer_norm_backward_naive(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ mean,
                                          const T* __restrict__ rstd, T* __restrict__ dx, int rows, int channels)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += (long long)row * channels;
    dy += (long long)row * channels;
    dx += (long long)row * channels;
    T sum = 0, product = 0;
    for (int c = 0; c < channels; c++) {
        const T g = weight ? dy[c] * weight[c] : dy[c];
        sum += g;
        product += g * (x[c] - mean[row]) * rstd[row];
    }
    for (int c = 0; c < channels; c++) {
        const T g = weight ? dy[c] * weight[c] : dy[c], x_hat = (x[c] - mean[row]) * rstd[row];
        dx[c] = rstd[row] * (g - sum / channels - x_hat * product / channels);
    }
}

// instances: layer_norm_backward<float, float>, layer_norm_backward<float, float4>, layer_norm_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(128) layer_norm_backward(const V* __restrict__ dy, const V* __restrict__ x, const V* __restrict__ weight,
                                                           const T* __restrict__ mean, const T* __restrict__ rstd, V* __restrict__ dx, int rows,
                                                           int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    const auto x_row = packs_of<T>(x) + (long long)row * packs, dy_row = packs_of<T>(dy) + (long long)row * packs;
    const T channels = T(packs) * N, average = mean[row], scale = rstd[row];

    auto g_and_x_hat = [&](int p, auto& g, auto& x_hat) {
        g = dy_row[p];
        x_hat = x_row[p];
        for (T& v : x_hat.v) v = (v - average) * scale;
        if (weight) {
            const auto w = packs_of<T>(weight)[p];
            for (int k = 0; k < N; k++) g.v[k] *= w.v[k];
        }
    };
    Pack<T, N> g, x_hat;
    T sum = 0, product = 0;
    for (int p = lane; p < packs; p += 32) {
        g_and_x_hat(p, g, x_hat);
        for (int k = 0; k < N; k++) sum += g.v[k], product += g.v[k] * x_hat.v[k];
    }
    const T mean_g = warp_sum(sum) / channels, mean_product = warp_sum(product) / channels;
    for (int p = lane; p < packs; p += 32) {
        g_and_x_hat(p, g, x_hat);
        for (int k = 0; k < N; k++) g.v[k] = scale * (g.v[k] - mean_g - x_hat.v[k] * mean_product);
        packs_of<T>(dx)[(long long)row * packs + p] = g;
    }
}

// --- the gradients of weight and bias: sums over the rows of dy x_hat and of dy

// instances: layer_norm_columns_naive<float>
template <typename T>
__global__ void layer_norm_columns_naive(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ rstd,
                                         T* __restrict__ dweight, T* __restrict__ dbias, int rows, int channels)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    T weight_sum = 0, bias_sum = 0;
    for (int row = 0; row < rows; row++) {
        const long long i = (long long)row * channels + c;            // neighbouring threads, neighbouring addresses; but few threads
        weight_sum += dy[i] * (x[i] - mean[row]) * rstd[row];
        bias_sum += dy[i];
    }
    dweight[c] = weight_sum;
    dbias[c] = bias_sum;
}

// Slice s takes rows s, s + S, s + 2 S, ... in steps of 8 (threadIdx.y). Its sums go to partial (S, 2, C): dweight's, then dbias's.
// instances: layer_norm_columns<float>, layer_norm_columns<double>
template <typename T>
__global__ void __launch_bounds__(256) layer_norm_columns(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ mean,
                                                          const T* __restrict__ rstd, T* __restrict__ partial, int rows, int channels)
{
    __shared__ T sums[2][8][32];
    const int c = blockIdx.x * 32 + threadIdx.x, slice = blockIdx.y, slices = gridDim.y;
    T weight_sum = 0, bias_sum = 0;
    if (c < channels) {
        for (int row = slice + slices * threadIdx.y; row < rows; row += slices * 8) {
            const long long i = (long long)row * channels + c;
            weight_sum += dy[i] * (x[i] - mean[row]) * rstd[row];
            bias_sum += dy[i];
        }
    }
    sums[0][threadIdx.y][threadIdx.x] = weight_sum;
    sums[1][threadIdx.y][threadIdx.x] = bias_sum;
    __syncthreads();
    if (threadIdx.y >= 2 || c >= channels) return;                    // two rows of threads add up the eight: one for weight, one for bias
    T sum = 0;
    for (int k = 0; k < 8; k++) sum += sums[threadIdx.y][k][threadIdx.x];
    partial[((long long)slice * 2 + threadIdx.y) * channels + c] = sum;
}

// total (2, C) = sum of partial (S, 2, C) over S
// instances: layer_norm_columns_sum<float>, layer_norm_columns_sum<double>
template <typename T>
__global__ void __launch_bounds__(512) layer_norm_columns_sum(const T* __restrict__ partial, T* __restrict__ total, int slices, int columns)
{
    add_slices(partial, total, slices, columns);
}

// --- all three: what is read for one of them is all that the others need

// A warp takes every 8 S-th row, AT_ONCE of them together, so that enough loads are on their way, and keeps the sums of its lanes' channels in
// registers; the eight warps of a block add theirs up, to partial (S, 2, C) as layer_norm_columns does. A row has at most 32 ITEMS packs.
// instances: layer_norm_backward_all<float, float4, 1>, layer_norm_backward_all<float, float4, 2>, layer_norm_backward_all<float, float4, 3>
// instances: layer_norm_backward_all<float, float4, 6>
// instances: layer_norm_backward_all<double, double, 1>, layer_norm_backward_all<double, double, 2>, layer_norm_backward_all<double, double, 3>
// instances: layer_norm_backward_all<double, double, 6>
template <typename T, typename V, int ITEMS>
__global__ void __launch_bounds__(256) layer_norm_backward_all(const V* __restrict__ dy, const V* __restrict__ x, const V* __restrict__ weight,
                                                               const T* __restrict__ mean, const T* __restrict__ rstd, V* __restrict__ dx,
                                                               V* __restrict__ partial, int rows, int packs)
{
    constexpr int N = sizeof(V) / sizeof(T), AT_ONCE = ITEMS <= 2 ? 2 : 1;
    __shared__ Pack<T, N> sums[2][8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, step = gridDim.x * 8;
    const T channels = T(packs) * N;
    Pack<T, N> w[ITEMS], dweight[ITEMS] = {}, dbias[ITEMS] = {};
    #pragma unroll
    for (int i = 0; i < ITEMS; i++) {                                 // registers have no index: all loops over i and r are unrolled
        for (T& v : w[i].v) v = 1;
        if (weight && lane + 32 * i < packs) w[i] = packs_of<T>(weight)[lane + 32 * i];
    }
    for (int first = blockIdx.x * 8 + warp; first < rows; first += AT_ONCE * step) {
        Pack<T, N> g[AT_ONCE][ITEMS] = {}, x_hat[AT_ONCE][ITEMS] = {};
        T average[AT_ONCE] = {}, scale[AT_ONCE] = {};
        #pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int row = first + r * step;
            if (row >= rows) continue;                                // the whole warp: its shuffles miss nobody
            average[r] = mean[row];
            scale[r] = rstd[row];
            #pragma unroll
            for (int i = 0; i < ITEMS; i++) {
                const long long at = (long long)row * packs + lane + 32 * i;
                if (lane + 32 * i >= packs) continue;
                g[r][i] = packs_of<T>(dy)[at];
                x_hat[r][i] = packs_of<T>(x)[at];
            }
        }
        #pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int row = first + r * step;
            if (row >= rows) continue;
            T sum = 0, product = 0;
            #pragma unroll
            for (int i = 0; i < ITEMS; i++) {
                if (lane + 32 * i >= packs) continue;
                for (int k = 0; k < N; k++) {
                    const T of_y = g[r][i].v[k], of_x = (x_hat[r][i].v[k] - average[r]) * scale[r];
                    dweight[i].v[k] += of_y * of_x;
                    dbias[i].v[k] += of_y;
                    g[r][i].v[k] = of_y * w[i].v[k];
                    x_hat[r][i].v[k] = of_x;
                    sum += g[r][i].v[k];
                    product += g[r][i].v[k] * of_x;
                }
            }
            const T mean_g = warp_sum(sum) / channels, mean_product = warp_sum(product) / channels;
            #pragma unroll
            for (int i = 0; i < ITEMS; i++) {
                if (lane + 32 * i >= packs) continue;
                for (int k = 0; k < N; k++) g[r][i].v[k] = scale[r] * (g[r][i].v[k] - mean_g - x_hat[r][i].v[k] * mean_product);
                packs_of<T>(dx)[(long long)row * packs + lane + 32 * i] = g[r][i];
            }
        }
    }
    #pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (i > 0) __syncthreads();                                   // until the sums before these have been read
        sums[0][warp][lane] = dweight[i];
        sums[1][warp][lane] = dbias[i];
        __syncthreads();
        if (warp >= 2 || lane + 32 * i >= packs) continue;            // one warp adds up dweight, one dbias
        auto total = sums[warp][0][lane];
        for (int other = 1; other < 8; other++) {
            for (int k = 0; k < N; k++) total.v[k] += sums[warp][other][lane].v[k];
        }
        packs_of<T>(partial)[((long long)blockIdx.x * 2 + warp) * packs + lane + 32 * i] = total;
    }
}
