// Scaled dot-product attention, forward and backward; the formulas are in attention.py. No array of N x M numbers is made: scores are computed where
// they are needed, and again in backward. Letters: B batch, h heads, N queries, M keys, D head width, D' width of the values. Where all of a head fits in
// a block (N, M <= 72, D <= 32; of doubles, D <= 24), the kernels of attention_short.cu are used; those marked here are for everything else.
//
// Forward              attention_forward_naive           a thread per query                 grid ceil(B h N / 128)     block 128
//                      attention_forward                 a block per head and 16 W queries  grid B h ceil(N / 16 W)    block 32 W     used
// sum_d dY Y           attention_delta                   a thread per query                 grid ceil(B h N / 128)     block 128      used
// Gradient of query    attention_backward_naive<false>   a thread per query                 grid ceil(B h N / 128)     block 128
//                      attention_backward<false>         a block per head and 16 W queries  grid B h ceil(N / 16 W)    block 32 W     used
// Of key and value     attention_backward_naive<true>    a thread per key                   grid ceil(B h M / 128)     block 128
//                      attention_backward<true>          a block per head and 16 W keys     grid B h ceil(M / 16 W)    block 32 W     used
//
// FLOPs: forward 4 N M D per head, backward 14 N M D (10, and 4 for the scores that both of its kernels make again). Bytes, float32: each block reads
// its own rows once and all rows of the other side, so  8 D (N + M ceil(N / 16 W))  per head forward, about twice that in each kernel of backward; the
// blocks of a head are neighbours and find the other side in the second-level cache. A thread per row reads all rows of the other side by itself.
//
// In a block, W <= 4 warps have 16 rows of their own each ("own": queries in forward and for their gradient, keys otherwise). The other side passes by
// in tiles of 32 rows in shared memory. Each warp makes 16 x 32 scores, 4 x 4 of them in each thread, hands them through shared memory to
// the thread that needs them, and adds up 16 rows of results, 4 x (WIDTH / 8) numbers in each thread: of every four numbers read from shared memory
// at once, four products each are made. Shared rows are WIDTH + 4 numbers apart: the 8 rows that a quarter of a warp reads at once then lie in 32
// different banks. Shared memory, in numbers: forward (16 W + 64) (WIDTH + 4) + 576 W, backward (32 W + 64) (WIDTH + 4) + 576 W; at WIDTH 64 and
// W = 4 that is 43 KiB, 5 blocks on an H100's multiprocessor, and 60 KiB, 3 blocks.
//
// Online softmax: the largest score so far is subtracted in the exponent; when a tile has a larger one, what has been added up is multiplied by
// exp(old - new). Kept for backward are that largest score and 1 / sum of each row, not log(sum exp), which would round away digits of large
// scores: P = exp(score - top) rescale. A query that may look nowhere has rescale 0. Nothing is added by atomics: every sum has one order.
//
// Arguments x_b, x_h, x_n: how many numbers lie between examples, heads and tokens of x (its last axis is contiguous). `packs`: all rows can be read
// as float4. Masks, null where there is none: `bias` is added to the scores, where `allowed` is false they are -infinity (both with strides s_b ...
// s_m); weights are multiplied by `keeping` or `kept`, contiguous (B, h, N, M), and by keep_scale, which is given to the values. What is written lies in
// the order (B, N, h, D); each gradient is a slice of an array (B, N, `abreast`, h, D).
#include "attention.cuh"

constexpr int OWN = 16;               // a warp's own rows
constexpr int TILE = 32;              // rows of the other side in shared memory
constexpr int TILE_APART = TILE + 4;  // between the rows of a warp's scores in shared memory

// --- what the kernels with a block per tile share

// `rows` rows of an array in global memory, `apart` numbers apart, times `factor`, into shared memory; zeros for rows from `count` on and columns from
// `width` on.
template <typename T, int WIDTH>
__device__ __forceinline__ void load(T* __restrict__ tile, const T* __restrict__ from, int apart, int rows, int count, int width, bool packs,
                                     T factor = 1)
{
    for (int i = threadIdx.x; i < rows * (WIDTH / 4); i += blockDim.x) {
        const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
        const T* place = from + (long long)row * apart + column;
        Pack<T, 4> pack = {};
        if (row < count && column < width) {
            if (packs)
                pack = pack_at(place);
            else
                for (int k = 0; k < 4; k++) pack.v[k] = column + k < width ? place[k] : T(0);
        }
        for (T& v : pack.v) v *= factor;
        *reinterpret_cast<Pack<T, 4>*>(tile + row * (WIDTH + 4) + column) = pack;
    }
}

// Products of rows: s[i][j] = a_i . b_j for rows 4 (lane / 8) + i of a, a warp's own, and rows 8 j + lane % 8 of b, of which there are `count`.
template <typename T, int WIDTH>
__device__ __forceinline__ void products(const T* a, const T* b, int count, T (&s)[4][4])
{
    const int lane = threadIdx.x % 32;
    a += lane / 8 * 4 * (WIDTH + 4);
    b += lane % 8 * (WIDTH + 4);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = 0;
#pragma unroll 2
    for (int d = 0; d < WIDTH; d += 4) {
        Pack<T, 4> left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = pack_at(a + i * (WIDTH + 4) + d);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (8 * j >= count) continue;
            const auto right = pack_at(b + 8 * j * (WIDTH + 4) + d);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int k = 0; k < 4; k++) s[i][j] += left[i].v[k] * right.v[k];
        }
    }
}

// A warp's 16 x 32 numbers times the 32 rows of b, of which only `count` are not 0, added to sum: rows 4 (lane / 8) + i, columns 32 j + 4 (lane % 8) + k
// at sum[i][4 j + k].
template <typename T, int WIDTH>
__device__ __forceinline__ void accumulate(const T* p, const T* b, int count, T (&sum)[4][WIDTH / 8])
{
    const int lane = threadIdx.x % 32;
    p += lane / 8 * 4 * TILE_APART;
    b += lane % 8 * 4;
#pragma unroll 1
    for (int m = 0; m < TILE && m < count; m += 4) {
        Pack<T, 4> weight[4];
#pragma unroll
        for (int i = 0; i < 4; i++) weight[i] = pack_at(p + i * TILE_APART + m);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < WIDTH / 32; j++) {
                const auto row = pack_at(b + (m + r) * (WIDTH + 4) + 32 * j);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int k = 0; k < 4; k++) sum[i][4 * j + k] += weight[i].v[r] * row.v[k];
            }
    }
}

// Each thread's part of a warp's rows to global memory; `apart` numbers between rows, `count` rows, `width` columns. The two ways have
// nothing in common: at an address that single numbers are stored to as well, the compiler makes four stores of a pack's.
template <typename T, int WIDTH>
__device__ __forceinline__ void store(T* __restrict__ to, const T (&sum)[4][WIDTH / 8], int apart, int count, int width, bool packs)
{
    const int row = threadIdx.x % 32 / 8 * 4, column = threadIdx.x % 8 * 4;
    if (packs) {
        auto* const place = reinterpret_cast<Pack<T, 4>*>(to) + (long long)row * (apart / 4) + column / 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < WIDTH / 32; j++)
                if (row + i < count && column + 32 * j < width)
                    place[(long long)i * (apart / 4) + 8 * j] = {{sum[i][4 * j], sum[i][4 * j + 1], sum[i][4 * j + 2], sum[i][4 * j + 3]}};
        return;
    }
    to += (long long)row * apart + column;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < WIDTH / 8; c++) {
            const int further = c / 4 * 32 + c % 4;
            if (row + i < count && column + further < width) to[(long long)i * apart + further] = sum[i][c];
        }
}

// --- forward

// x . (y factor), added in the order of `products`.
template <typename T>
__device__ __forceinline__ T dot(const T* x, const T* y, int width, T factor = 1)
{
    T sum = 0;
    for (int d = 0; d < width; d++) sum += x[d] * (y[d] * factor);
    return sum;
}

// instances: attention_forward_naive<float>, attention_forward_naive<double>
template <typename T>
__global__ void __launch_bounds__(128)
attention_forward_naive(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ bias,
                        const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept, T* __restrict__ out,
                        T* __restrict__ top, T* __restrict__ rescale, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m,
                        int s_b, int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale, T keep_scale,
                        bool packs, int count)
{
    const int row = blockIdx.x * 128 + threadIdx.x;
    if (row >= count) return;
    const int pair = row / queries, n = row % queries, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    query += (long long)b * q_b + (long long)h * q_h + (long long)n * q_n;
    key += (long long)b * k_b + (long long)h * k_h;
    value += (long long)b * v_b + (long long)h * v_h;
    out += (((long long)b * queries + n) * heads + h) * value_width;

    T largest = -infinity<T>(), total = 0;
    for (int m = 0; m < keys; m++) largest = max(largest, masks.score(dot(query, key + (long long)m * k_m, width), n, m));
    const T shift = largest == -infinity<T>() ? T(0) : largest;
    for (int d = 0; d < value_width; d++) out[d] = 0;
    for (int m = 0; m < keys; m++) {
        const T e = exp(masks.score(dot(query, key + (long long)m * k_m, width), n, m) - shift), weight = e * masks.keep(n, m);
        total += e;
        for (int d = 0; d < value_width; d++) out[d] += weight * (value[(long long)m * v_m + d] * keep_scale);
    }
    const T reciprocal = total == 0 ? T(0) : 1 / total;
    for (int d = 0; d < value_width; d++) out[d] *= reciprocal;
    top[row] = shift;
    rescale[row] = reciprocal;
}

// instances: attention_forward<float, 32>, attention_forward<float, 64>, attention_forward<float, 128>
// instances: attention_forward<double, 32>
template <typename T, int WIDTH>
__global__ void __launch_bounds__(128)
attention_forward(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ bias,
                  const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept, T* __restrict__ out,
                  T* __restrict__ top, T* __restrict__ rescale, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m, int s_b,
                  int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale, T keep_scale, bool packs, int count)
{
    extern __shared__ __align__(32) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = blockDim.x / 32 * OWN, blocks = (queries + rows - 1) / rows;
    T* const q_tile = reinterpret_cast<T*>(shared);
    T* const k_tile = q_tile + rows * (WIDTH + 4);
    T* const v_tile = k_tile + TILE * (WIDTH + 4);
    T* const p = v_tile + TILE * (WIDTH + 4) + warp * OWN * TILE_APART;

    const int pair = blockIdx.x / blocks, first = blockIdx.x % blocks * rows, own = first + warp * OWN, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    query += (long long)b * q_b + (long long)h * q_h + (long long)first * q_n;
    key += (long long)b * k_b + (long long)h * k_h;
    value += (long long)b * v_b + (long long)h * v_h;

    T sum[4][WIDTH / 8] = {}, total[4] = {}, largest[4];
#pragma unroll
    for (int i = 0; i < 4; i++) largest[i] = -infinity<T>();
    load<T, WIDTH>(q_tile, query, q_n, rows, queries - first, width, packs);
    for (int start = 0; start < keys; start += TILE) {
        const int tile = keys - start;
        __syncthreads();                                              // nobody reads the last tile any more
        load<T, WIDTH>(k_tile, key + (long long)start * k_m, k_m, TILE, tile, width, packs);
        load<T, WIDTH>(v_tile, value + (long long)start * v_m, v_m, TILE, tile, value_width, packs, keep_scale);
        __syncthreads();
        if (own >= queries) continue;                                 // a warp without queries only helps to load

        T s[4][4];
        products<T, WIDTH>(q_tile + warp * OWN * (WIDTH + 4), k_tile, tile, s);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = own + lane / 8 * 4 + i;
            T high = largest[i], part = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int m = start + 8 * j + lane % 8;
                s[i][j] = n < queries && m < keys ? masks.score(s[i][j], n, m) : -infinity<T>();
                high = max(high, s[i][j]);
            }
            for (int apart = 4; apart > 0; apart /= 2) high = max(high, __shfl_xor_sync(0xffffffff, high, apart));
            const T shift = high == -infinity<T>() ? T(0) : high, faded = exp(largest[i] - shift);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int m = start + 8 * j + lane % 8;
                const T e = exp(s[i][j] - shift);
                part += e;
                p[(lane / 8 * 4 + i) * TILE_APART + 8 * j + lane % 8] = n < queries && m < keys ? e * masks.keep(n, m) : T(0);
            }
            for (int apart = 4; apart > 0; apart /= 2) part += __shfl_xor_sync(0xffffffff, part, apart);
            largest[i] = high;
            total[i] = total[i] * faded + part;
#pragma unroll
            for (int c = 0; c < WIDTH / 8; c++) sum[i][c] *= faded;
        }
        __syncwarp();
        accumulate<T, WIDTH>(p, v_tile, tile, sum);
    }
    if (own >= queries) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int n = own + lane / 8 * 4 + i;
        const T reciprocal = total[i] == 0 ? T(0) : 1 / total[i];
#pragma unroll
        for (int c = 0; c < WIDTH / 8; c++) sum[i][c] *= reciprocal;
        if (lane % 8 == 0 && n < queries) {
            top[(long long)pair * queries + n] = largest[i] == -infinity<T>() ? T(0) : largest[i];
            rescale[(long long)pair * queries + n] = reciprocal;
        }
    }
    store<T, WIDTH>(out + (((long long)b * queries + own) * heads + h) * value_width, sum, heads * value_width, queries - own, value_width, packs);
}

// --- backward: with P the weights, K what dropout keeps of them (0 or 1), and value already multiplied by keep_scale,
// delta = sum_d dY Y,  dS = P (dY V^T K - delta) scale,  dQ = dS K,  dK = dS^T Q,  dV = (P K)^T dY keep_scale

// A thread adds a row in the order in which dY V^T is added: where one weight is 1 and the others are 0, the two cancel to the last bit, as they must;
// what is left of them would be multiplied by the scale and by all keys.
// instances: attention_delta<float>, attention_delta<double>
template <typename T>
__global__ void __launch_bounds__(128) attention_delta(const T* __restrict__ dy, const T* __restrict__ out, T* __restrict__ delta, int dy_b, int dy_h,
                                                       int dy_n, int heads, int queries, int value_width, int count)
{
    const int row = blockIdx.x * 128 + threadIdx.x;
    if (row >= count) return;
    const int pair = row / queries, n = row % queries, b = pair / heads, h = pair % heads;
    dy += (long long)b * dy_b + (long long)h * dy_h + (long long)n * dy_n;
    delta[row] = dot(dy, out + (((long long)b * queries + n) * heads + h) * value_width, value_width);
}

// The gradient of the own side's first array (query, or key if KEYS), and with KEYS that of value; null pointers where it is not wanted.
// instances: attention_backward_naive<float, false>, attention_backward_naive<float, true>
// instances: attention_backward_naive<double, false>, attention_backward_naive<double, true>
template <typename T, bool KEYS>
__global__ void __launch_bounds__(128)
attention_backward_naive(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ dy,
                         const T* __restrict__ bias, const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept,
                         const T* __restrict__ top, const T* __restrict__ rescale, const T* __restrict__ delta, T* __restrict__ first_gradient,
                         T* __restrict__ second_gradient, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m, int dy_b,
                         int dy_h, int dy_n, int s_b, int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale,
                         T keep_scale, bool packs, int abreast, int count)
{
    const int row = blockIdx.x * 128 + threadIdx.x, each = KEYS ? keys : queries;
    if (row >= count) return;
    const int pair = row / each, own = row % each, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    query += (long long)b * q_b + (long long)h * q_h;
    key += (long long)b * k_b + (long long)h * k_h;
    value += (long long)b * v_b + (long long)h * v_h;
    dy += (long long)b * dy_b + (long long)h * dy_h;
    const long long token = ((long long)b * each + own) * abreast * heads + h;
    T *first = first_gradient ? first_gradient + token * width : nullptr, *second = second_gradient ? second_gradient + token * value_width : nullptr;
    for (int d = 0; first && d < width; d++) first[d] = 0;
    for (int d = 0; second && d < value_width; d++) second[d] = 0;
    for (int other = 0; other < (KEYS ? queries : keys); other++) {
        const int n = KEYS ? other : own, m = KEYS ? own : other;
        const T *q = query + (long long)n * q_n, *k = key + (long long)m * k_m, *v = value + (long long)m * v_m, *g = dy + (long long)n * dy_n;
        const long long at = (long long)pair * queries + n;
        const T weight = exp(masks.score(dot(q, k, width), n, m) - top[at]) * rescale[at], keep = masks.keep(n, m);
        const T ds = weight * (dot(g, v, value_width, keep_scale) * keep - delta[at]) * scale;
        for (int d = 0; first && d < width; d++) first[d] += ds * (KEYS ? q : k)[d];
        for (int d = 0; second && d < value_width; d++) second[d] += weight * keep * g[d];
    }
    for (int d = 0; second && d < value_width; d++) second[d] *= keep_scale;
}

// instances: attention_backward<float, 32, false>, attention_backward<float, 64, false>, attention_backward<float, 128, false>
// instances: attention_backward<float, 32, true>, attention_backward<float, 64, true>, attention_backward<float, 128, true>
// instances: attention_backward<double, 32, false>, attention_backward<double, 32, true>
template <typename T, int WIDTH, bool KEYS>
__global__ void __launch_bounds__(128)
attention_backward(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value, const T* __restrict__ dy,
                   const T* __restrict__ bias, const bool* __restrict__ allowed, const T* __restrict__ keeping, const bool* __restrict__ kept,
                   const T* __restrict__ top, const T* __restrict__ rescale, const T* __restrict__ delta, T* __restrict__ first_gradient,
                   T* __restrict__ second_gradient, int q_b, int q_h, int q_n, int k_b, int k_h, int k_m, int v_b, int v_h, int v_m, int dy_b, int dy_h,
                   int dy_n, int s_b, int s_h, int s_n, int s_m, int heads, int queries, int keys, int width, int value_width, T scale, T keep_scale,
                   bool packs, int abreast, int count)
{
    extern __shared__ __align__(32) unsigned char shared[];
    const int each = KEYS ? keys : queries, others = KEYS ? queries : keys;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = blockDim.x / 32 * OWN, blocks = (each + rows - 1) / rows;
    T* const own_first = reinterpret_cast<T*>(shared);                // rows of query (key), and beside them rows of dY (value)
    T* const own_second = own_first + rows * (WIDTH + 4);
    T* const other_first = own_second + rows * (WIDTH + 4);           // a tile of key (query), and of value (dY)
    T* const other_second = other_first + TILE * (WIDTH + 4);
    T* const p = other_second + TILE * (WIDTH + 4) + warp * OWN * TILE_APART;

    const int pair = blockIdx.x / blocks, start = blockIdx.x % blocks * rows, own = start + warp * OWN, b = pair / heads, h = pair % heads;
    const Masks<T> masks(bias, allowed, keeping, kept, (long long)b * s_b + (long long)h * s_h, (long long)pair * queries * keys, s_n, s_m, keys, scale);
    query += (long long)b * q_b + (long long)h * q_h;
    key += (long long)b * k_b + (long long)h * k_h;
    value += (long long)b * v_b + (long long)h * v_h;
    dy += (long long)b * dy_b + (long long)h * dy_h;
    top += (long long)pair * queries;
    rescale += (long long)pair * queries;
    delta += (long long)pair * queries;
    const T *const mine = KEYS ? key : query, *const mine_too = KEYS ? value : dy, *const theirs = KEYS ? query : key;
    const T* const theirs_too = KEYS ? dy : value;
    const int mine_apart = KEYS ? k_m : q_n, mine_too_apart = KEYS ? v_m : dy_n, theirs_apart = KEYS ? q_n : k_m, theirs_too_apart = KEYS ? dy_n : v_m;

    T first_sum[4][WIDTH / 8] = {}, second_sum[4][WIDTH / 8] = {};    // the second only with KEYS: otherwise the compiler drops it
    load<T, WIDTH>(own_first, mine + (long long)start * mine_apart, mine_apart, rows, each - start, width, packs);
    load<T, WIDTH>(own_second, mine_too + (long long)start * mine_too_apart, mine_too_apart, rows, each - start, value_width, packs,
                   KEYS ? keep_scale : T(1));
    for (int from = 0; from < others; from += TILE) {
        const int tile = others - from;
        __syncthreads();                                              // nobody reads the last tile any more
        load<T, WIDTH>(other_first, theirs + (long long)from * theirs_apart, theirs_apart, TILE, tile, width, packs);
        load<T, WIDTH>(other_second, theirs_too + (long long)from * theirs_too_apart, theirs_too_apart, TILE, tile, value_width, packs,
                       KEYS ? T(1) : keep_scale);
        __syncthreads();
        if (own >= each) continue;                                    // a warp without rows only helps to load

        T weight[4][4], ds[4][4];
        products<T, WIDTH>(own_first + warp * OWN * (WIDTH + 4), other_first, tile, weight);
        products<T, WIDTH>(own_second + warp * OWN * (WIDTH + 4), other_second, tile, ds);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = lane / 8 * 4 + i, column = 8 * j + lane % 8;
                const int n = KEYS ? from + column : own + row, m = KEYS ? own + row : from + column;
                const bool inside = n < queries && m < keys;
                const T keep = inside ? masks.keep(n, m) : T(0);
                const T w = inside ? exp(masks.score(weight[i][j], n, m) - top[n]) * rescale[n] : T(0);
                ds[i][j] = inside ? w * (ds[i][j] * keep - delta[n]) * masks.scale : T(0);
                weight[i][j] = w * keep;
                p[row * TILE_APART + column] = ds[i][j];
            }
        __syncwarp();
        if (first_gradient) accumulate<T, WIDTH>(p, other_first, tile, first_sum);
        if (KEYS && second_gradient) {
            __syncwarp();                                             // dS has been read
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) p[(lane / 8 * 4 + i) * TILE_APART + 8 * j + lane % 8] = weight[i][j];
            __syncwarp();
            accumulate<T, WIDTH>(p, other_second, tile, second_sum);
        }
    }
    if (own >= each) return;
    const long long token = ((long long)b * each + own) * abreast * heads + h;
    if (first_gradient) store<T, WIDTH>(first_gradient + token * width, first_sum, abreast * heads * width, each - own, width, packs);
    if constexpr (KEYS) {
        if (!second_gradient) return;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int c = 0; c < WIDTH / 8; c++) second_sum[i][c] *= keep_scale;
        store<T, WIDTH>(second_gradient + token * value_width, second_sum, abreast * heads * value_width, each - own, value_width, packs);
    }
}
