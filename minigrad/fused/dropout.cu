// Dropout and drop path: x times a mask that is given; and a kernel that draws such a mask.
//
//   dropout_forward_naive   a thread per element                       grid ceil(n / 256)          block 256
//   dropout_forward         a thread per pack                          grid ceil(packs / 256)      block 256   used
//   drop_path_forward       a thread per pack, a row of blocks per     grid (B, ceil(packs/256))   block 256   used
//                           sample, which all read one mask value
//   keep_mask               a thread per 8 elements                    grid ceil(n / 2048)         block 256   used
//
// Bytes moved (float32): dropout 9 n with a mask of bools, 12 n with one of floats; drop path 8 n; keep_mask n, where a mask drawn by the CPU has to
// come over the bus. Both operations are their own derivatives: there is no backward kernel.
// T is the type of a number, V what is read at once: float, float4 or double; M the type of the mask: bool or T.
#include "pack.cuh"

// instances: dropout_forward_naive<float, bool>, dropout_forward_naive<float, float>
template <typename T, typename M>
__global__ void dropout_forward_naive(const T* __restrict__ x, const M* __restrict__ mask, T* __restrict__ y, long long count, T scale)
{
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] * (T(mask[i]) * scale);
}

// instances: dropout_forward<float, float, bool>, dropout_forward<float, float4, bool>, dropout_forward<double, double, bool>
// instances: dropout_forward<float, float, float>, dropout_forward<float, float4, float>, dropout_forward<double, double, double>
template <typename T, typename V, typename M>
__global__ void __launch_bounds__(256) dropout_forward(const V* __restrict__ x, const M* __restrict__ mask, V* __restrict__ y, long long packs,
                                                       T scale)
{
    constexpr int N = sizeof(V) / sizeof(T);
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= packs) return;
    auto pack = packs_of<T>(x)[i];
    const auto keep = reinterpret_cast<const Pack<M, N>*>(mask)[i];  // four bools are read at once too
    for (int k = 0; k < N; k++) pack.v[k] *= T(keep.v[k]) * scale;   // a product and no choice: nan stays nan
    packs_of<T>(y)[i] = pack;
}

// instances: drop_path_forward<float, float, bool>, drop_path_forward<float, float4, bool>, drop_path_forward<double, double, bool>
// instances: drop_path_forward<float, float, float>, drop_path_forward<float, float4, float>, drop_path_forward<double, double, double>
template <typename T, typename V, typename M>
__global__ void __launch_bounds__(256) drop_path_forward(const V* __restrict__ x, const M* __restrict__ mask, V* __restrict__ y, long long packs,
                                                         T scale)
{
    const T factor = T(mask[blockIdx.x]) * scale;
    x += blockIdx.x * packs;                                          // `packs` is how many a sample has
    y += blockIdx.x * packs;
    for (long long i = blockIdx.y * 256LL + threadIdx.x; i < packs; i += gridDim.y * 256LL) {
        auto pack = packs_of<T>(x)[i];
        for (T& v : pack.v) v *= factor;
        packs_of<T>(y)[i] = pack;
    }
}

// --- drawing a mask

// Philox 4x64 with 10 rounds: four random words that depend on the key and the counter alone. Source: Salmon et al. 2011, Random123.
struct Philox {
    unsigned long long word[4];

    __device__ __forceinline__ Philox(unsigned long long a, unsigned long long b, unsigned long long c, unsigned long long d,
                                      unsigned long long key_0, unsigned long long key_1)
        : word{a, b, c, d}
    {
        constexpr unsigned long long M_0 = 0xD2E7470EE14C6C93, M_1 = 0xCA5A826395121157, W_0 = 0x9E3779B97F4A7C15, W_1 = 0xBB67AE8584CAA73B;
        #pragma unroll
        for (int round = 0; round < 10; round++) {
            const unsigned long long high_0 = __umul64hi(M_0, word[0]), low_0 = M_0 * word[0];
            const unsigned long long high_1 = __umul64hi(M_1, word[2]), low_1 = M_1 * word[2];
            word[0] = high_1 ^ word[1] ^ key_0;
            word[1] = low_1;
            word[2] = high_0 ^ word[3] ^ key_1;
            word[3] = low_0;
            key_0 += W_0;
            key_1 += W_1;
        }
    }
};

// mask[i] = number i of a NumPy generator >= p, for float32 numbers from 0 to 1, bit for bit. NumPy counts in the first word of the counter, up by
// one before each four words; a word gives two numbers, the lower half first, of whose 32 bits the upper 24 are used. Where `step` is not null, it
// points at what counter_1 is to be: the launches of a captured graph differ in nothing but what is in memory.
__global__ void __launch_bounds__(256) keep_mask(bool* __restrict__ mask, const unsigned long long* __restrict__ step, long long count, float p,
                                                 unsigned long long key_0, unsigned long long key_1, unsigned long long counter_0,
                                                 unsigned long long counter_1, unsigned long long counter_2, unsigned long long counter_3)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (8 * i >= count) return;
    const Philox random(counter_0 + 1 + i, step ? *step : counter_1, counter_2, counter_3, key_0, key_1);
    Pack<bool, 8> keep;
    #pragma unroll
    for (int k = 0; k < 8; k++) {
        const unsigned bits = random.word[k / 2] >> (k % 2 * 32);
        keep.v[k] = (bits >> 8) * (1.0f / 16777216.0f) >= p;
    }
    if (8 * i + 8 <= count) {
        reinterpret_cast<Pack<bool, 8>*>(mask)[i] = keep;             // a new array starts at a multiple of 8 bytes
    } else {
        for (int k = 0; 8 * i + k < count; k++) mask[8 * i + k] = keep.v[k];
    }
}
