// Rows of K numbers and what is computed along them: what softmax, log_softmax and cross_entropy share.
#pragma once
#include "pack.cuh"

// Below every number: the largest of none. (NVRTC has no INFINITY.)
template <typename T>
__device__ __forceinline__ T lowest() { return -__int_as_float(0x7f800000); }

// The largest over the 32 lanes of a warp, in every lane. A nan is passed over: whoever subtracts the result from it finds it again.
template <typename T>
__device__ __forceinline__ T warp_max(T x)
{
    for (int apart = 16; apart > 0; apart /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, apart));
    return x;
}

// The sum or the largest over the 256 threads of a block, in every thread, always in the same order. All threads must call it.
template <typename T>
__device__ __forceinline__ T block_sum(T x)
{
    __shared__ T of_warps[8];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (int warp = 1; warp < 8; warp++) x += of_warps[warp];
    __syncthreads();                                                  // the next call writes of_warps again
    return x;
}
template <typename T>
__device__ __forceinline__ T block_max(T x)
{
    __shared__ T of_warps[8];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (int warp = 1; warp < 8; warp++) x = max(x, of_warps[warp]);
    __syncthreads();
    return x;
}

// A row that a warp keeps in registers: lane l has packs l, l + 32, ..., ITEMS of them at most. `count` is how many packs the row has.
template <typename T, typename V, int ITEMS>
struct WarpRow {
    static constexpr int N = sizeof(V) / sizeof(T);
    Pack<T, N> packs[ITEMS];
    int lane, count;

    __device__ __forceinline__ WarpRow(const V* __restrict__ array, int row, int count) : lane(threadIdx.x % 32), count(count)
    {
        #pragma unroll
        for (int i = 0; i < ITEMS; i++) {                             // registers have no index: all loops over i are unrolled
            if (lane + 32 * i < count) packs[i] = packs_of<T>(array)[(long long)row * count + lane + 32 * i];
        }
    }
    __device__ __forceinline__ void store(V* __restrict__ array, int row) const
    {
        #pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (lane + 32 * i < count) packs_of<T>(array)[(long long)row * count + lane + 32 * i] = packs[i];
        }
    }

    // Calls f(number) for every number of this lane, or f(number, the one beside it in the other row).
    template <typename F>
    __device__ __forceinline__ void each(F f)
    {
        #pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (lane + 32 * i >= count) continue;
            for (T& v : packs[i].v) f(v);
        }
    }
    template <typename F>
    __device__ __forceinline__ void each(const WarpRow& other, F f)
    {
        #pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (lane + 32 * i >= count) continue;
            for (int k = 0; k < N; k++) f(packs[i].v[k], other.packs[i].v[k]);
        }
    }
};

// Calls f(number) for every number of a row that a block of 256 threads walks along together.
template <typename T, typename V, typename F>
__device__ __forceinline__ void each_of_row(const V* __restrict__ array, int row, int count, F f)
{
    for (int p = threadIdx.x; p < count; p += 256) {
        const auto pack = packs_of<T>(array)[(long long)row * count + p];
        for (T v : pack.v) f(v);
    }
}

// Where the numbers of a column are: the first one, and `inner` numbers from each to the next. An array (outer, K, inner) has outer * inner columns.
__device__ __forceinline__ long long column_start(long long column, int length, int inner)
{
    return column / inner * length * inner + column % inner;
}

// term(0) + ... + term(length - 1) by one thread, in pieces: of one long sum, each addition rounds at the size of all that came before.
template <typename T, typename F>
__device__ __forceinline__ T sum_in_pieces(int length, F term)
{
    constexpr int PIECE = 64;
    T total = 0;
    for (int start = 0; start < length; start += PIECE) {
        const int stop = min(PIECE, length - start);
        T piece = 0;
        for (int k = 0; k < stop; k++) piece += term(start + k);
        total += piece;
    }
    return total;
}
