// SGD for all parameters in one launch; the formulas are in sgd.py, the tables in chunks.cuh.
//
//   sgd   a block per chunk of all parameters   grid chunks   block 256
//
// Bytes moved, float32: 12 for every number (p and g read, p written), 20 with momentum. `options` (groups, 5) holds learning rate, momentum, dampening,
// weight decay and whether it is Nesterov's, in the GPU's memory; `steps` counts the updates of each chunk (see adamw.cu).
#include "../fused/pack.cuh"
#include "chunks.cuh"

template <typename T>
struct SgdStep {
    T lr, decay, keep, take, look_ahead;
    bool momentum, nesterov;

    __device__ __forceinline__ T decayed(T p, T g) const { return decay ? p * decay + g : g; }   // 0 times an infinite p would be NaN
    __device__ __forceinline__ void operator()(T& p, T g) const { p -= decayed(p, g) * lr; }
    __device__ __forceinline__ void operator()(T& p, T g, T& b) const
    {
        const T total = decayed(p, g);
        b = b * keep + total * take;
        p = nesterov ? p - total * lr - b * look_ahead : p - b * lr;
    }
};

// instances: sgd<float>, sgd<double>
template <typename T>
__global__ void __launch_bounds__(256) sgd(const unsigned long long* __restrict__ addresses, const long long* __restrict__ chunks,
                                           const double* __restrict__ options, int* __restrict__ steps, int tensors)
{
    const Chunk chunk(chunks);
    const T* g = chunk.of<const T>(addresses, tensors, 1);
    if (!g) return;                                                   // a parameter without a gradient stays as it is
    T* p = chunk.of<T>(addresses, tensors, 0);
    T* b = chunk.of<T>(addresses, tensors, 2);

    __shared__ SgdStep<T> shared;
    if (threadIdx.x == 0) {
        const double* o = options + 5 * chunk.group;
        const double lr = o[0], momentum = o[1], dampening = o[2], decay = o[3];
        const bool first = steps[blockIdx.x] == 0;                    // b = g then
        if (!(first && b && momentum == 0)) ++steps[blockIdx.x];      // a buffer that has had no step with momentum waits for its first: see sgd.py
        shared = {T(lr), T(decay), T(first ? 0 : momentum), T(first ? 1 : 1 - dampening), T(lr * momentum), momentum != 0, o[4] != 0};
    }
    __syncthreads();
    const SgdStep<T> step = shared;

    if (!step.momentum || !b) {                                       // without a buffer it is a step without momentum: see Optimizer.upload
        const int packs = whole_packs<T>(chunk.count, p, g);
        for (int i = threadIdx.x; i < packs; i += 256) {
            auto p4 = reinterpret_cast<Pack<T, 4>*>(p)[i];
            const auto g4 = reinterpret_cast<const Pack<T, 4>*>(g)[i];
            for (int k = 0; k < 4; k++) step(p4.v[k], g4.v[k]);
            reinterpret_cast<Pack<T, 4>*>(p)[i] = p4;
        }
        for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += 256) step(p[i], g[i]);
        return;
    }
    const int packs = whole_packs<T>(chunk.count, p, g, b);
    for (int i = threadIdx.x; i < packs; i += 256) {
        auto p4 = reinterpret_cast<Pack<T, 4>*>(p)[i], b4 = reinterpret_cast<Pack<T, 4>*>(b)[i];
        const auto g4 = reinterpret_cast<const Pack<T, 4>*>(g)[i];
        for (int k = 0; k < 4; k++) step(p4.v[k], g4.v[k], b4.v[k]);
        reinterpret_cast<Pack<T, 4>*>(p)[i] = p4;
        reinterpret_cast<Pack<T, 4>*>(b)[i] = b4;
    }
    for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += 256) step(p[i], g[i], b[i]);
}
