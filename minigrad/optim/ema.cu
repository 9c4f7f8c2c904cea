// The moving average of all tensors of a model in one launch: shadow = keep shadow + take value, written such that weights that rest stay as they
// are, as keep + take is not 1 in float. The tables are in chunks.cuh.
//
//   ema   a block per chunk of all tensors   grid chunks   block 256
//
// There is one rung only: the step from a launch per tensor to one launch is that of adamw.cu, where both are.
//
// Bytes moved, float32: 12 for every number. `factors` holds keep and take, in the GPU's memory: a captured graph's decay may change. Integers (long
// long) are copied: keep is 0 then, take 1.
#include "../fused/pack.cuh"
#include "chunks.cuh"

template <typename T>
__device__ __forceinline__ T averaged(T shadow, T value, T keep, T take)
{
    if (value == shadow || take == 0) return shadow;                  // infinite ones too, such as a mask's
    if (keep == 0) return value;
    const T apart = value - shadow;
    if (!(apart - apart == 0)) return keep * shadow + take * value;   // one is infinite, or they are too far apart for a difference
    return keep < take ? value - keep * apart : shadow + take * apart;
}

// instances: ema<float>, ema<double>, ema<long long>
template <typename T>
__global__ void __launch_bounds__(256) ema(const unsigned long long* __restrict__ addresses, const long long* __restrict__ chunks,
                                           const double* __restrict__ factors, int tensors)
{
    const Chunk chunk(chunks);
    const T keep = T(factors[0]), take = T(factors[1]);
    T* shadow = chunk.of<T>(addresses, tensors, 0);
    const T* value = chunk.of<const T>(addresses, tensors, 1);
    const int packs = whole_packs<T>(chunk.count, shadow, value);
    for (int i = threadIdx.x; i < packs; i += 256) {
        auto s4 = reinterpret_cast<Pack<T, 4>*>(shadow)[i];
        const auto v4 = reinterpret_cast<const Pack<T, 4>*>(value)[i];
        for (int k = 0; k < 4; k++) s4.v[k] = averaged(s4.v[k], v4.v[k], keep, take);
        reinterpret_cast<Pack<T, 4>*>(shadow)[i] = s4;
    }
    for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += 256) shadow[i] = averaged(shadow[i], value[i], keep, take);
}
