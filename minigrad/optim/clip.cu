// Clipping gradients by their common norm, without asking the host in between. The tables are in chunks.cuh.
//
//   clip_squares   sum of squares of each chunk                a block per chunk   grid chunks   block 256
//   clip_factor    adds the chunks: the norm and the factor    one block           grid 1        block 256
//   clip_scale     gradients times the factor                  a block per chunk   grid chunks   block 256
//
// There is one rung only: the naive way, a sum per tensor that the host adds up, makes the host wait for every tensor.
//
// Bytes moved, float32: 4 for every number, and 8 more where the factor is not 1. Sums are made in double and in one order, by a tree in each block
// and then over the chunks in turn: the norm is the same at every run. Squares of floats fit into a double. So that those of doubles do, large and
// small numbers are added up in sums of their own, multiplied by 2^-600 and 2^600 (Blue 1978): `partial` is (chunks, 3), in the order middle, large,
// small. `result`: the norm, and the factor min(1, max_norm / (norm + 1e-6)), or nan.
#include "../fused/pack.cuh"
#include "chunks.cuh"

constexpr int THREADS = 256;

struct Squares {
    double middle, large, small;
};

// The sums over all threads of a block, in thread 0.
__device__ __forceinline__ Squares block_sum(Squares mine)
{
    __shared__ Squares all[THREADS];
    all[threadIdx.x] = mine;
    for (int apart = THREADS / 2; apart > 0; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) {
            all[threadIdx.x].middle += all[threadIdx.x + apart].middle;
            all[threadIdx.x].large += all[threadIdx.x + apart].large;
            all[threadIdx.x].small += all[threadIdx.x + apart].small;
        }
    }
    return all[threadIdx.x];
}

constexpr double UP = 4.149515568880993e180, DOWN = 2.409919865102884e-181;  // 2^600, 2^-600
// Squares of numbers between these, 2^-511 and 2^486, have all their digits, and fewer than 2^52 of them do not add up to 2^1024.
constexpr double SMALL = 1.4916681462400413e-154, LARGE = 1.997919072202235e146;

template <typename T>
__device__ __forceinline__ void add_square(Squares& sums, T number)
{
    const double x = number;
    if (sizeof(T) == 8 && fabs(x) > LARGE)
        sums.large += (x * DOWN) * (x * DOWN);
    else if (sizeof(T) == 8 && fabs(x) < SMALL)
        sums.small += (x * UP) * (x * UP);
    else
        sums.middle += x * x;                                         // nan, too
}

// instances: clip_squares<float>, clip_squares<double>
template <typename T>
__global__ void __launch_bounds__(THREADS) clip_squares(const unsigned long long* __restrict__ addresses, const long long* __restrict__ chunks,
                                                        double* __restrict__ partial, int tensors)
{
    const Chunk chunk(chunks);
    const T* g = chunk.of<const T>(addresses, tensors, 0);
    Squares sums = {};
    const int packs = whole_packs<T>(chunk.count, g);
    for (int i = threadIdx.x; i < packs; i += THREADS) {
        const auto g4 = reinterpret_cast<const Pack<T, 4>*>(g)[i];
        for (T x : g4.v) add_square(sums, x);
    }
    for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += THREADS) add_square(sums, g[i]);
    sums = block_sum(sums);
    if (threadIdx.x != 0) return;
    partial[3LL * blockIdx.x] = sums.middle;
    partial[3LL * blockIdx.x + 1] = sums.large;
    partial[3LL * blockIdx.x + 2] = sums.small;
}

__global__ void __launch_bounds__(THREADS) clip_factor(const double* __restrict__ partial, double* __restrict__ result, int chunks, double max_norm)
{
    Squares sums = {};
    for (int i = threadIdx.x; i < chunks; i += THREADS) {
        sums.middle += partial[3LL * i];
        sums.large += partial[3LL * i + 1];
        sums.small += partial[3LL * i + 2];
    }
    sums = block_sum(sums);
    if (threadIdx.x != 0) return;
    // Small squares, each below 2^-1022, come to less than 2^-970: nothing beside a middle sum of 2^-600 or more, which has digits to 2^-653 (nor
    // beside a large one). They count where the middle sum is less than 2^-600, which times 2^1200 is far from overflow.
    double norm = sqrt(sums.middle);                                  // nan, too
    if (sums.large != 0)
        norm = sqrt(sums.large + sums.middle * DOWN * DOWN) * UP;
    else if (sums.middle < DOWN)
        norm = sqrt(sums.small + sums.middle * UP * UP) * DOWN;
    const double factor = max_norm / (norm + 1e-6);
    result[0] = norm;
    result[1] = factor >= 1 ? 1 : factor;
}

// instances: clip_scale<float>, clip_scale<double>
template <typename T>
__global__ void __launch_bounds__(THREADS) clip_scale(const unsigned long long* __restrict__ addresses, const long long* __restrict__ chunks,
                                                      const double* __restrict__ result, int tensors)
{
    const T factor = T(result[1]);
    if (factor == 1) return;
    const Chunk chunk(chunks);
    T* g = chunk.of<T>(addresses, tensors, 0);
    const int packs = whole_packs<T>(chunk.count, g);
    for (int i = threadIdx.x; i < packs; i += THREADS) {
        auto g4 = reinterpret_cast<Pack<T, 4>*>(g)[i];
        for (T& x : g4.v) x *= factor;
        reinterpret_cast<Pack<T, 4>*>(g)[i] = g4;
    }
    for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += THREADS) g[i] *= factor;
}
