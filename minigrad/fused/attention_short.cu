// Attention over short sequences: a block has a head, all of it. What it computes, and the arguments, are those of attention.cu, which has the kernels
// for any length; read it first. Letters: B batch, h heads, N queries, M keys, D head width, D' width of the values.
//
// Forward              attention_forward_short           a block per head                   grid B h                   block 32 W
// All gradients        attention_backward_short          a block per head                   grid B h                   block 32 W
//
// W = 1 for N, M <= 24 and W = 3 for N, M <= 72; D, D' <= 32: the Conformers for CIFAR have 17 or 65 tokens. In forward a block reads query, key and
// value once and writes the result; in backward it reads these and dY once and writes the three gradients: every number of them moves once. The
// scores are made once in backward, where the two kernels of attention.cu make them twice, and the sum P dP is taken from them: `out` is not read.
//
// FLOPs: forward 2 (24 W)^2 2 D per head, and backward 5 products of that size instead of 2. Of all that is done for a head of 65 tokens, counted in
// instructions of a warp (numbers that follow from the loops; `tiles` are the kernels of attention.cu):
//
//                                    forward: short   tiles     backward: short    tiles
//     multiply and add                       10,080  11,200              24,624   39,360
//     reads of shared memory                    870   1,520               2,790    5,400
//     exponentials                              162     300                 162      360
//     shuffles                                  108     360                  54        0
//
// Every warp has 24 rows of its own, queries or keys. A product of rows (scores, dP) makes 24 x 24 W numbers in a warp, 6 x 3 W in each thread; a
// product with the weights adds up 24 x D, 6 x 4 in each thread. So 9 packs of four numbers from shared memory serve 54 (W = 1), 15 serve 216 (W = 3)
// products, where a thread with 4 x 4 numbers reads 8 packs for 64. Rows in shared memory are D + 4 numbers apart, and rows of weights 24 W + 4: what
// half a warp reads at once, and what a warp writes at once, lies in different banks. Shared memory, in numbers, with D = 32: forward
// 864 W + 24 W max(72, 24 W + 4), 32 KiB at W = 3; backward 2,592 W + 24 W max(36, 24 W + 4), 52 KiB.
//
// exp(s) = exp2(s log2 e) is exp2 and one product. Nothing is added by atomics: every sum has one order.
#include "attention.cuh"

constexpr int WIDTH = 32;              // D and D', filled up with zeros
constexpr int APART = WIDTH + 4;       // between rows in shared memory
constexpr int R = 6;                   // rows that a thread has results of
constexpr int OWN = 4 * R;             // and a warp
constexpr double LOG2_E = 1.4426950408889634;

// A warp is 4 groups of rows by 8 groups of columns. Reading 16 bytes a thread, neighbours that want the same place let half a warp be served at once
// instead of a quarter; so lanes 2 k and 2 k + 1 share their columns, lanes k and k + 2 their rows.
__device__ __forceinline__ int row_group() { return threadIdx.x % 2 + threadIdx.x % 32 / 16 * 2; }
__device__ __forceinline__ int column_group() { return threadIdx.x / 2 % 8; }

// Over the column groups, in all of them.
template <typename T>
__device__ __forceinline__ T columns_max(T x)
{
    for (int apart = 8; apart > 1; apart /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, apart));
    return x;
}
template <typename T>
__device__ __forceinline__ T columns_sum(T x)
{
    for (int apart = 8; apart > 1; apart /= 2) x += __shfl_xor_sync(0xffffffff, x, apart);
    return x;
}

// Rows of an array in global memory, `apart` numbers apart, into shared memory: as many as the block has, zeros from `count` on and in columns from
// `width` on. All of a thread's numbers are on their way before the first is waited for.
template <typename T, int THREADS>
__device__ __forceinline__ void load(T* __restrict__ tile, const T* __restrict__ from, int apart, int count, int width, bool packs)
{
    constexpr int STEP = THREADS / (WIDTH / 4), TIMES = THREADS / 32 * OWN / STEP;
    const int row = threadIdx.x / (WIDTH / 4), column = threadIdx.x % (WIDTH / 4) * 4;
    from += (long long)row * apart + column;
    tile += row * APART + column;
    Pack<T, 4> pack[TIMES] = {};
#pragma unroll
    for (int k = 0; k < TIMES; k++) {
        if (row + k * STEP >= count || column >= width) continue;
        const T* const place = from + (long long)(k * STEP) * apart;
        if (packs)
            pack[k] = pack_at(place);
        else
            for (int c = 0; c < 4; c++) pack[k].v[c] = column + c < width ? place[c] : T(0);
    }
#pragma unroll
    for (int k = 0; k < TIMES; k++) *reinterpret_cast<Pack<T, 4>*>(tile + k * STEP * APART) = pack[k];
}

// Products of rows: s[i][j] = a_i . b_j for rows R row_group + i of a, a warp's own, and 8 j + column_group of b.
template <typename T, int C>
__device__ __forceinline__ void products(const T* a, const T* b, T (&s)[R][C])
{
    a += row_group() * R * APART;
    b += column_group() * APART;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) s[i][j] = 0;
#pragma unroll 1
    for (int d = 0; d < WIDTH; d += 4) {
        Pack<T, 4> left[R];
#pragma unroll
        for (int i = 0; i < R; i++) left[i] = pack_at(a + i * APART + d);
#pragma unroll
        for (int j = 0; j < C; j++) {
            const auto right = pack_at(b + 8 * j * APART + d);
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < R; i++) s[i][j] += left[i].v[k] * right.v[k];
        }
    }
}

// What a thread has of `products`, to where the rows of the warp's own begin in shared memory.
template <typename T, int C>
__device__ __forceinline__ void put(T* p, const T (&s)[R][C])
{
    p += row_group() * R * (8 * C + 4) + column_group();
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) p[i * (8 * C + 4) + 8 * j] = s[i][j];
}

// A warp's own rows of p times the first `count` rows of b: rows R row_group + i, columns 4 column_group + k. To the next multiple of 4 both hold zeros.
template <typename T, int C>
__device__ __forceinline__ void times(const T* p, const T* b, int count, T (&sum)[R][4])
{
    p += row_group() * R * (8 * C + 4);
    b += column_group() * 4;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum[i][k] = 0;
#pragma unroll 1
    for (int m = 0; m < count; m += 4) {
        Pack<T, 4> weight[R];
#pragma unroll
        for (int i = 0; i < R; i++) weight[i] = pack_at(p + i * (8 * C + 4) + m);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const auto row = pack_at(b + (m + r) * APART);
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int k = 0; k < 4; k++) sum[i][k] += weight[i].v[r] * row.v[k];
        }
    }
}

// A warp's own columns of p, as rows, times the first `count` rows of b.
template <typename T, int C>
__device__ __forceinline__ void transposed_times(const T* p, const T* b, int count, T (&sum)[R][4])
{
    p += row_group() * R;
    b += column_group() * 4;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum[i][k] = 0;
#pragma unroll 4
    for (int n = 0; n < count; n++) {
        const auto row = pack_at(b + n * APART);
#pragma unroll
        for (int i = 0; i < R; i += 2) {
            const auto weight = *reinterpret_cast<const Pack<T, 2>*>(p + n * (8 * C + 4) + i);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum[i][k] += weight.v[0] * row.v[k];
                sum[i + 1][k] += weight.v[1] * row.v[k];
            }
        }
    }
}

// Each thread's part of a warp's rows, times `factor`, to global memory; `apart` numbers between rows, `count` rows, `width` columns. The two ways have
// nothing in common, or the compiler makes four stores of a pack's.
template <typename T>
__device__ __forceinline__ void store(T* __restrict__ to, const T (&sum)[R][4], T factor, int apart, int count, int width, bool packs)
{
    const int row = row_group() * R, column = column_group() * 4;
    if (packs) {
        auto* const place = reinterpret_cast<Pack<T, 4>*>(to) + (long long)row * (apart / 4) + column / 4;
#pragma unroll
        for (int i = 0; i < R; i++)
            if (row + i < count && column < width)
                place[(long long)i * (apart / 4)] = {{sum[i][0] * factor, sum[i][1] * factor, sum[i][2] * factor, sum[i][3] * factor}};
        return;
    }
    to += (long long)row * apart + column;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (row + i < count && column + k < width) to[(long long)i * apart + k] = sum[i][k] * factor;
}

// A score from a product of rows, -infinity outside of the head; and exp(score - the row's largest). Without masks scores are kept times log2 e, which
// saves a product each. With them they are not: a mask of the lowest finite number would become -infinity. `min` passes NaN over: outside, where an
// infinite query has met the tile's zeros, -infinity stays (an addition would keep the NaN, and a choice takes twice as many instructions); inside, NaN
// becomes infinity, and the row NaN all the same.
template <typename T, bool MASKED>
__device__ __forceinline__ T score(T product, const Masks<T>& masks, int n, int m, int queries, int keys)
{
    if constexpr (MASKED) return n < queries && m < keys ? masks.score(product, n, m) : -infinity<T>();
    return min(product * (masks.scale * T(LOG2_E)), m < keys ? infinity<T>() : -infinity<T>());
}
template <typename T, bool MASKED>
__device__ __forceinline__ T exponential(T score, T largest)
{
    if constexpr (MASKED) return exp2((score - largest) * T(LOG2_E));
    return exp2(score - largest);
}

// instances: attention_forward_short<float, 32, false>, attention_forward_short<float, 32, true>
// instances: attention_forward_short<float, 96, false>, attention_forward_short<float, 96, true>
// instances: attention_forward_short<double, 32, false>, attention_forward_short<double, 32, true>
template <typename T, int THREADS, bool MASKED>
__global__ void __launch_bounds__(THREADS)
attention_forward_short(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ bias,
                        const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept, T* __restrict__ out,
                        T* __restrict__ top, T* __restrict__ rescale, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m,
                        int s_b, int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale, T keep_scale,
                        bool packs)
{
    constexpr int W = THREADS / 32, C = 3 * W;                        // 24 W = 8 C tokens
    extern __shared__ __align__(32) unsigned char shared[];
    T* const v_tile = reinterpret_cast<T*>(shared);
    T* const q_tile = v_tile + W * OWN * APART;
    T* const k_tile = q_tile + W * OWN * APART;
    T* const p = q_tile;                                              // once query and key have been read

    const int pair = blockIdx.x, own = threadIdx.x / 32 * OWN, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    load<T, THREADS>(q_tile, query + (long long)b * q_b + (long long)h * q_h, q_n, queries, width, packs);
    load<T, THREADS>(k_tile, key + (long long)b * k_b + (long long)h * k_h, k_m, keys, width, packs);
    load<T, THREADS>(v_tile, value + (long long)b * v_b + (long long)h * v_h, v_m, keys, value_width, packs);
    __syncthreads();

    T s[R][C], reciprocal[R], sum[R][4];
    products<T, C>(q_tile + own * APART, k_tile, s);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int n = own + row_group() * R + i;
        T largest = -infinity<T>(), total = 0;
#pragma unroll
        for (int j = 0; j < C; j++) {
            s[i][j] = score<T, MASKED>(s[i][j], masks, n, 8 * j + column_group(), queries, keys);
            largest = max(largest, s[i][j]);
        }
        largest = columns_max(largest);
        if (largest == -infinity<T>()) largest = 0;                   // a query that may look nowhere
#pragma unroll
        for (int j = 0; j < C; j++) {
            const int m = 8 * j + column_group();
            s[i][j] = exponential<T, MASKED>(s[i][j], largest);
            total += s[i][j];
            if (MASKED) s[i][j] *= n < queries && m < keys ? masks.keep(n, m) : T(0);
        }
        total = columns_sum(total);
        reciprocal[i] = total == 0 ? T(0) : 1 / total;
        if (column_group() == 0 && n < queries) {
            top[(long long)pair * queries + n] = largest;
            rescale[(long long)pair * queries + n] = reciprocal[i];
        }
    }
    __syncthreads();                                                  // query and key have been read
    put<T, C>(p + own * (8 * C + 4), s);
    __syncwarp();
    times<T, C>(p + own * (8 * C + 4), v_tile, keys, sum);
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) sum[i][k] *= reciprocal[i];
    const long long token = ((long long)b * queries + own) * heads + h;
    store(out + token * value_width, sum, keep_scale, heads * value_width, queries - own, value_width, packs);
}

// With P the weights, K what dropout keeps of them (times keep_scale):  dP = dY V^T K,  dS = P (dP - sum P dP),  dQ = dS K scale,  dK = dS^T Q scale,
// dV = (P K)^T dY. Where one weight is 1 and the others are 0, the sum is dP to the last bit, and dS is 0, as it must be.
// instances: attention_backward_short<float, 32, false>, attention_backward_short<float, 32, true>
// instances: attention_backward_short<float, 96, false>, attention_backward_short<float, 96, true>
// instances: attention_backward_short<double, 32, false>, attention_backward_short<double, 32, true>
template <typename T, int THREADS, bool MASKED>
__global__ void __launch_bounds__(THREADS)
attention_backward_short(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ dy,
                         const T* __restrict__ bias, const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept,
                         const T* __restrict__ top, const T* __restrict__ rescale, T* __restrict__ dquery, T* __restrict__ dkey,
                         T* __restrict__ dvalue, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m, int dy_b, int dy_h,
                         int dy_n, int s_b, int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale,
                         T keep_scale, bool packs, int abreast)
{
    constexpr int W = THREADS / 32, C = 3 * W;                        // 24 W = 8 C tokens
    extern __shared__ __align__(32) unsigned char shared[];
    T* const q_tile = reinterpret_cast<T*>(shared);
    T* const k_tile = q_tile + W * OWN * APART;
    T* const dy_tile = k_tile + W * OWN * APART;
    T* const v_tile = dy_tile + W * OWN * APART;
    T* const p = v_tile;                                              // once value has been read: P, and then dS

    const int pair = blockIdx.x, own = threadIdx.x / 32 * OWN, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    load<T, THREADS>(q_tile, query + (long long)b * q_b + (long long)h * q_h, q_n, queries, width, packs);
    load<T, THREADS>(k_tile, key + (long long)b * k_b + (long long)h * k_h, k_m, keys, width, packs);
    load<T, THREADS>(dy_tile, dy + (long long)b * dy_b + (long long)h * dy_h, dy_n, queries, value_width, packs);
    load<T, THREADS>(v_tile, value + (long long)b * v_b + (long long)h * v_h, v_m, keys, value_width, packs);
    __syncthreads();

    T weight[R][C], ds[R][C], sum[R][4];
    products<T, C>(q_tile + own * APART, k_tile, weight);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int n = own + row_group() * R + i;
        const T largest = n < queries ? top[(long long)pair * queries + n] : T(0);
        const T reciprocal = n < queries ? rescale[(long long)pair * queries + n] : T(0);
#pragma unroll
        for (int j = 0; j < C; j++) {
            const T s = score<T, MASKED>(weight[i][j], masks, n, 8 * j + column_group(), queries, keys);
            weight[i][j] = exponential<T, MASKED>(s, largest) * reciprocal;
        }
    }
    products<T, C>(dy_tile + own * APART, v_tile, ds);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int n = own + row_group() * R + i;
        T delta = 0;
#pragma unroll
        for (int j = 0; j < C; j++) {
            const int m = 8 * j + column_group();
            if (MASKED) ds[i][j] *= n < queries && m < keys ? masks.keep(n, m) * keep_scale : T(0);
            delta += weight[i][j] * ds[i][j];
        }
        delta = columns_sum(delta);
#pragma unroll
        for (int j = 0; j < C; j++) {
            const int m = 8 * j + column_group();
            ds[i][j] = weight[i][j] * (ds[i][j] - delta);
            if (MASKED) weight[i][j] *= n < queries && m < keys ? masks.keep(n, m) : T(0);
        }
    }
    const int all_heads = abreast * heads;
    const long long query_token = ((long long)b * queries + own) * all_heads + h, key_token = ((long long)b * keys + own) * all_heads + h;
    __syncthreads();                                                  // value has been read
    if (dvalue) {
        put<T, C>(p + own * (8 * C + 4), weight);
        __syncthreads();
        transposed_times<T, C>(p + own, dy_tile, queries, sum);
        store(dvalue + key_token * value_width, sum, keep_scale, all_heads * value_width, keys - own, value_width, packs);
        __syncthreads();                                              // P has been read
    }
    put<T, C>(p + own * (8 * C + 4), ds);
    __syncthreads();
    if (dquery) {
        times<T, C>(p + own * (8 * C + 4), k_tile, keys, sum);
        store(dquery + query_token * width, sum, scale, all_heads * width, queries - own, width, packs);
    }
    if (dkey) {
        transposed_times<T, C>(p + own, q_tile, queries, sum);
        store(dkey + key_token * width, sum, scale, all_heads * width, keys - own, width, packs);
    }
}
