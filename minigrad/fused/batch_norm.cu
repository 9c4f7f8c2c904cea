// Batch normalisation of R rows of C channels, forward and backward, with residual sum and ReLU; what is computed is derived in batch_norm.py.
//
// Statistics        batch_norm_statistics_naive   a thread per channel, two passes   grid ceil(C / 128)   block 128
//                   batch_norm_statistics         rows cut into S slices, packs      grid (S, columns)    block (X, Y)     used
//                   batch_norm_merge              merges the slices                  grid ceil(C / 32)    block (32, 16)   used
//                   batch_norm_given              evaluation: none to compute        grid ceil(C / 128)   block 128        used
// Forward           batch_norm_forward_naive      a thread per element               grid ceil(R C / 256) block 256
//                   batch_norm_forward            a thread per pack, rows walked     grid (G, columns)    block (X, Y)     used
// Backward          batch_norm_backward_naive     a thread per channel               grid ceil(C / 128)   block 128
//                   batch_norm_sums               rows cut into S slices, packs      grid (S, columns)    block (X, Y)     used
//                   batch_norm_sums_merge         adds the slices                    grid ceil(C / 32)    block (32, 16)   used
//                   batch_norm_backward           dx and dresidual together          grid (G, columns)    block (X, Y)     used
//
// A block of X by Y <= 256 threads covers X neighbouring packs of channels (all of them, if there are at most 256: then `columns` is 1) of Y rows: it
// reads Y whole rows, one piece of memory, also where a row is only 12 or 48 bytes. A thread keeps its channels' constants in registers as it walks
// down the rows. A thread per channel would read as well, but C threads do not fill a GPU.
//
// Bytes moved (float32): statistics 4 R C, forward 8 R C (12 R C with a residual); sums 8 R C, backward 12 R C in training, 8 R C in evaluation. The
// ReLU adds 4 R C to each of the last two, where it reads y, and a residual's gradient adds 4 R C of writing to the last.
//
// Nothing is added by atomics: every sum has one order, so a run can be repeated bit for bit.
// T is the type of a number, V what is read at once: float, float4 or double. `packs` is C / (numbers in a V). A null weight is 1, a null bias 0.
// `statistics` (3, C): center, offset, rstd. The mean is center + offset: as one number it would lose the digits that x - mean needs.
#include "pack.cuh"

constexpr int AT_ONCE = 4;                                            // rows, or slices, that a thread of a sum loads before it looks at the first

// --- statistics

// `count` numbers, of which `mean` and `squares`, the sum of squares around it, are known, are joined by others. Source: Chan, Golub, LeVeque 1979.
template <typename T>
__device__ __forceinline__ void join(T& mean, T& squares, int count, T other_mean, T other_squares, int other_count)
{
    if (other_count == 0) return;                                     // both may be empty: 0 / 0
    const T share = T(other_count) / T(count + other_count), apart = other_mean - mean;
    mean += apart * share;
    squares += other_squares + apart * T(count) * (apart * share);    // apart^2 may be infinite where count is 0
}

// The pivot of a channel, which is subtracted from all its numbers: of its first, middle and last number the one between the others. A mean of 1000
// then costs no digits; and a number that lies far from all others, which would cost them as many, is not taken for the pivot.
template <typename T>
__device__ __forceinline__ T between(T first, T middle, T last) { return max(min(first, middle), min(max(first, middle), last)); }

// Rows of a slice: of R rows in S slices, slice s has those from s ceil(R / S) on.
struct Slice {
    int first, last;
    __device__ Slice(int slice, int slices, int rows)
    {
        const int length = (rows + slices - 1) / slices;
        first = min(slice * length, rows);
        last = min(first + length, rows);
    }
};

// The mean and variance of a channel as outputs, and as `statistics`, from its mean less `pivot` and the sum of squares around it.
template <typename T>
__device__ __forceinline__ void store_statistics(T pivot, T mean, T squares, int rows, T eps, int c, int channels, T* statistics, T* mean_out,
                                                 T* var_out)
{
    const T center = pivot + mean, var = squares / T(max(rows, 1));
    statistics[c] = center;
    statistics[channels + c] = mean - (center - pivot);               // what rounding took from the center
    statistics[2 * channels + c] = T(1) / sqrt(var + eps);
    mean_out[c] = center;
    var_out[c] = var;
}

// instances: batch_norm_statistics_naive<float>
template <typename T>
__global__ void batch_norm_statistics_naive(const T* __restrict__ x, T* __restrict__ statistics, T* __restrict__ mean, T* __restrict__ var, int rows,
                                            int channels, T eps)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    T sum = 0, squares = 0;
    for (int row = 0; row < rows; row++) sum += x[(long long)row * channels + c];
    const T average = sum / T(max(rows, 1));
    for (int row = 0; row < rows; row++) {
        const T away = x[(long long)row * channels + c] - average;
        squares += away * away;
    }
    store_statistics(T(0), average, squares, rows, eps, c, channels, statistics, mean, var);
}

// One pass over x, less the pivots; the squares are those around the mean so far. Writes partial (S, 2, C): mean less pivot, squares.
// instances: batch_norm_statistics<float, float>, batch_norm_statistics<float, float4>, batch_norm_statistics<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) batch_norm_statistics(const V* __restrict__ x, V* __restrict__ partial, int rows, int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    __shared__ Pack<T, N> means[256], sums[256];
    __shared__ int counts[256];
    const int p = blockIdx.y * blockDim.x + threadIdx.x, me = threadIdx.y * blockDim.x + threadIdx.x;
    const Slice slice(blockIdx.x, gridDim.x, rows);
    Pack<T, N> mean = {}, squares = {};
    int count = 0;
    if (p < packs && slice.first < slice.last) {
        auto pivot = packs_of<T>(x)[p];
        const auto middle = packs_of<T>(x)[(long long)(rows / 2) * packs + p], last = packs_of<T>(x)[(long long)(rows - 1) * packs + p];
        for (int k = 0; k < N; k++) pivot.v[k] = between(pivot.v[k], middle.v[k], last.v[k]);
        const int step = blockDim.y;
        for (int row = slice.first + threadIdx.y; row < slice.last; row += AT_ONCE * step) {
            Pack<T, N> set[AT_ONCE] = {};
            int more = 0;
            #pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                if (row + r * step >= slice.last) continue;
                set[r] = packs_of<T>(x)[(long long)(row + r * step) * packs + p];
                more++;
            }
            const T one_by_more = T(1) / T(more);
            #pragma unroll
            for (int k = 0; k < N; k++) {                             // two passes over the set, which is in registers; then it joins those before
                T sum = 0, around = 0;
                #pragma unroll
                for (int r = 0; r < AT_ONCE; r++) sum += r < more ? set[r].v[k] - pivot.v[k] : T(0);
                const T average = sum * one_by_more;
                #pragma unroll
                for (int r = 0; r < AT_ONCE; r++) {
                    const T away = r < more ? set[r].v[k] - pivot.v[k] - average : T(0);
                    around += away * away;
                }
                join(mean.v[k], squares.v[k], count, average, around, more);
            }
            count += more;
        }
    }
    means[me] = mean;
    sums[me] = squares;
    counts[me] = count;
    for (int apart = 1; apart < blockDim.y; apart *= 2) {             // rows of threads join in pairs, pairs of pairs, ...; Y is any number
        __syncthreads();
        if (threadIdx.y % (2 * apart) != 0 || threadIdx.y + apart >= blockDim.y) continue;
        const int other = me + apart * blockDim.x;
        for (int k = 0; k < N; k++) join(mean.v[k], squares.v[k], count, means[other].v[k], sums[other].v[k], counts[other]);
        count += counts[other];
        means[me] = mean;
        sums[me] = squares;
        counts[me] = count;
    }
    if (threadIdx.y > 0 || p >= packs) return;
    packs_of<T>(partial)[(long long)blockIdx.x * 2 * packs + p] = mean;
    packs_of<T>(partial)[((long long)blockIdx.x * 2 + 1) * packs + p] = squares;
}

// instances: batch_norm_merge<float>, batch_norm_merge<double>
template <typename T>
__global__ void __launch_bounds__(512) batch_norm_merge(const T* __restrict__ partial, const T* __restrict__ x, T* __restrict__ statistics,
                                                        T* __restrict__ mean, T* __restrict__ var, int slices, int rows, int channels, T eps)
{
    __shared__ T means[16][32], sums[16][32];
    __shared__ int counts[16][32];
    const int i = threadIdx.x, j = threadIdx.y, c = blockIdx.x * 32 + i;
    T average = 0, squares = 0;
    int count = 0;
    if (c < channels) {
        for (int first = j; first < slices; first += 16 * AT_ONCE) {
            T other_mean[AT_ONCE] = {}, other_squares[AT_ONCE] = {};
            #pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                const T* of_slice = partial + (long long)(first + 16 * r) * 2 * channels + c;
                if (first + 16 * r < slices) other_mean[r] = of_slice[0], other_squares[r] = of_slice[channels];
            }
            #pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                if (first + 16 * r >= slices) continue;
                const Slice slice(first + 16 * r, slices, rows);
                join(average, squares, count, other_mean[r], other_squares[r], slice.last - slice.first);
                count += slice.last - slice.first;
            }
        }
    }
    means[j][i] = average;
    sums[j][i] = squares;
    counts[j][i] = count;
    for (int apart = 1; apart < 16; apart *= 2) {
        __syncthreads();
        if (j % (2 * apart) != 0) continue;
        join(average, squares, count, means[j + apart][i], sums[j + apart][i], counts[j + apart][i]);
        count += counts[j + apart][i];
        means[j][i] = average;
        sums[j][i] = squares;
        counts[j][i] = count;
    }
    if (j > 0 || c >= channels) return;
    const T pivot = rows > 0 ? between(x[c], x[(long long)(rows / 2) * channels + c], x[(long long)(rows - 1) * channels + c]) : T(0);
    store_statistics(pivot, average, squares, rows, eps, c, channels, statistics, mean, var);
}

// Evaluation: the statistics are given.
// instances: batch_norm_given<float>, batch_norm_given<double>
template <typename T>
__global__ void batch_norm_given(const T* __restrict__ mean, const T* __restrict__ var, T* __restrict__ statistics, T* __restrict__ mean_out,
                                 T* __restrict__ var_out, int channels, T eps)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    statistics[c] = mean_out[c] = mean[c];
    statistics[channels + c] = 0;
    statistics[2 * channels + c] = T(1) / sqrt(var[c] + eps);
    var_out[c] = var[c];
}

// --- forward

// instances: batch_norm_forward_naive<float>
template <typename T>
__global__ void batch_norm_forward_naive(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                         const T* __restrict__ residual, const T* __restrict__ statistics, T* __restrict__ y, long long count,
                                         int channels, bool relu)
{
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int c = i % channels;                                       // a division takes longer than all the rest
    T value = (x[i] - statistics[c] - statistics[channels + c]) * statistics[2 * channels + c];
    value = value * (weight ? weight[c] : T(1)) + (bias ? bias[c] : T(0)) + (residual ? residual[i] : T(0));
    y[i] = relu && value < 0 ? T(0) : value;
}

// instances: batch_norm_forward<float, float>, batch_norm_forward<float, float4>, batch_norm_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) batch_norm_forward(const V* __restrict__ x, const V* __restrict__ weight, const V* __restrict__ bias,
                                                          const V* __restrict__ residual, const V* __restrict__ statistics, V* __restrict__ y,
                                                          int rows, int packs, bool relu)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int p = blockIdx.y * blockDim.x + threadIdx.x;
    if (p >= packs) return;
    const auto center = packs_of<T>(statistics)[p], offset = packs_of<T>(statistics)[packs + p];
    auto scale = packs_of<T>(statistics)[2 * packs + p];
    Pack<T, N> shift = {};
    if (weight) {
        const auto w = packs_of<T>(weight)[p];
        for (int k = 0; k < N; k++) scale.v[k] *= w.v[k];
    }
    if (bias) shift = packs_of<T>(bias)[p];
    for (long long row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const long long i = row * packs + p;
        auto pack = packs_of<T>(x)[i];
        for (int k = 0; k < N; k++) pack.v[k] = (pack.v[k] - center.v[k] - offset.v[k]) * scale.v[k] + shift.v[k];
        if (residual) {
            const auto r = packs_of<T>(residual)[i];
            for (int k = 0; k < N; k++) pack.v[k] += r.v[k];
        }
        if (relu) {
            for (T& v : pack.v) v = v < 0 ? T(0) : v;                 // nan stays nan
        }
        packs_of<T>(y)[i] = pack;
    }
}

// --- backward: with g = dy where y > 0 (everywhere, if y is null), x' = x - mean and M = R,
//     dbias = sum(g),  dweight = rstd sum(g x'),  dx = weight rstd (g - dbias / M - x' rstd dweight / M);  in evaluation dx = weight rstd g

// A choice and no product with 0 or 1: an infinite gradient at a number that the ReLU cut away gives 0, not nan.
template <typename T, typename V>
__device__ __forceinline__ auto through_relu(const V* __restrict__ dy, const V* __restrict__ y, long long i)
{
    auto g = packs_of<T>(dy)[i];
    if (y) {
        const auto out = packs_of<T>(y)[i];
        for (int k = 0; k < sizeof(V) / sizeof(T); k++) g.v[k] = out.v[k] > 0 ? g.v[k] : T(0);
    }
    return g;
}

// instances: batch_norm_backward_naive<float>
template <typename T>
__global__ void batch_norm_backward_naive(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ weight,
                                          const T* __restrict__ statistics, T* __restrict__ dx, T* __restrict__ dweight, T* __restrict__ dbias,
                                          T* __restrict__ dresidual, int rows, int channels)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const T mean = statistics[c] + statistics[channels + c], rstd = statistics[2 * channels + c];
    T sum = 0, product = 0;
    for (int row = 0; row < rows; row++) {
        const long long i = (long long)row * channels + c;
        dresidual[i] = y[i] > 0 ? dy[i] : T(0);
        sum += dresidual[i];
        product += dresidual[i] * (x[i] - mean);
    }
    dbias[c] = sum;
    dweight[c] = product * rstd;
    for (int row = 0; row < rows; row++) {
        const long long i = (long long)row * channels + c;
        dx[i] = weight[c] * rstd * (dresidual[i] - sum / rows - (x[i] - mean) * rstd * rstd * product / rows);
    }
}

// Writes partial (S, 2, C): sums of g, of g x'.
// instances: batch_norm_sums<float, float>, batch_norm_sums<float, float4>, batch_norm_sums<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) batch_norm_sums(const V* __restrict__ dy, const V* __restrict__ x, const V* __restrict__ y,
                                                       const V* __restrict__ statistics, V* __restrict__ partial, int rows, int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    __shared__ Pack<T, N> sums[256], products[256];
    const int p = blockIdx.y * blockDim.x + threadIdx.x, me = threadIdx.y * blockDim.x + threadIdx.x;
    Pack<T, N> sum = {}, product = {};
    if (p < packs) {
        const auto center = packs_of<T>(statistics)[p], offset = packs_of<T>(statistics)[packs + p];
        const Slice slice(blockIdx.x, gridDim.x, rows);
        const int step = blockDim.y;
        for (int row = slice.first + threadIdx.y; row < slice.last; row += AT_ONCE * step) {
            Pack<T, N> g[AT_ONCE] = {}, set[AT_ONCE] = {}, out[AT_ONCE] = {};
            #pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                const long long i = (long long)(row + r * step) * packs + p;
                if (row + r * step >= slice.last) continue;
                g[r] = packs_of<T>(dy)[i];
                set[r] = packs_of<T>(x)[i];
                if (y) out[r] = packs_of<T>(y)[i];
            }
            #pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                if (row + r * step >= slice.last) continue;
                #pragma unroll
                for (int k = 0; k < N; k++) {
                    const T of_g = !y || out[r].v[k] > 0 ? g[r].v[k] : T(0);     // as in through_relu, whose loads would wait for each other
                    sum.v[k] += of_g;
                    product.v[k] += of_g * (set[r].v[k] - center.v[k] - offset.v[k]);
                }
            }
        }
    }
    sums[me] = sum;
    products[me] = product;
    for (int apart = 1; apart < blockDim.y; apart *= 2) {
        __syncthreads();
        if (threadIdx.y % (2 * apart) != 0 || threadIdx.y + apart >= blockDim.y) continue;
        const int other = me + apart * blockDim.x;
        for (int k = 0; k < N; k++) {
            sum.v[k] += sums[other].v[k];
            product.v[k] += products[other].v[k];
        }
        sums[me] = sum;
        products[me] = product;
    }
    if (threadIdx.y > 0 || p >= packs) return;
    packs_of<T>(partial)[(long long)blockIdx.x * 2 * packs + p] = sum;
    packs_of<T>(partial)[((long long)blockIdx.x * 2 + 1) * packs + p] = product;
}

// gradients (2, C): dbias, dweight
// instances: batch_norm_sums_merge<float>, batch_norm_sums_merge<double>
template <typename T>
__global__ void __launch_bounds__(512) batch_norm_sums_merge(const T* __restrict__ partial, const T* __restrict__ statistics,
                                                             T* __restrict__ gradients, int slices, int channels)
{
    __shared__ T sums[16][32], products[16][32];
    const int i = threadIdx.x, j = threadIdx.y, c = blockIdx.x * 32 + i;
    T sum = 0, product = 0;
    if (c < channels) {
        for (int s = j; s < slices; s += 16) {
            const T* of_slice = partial + (long long)s * 2 * channels + c;
            sum += of_slice[0];
            product += of_slice[channels];
        }
    }
    sums[j][i] = sum;
    products[j][i] = product;
    for (int apart = 1; apart < 16; apart *= 2) {
        __syncthreads();
        if (j % (2 * apart) != 0) continue;
        sums[j][i] = sum += sums[j + apart][i];
        products[j][i] = product += products[j + apart][i];
    }
    if (j > 0 || c >= channels) return;
    const T rstd = statistics[2 * channels + c];
    gradients[c] = sum;
    gradients[channels + c] = rstd == 0 ? T(0) : product * rstd;      // of an infinite variance, where the product may be infinite too
}

// `gradients` is null in evaluation. dx or dresidual may be null: not wanted.
// instances: batch_norm_backward<float, float>, batch_norm_backward<float, float4>, batch_norm_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) batch_norm_backward(const V* __restrict__ dy, const V* __restrict__ x, const V* __restrict__ y,
                                                           const V* __restrict__ weight, const V* __restrict__ statistics,
                                                           const V* __restrict__ gradients, V* __restrict__ dx, V* __restrict__ dresidual, int rows,
                                                           int packs)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const int p = blockIdx.y * blockDim.x + threadIdx.x;
    if (p >= packs) return;
    const auto center = packs_of<T>(statistics)[p], offset = packs_of<T>(statistics)[packs + p], rstd = packs_of<T>(statistics)[2 * packs + p];
    Pack<T, N> scale = rstd, mean_g = {}, slope = {};
    if (weight) {
        const auto w = packs_of<T>(weight)[p];
        for (int k = 0; k < N; k++) scale.v[k] *= w.v[k];
    }
    if (gradients) {
        const auto dbias = packs_of<T>(gradients)[p], dweight = packs_of<T>(gradients)[packs + p];
        for (int k = 0; k < N; k++) {
            mean_g.v[k] = dbias.v[k] / T(rows);
            slope.v[k] = dweight.v[k] * rstd.v[k] / T(rows);
        }
    }
    for (long long row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const long long i = row * packs + p;
        auto g = through_relu<T>(dy, y, i);
        if (dresidual) packs_of<T>(dresidual)[i] = g;
        if (!dx) continue;
        if (gradients) {
            const auto pack = packs_of<T>(x)[i];
            for (int k = 0; k < N; k++) g.v[k] -= mean_g.v[k] + (pack.v[k] - center.v[k] - offset.v[k]) * slope.v[k];
        }
        for (int k = 0; k < N; k++) g.v[k] *= scale.v[k];
        packs_of<T>(dx)[i] = g;
    }
}
