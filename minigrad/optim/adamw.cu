// AdamW for all parameters in one launch; the formulas are in adamw.py.
//
//   adamw_naive   a thread per number, one launch per parameter   grid ceil(n / 256)   block 256
//   adamw         a block per chunk of all parameters             grid chunks          block 256    used
//
// Bytes moved, float32: 28 for every number (p, g, m, v read; p, m, v written), which is what they must be; the arithmetic fits into that time. What one
// launch saves is the time between launches, and that small parameters (biases) leave the GPU idle.
//
// `options` (groups, 5) holds learning rate, beta1, beta2, eps and weight decay of each parameter group, in the GPU's memory: a captured graph follows a
// schedule. `steps` counts for each chunk how often it has been updated: so the block that needs the number is the only one that changes it, and one
// launch is enough. What depends on them alone is computed in double by one thread: 1 - beta2^t in float has lost half its digits at t = 1.
#include "../fused/pack.cuh"
#include "chunks.cuh"

// What a step needs to know, the same for a whole chunk.
template <typename T>
struct AdamwStep {
    T beta1, take1, beta2, take2, eps, keep, size, rescale;

    __device__ __forceinline__ void operator()(T& p, T g, T& m, T& v) const
    {
        m = m * beta1 + g * take1;
        v = v * beta2 + g * take2 * g;                                // g * g may overflow
        p = p * keep - m / (sqrt(v) * rescale + eps) * size;
    }
};

template <typename T>
__device__ __forceinline__ AdamwStep<T> adamw_step(double lr, double beta1, double beta2, double eps, double decay, int t)
{
    return {T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(1 - lr * decay), T(lr / (1 - pow(beta1, double(t)))),
            T(1 / sqrt(1 - pow(beta2, double(t))))};
}

// instances: adamw_naive<float>, adamw_naive<double>
template <typename T>
__global__ void adamw_naive(T* __restrict__ p, const T* __restrict__ g, T* __restrict__ m, T* __restrict__ v, double lr, double beta1, double beta2,
                            double eps, double decay, int t, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) adamw_step<T>(lr, beta1, beta2, eps, decay, t)(p[i], g[i], m[i], v[i]);
}

// instances: adamw<float>, adamw<double>
template <typename T>
__global__ void __launch_bounds__(256) adamw(const unsigned long long* __restrict__ addresses, const long long* __restrict__ chunks,
                                             const double* __restrict__ options, int* __restrict__ steps, int tensors)
{
    const Chunk chunk(chunks);
    const T* g = chunk.of<const T>(addresses, tensors, 1);
    if (!g) return;                                                   // a parameter without a gradient stays as it is
    T* p = chunk.of<T>(addresses, tensors, 0);
    T* m = chunk.of<T>(addresses, tensors, 2);
    T* v = chunk.of<T>(addresses, tensors, 3);

    __shared__ AdamwStep<T> shared;
    if (threadIdx.x == 0) {
        const double* o = options + 5 * chunk.group;
        shared = adamw_step<T>(o[0], o[1], o[2], o[3], o[4], ++steps[blockIdx.x]);
    }
    __syncthreads();
    const AdamwStep<T> step = shared;

    const int packs = whole_packs<T>(chunk.count, p, g, m, v);
    for (int i = threadIdx.x; i < packs; i += 256) {
        auto p4 = reinterpret_cast<Pack<T, 4>*>(p)[i], m4 = reinterpret_cast<Pack<T, 4>*>(m)[i], v4 = reinterpret_cast<Pack<T, 4>*>(v)[i];
        const auto g4 = reinterpret_cast<const Pack<T, 4>*>(g)[i];
        for (int k = 0; k < 4; k++) step(p4.v[k], g4.v[k], m4.v[k], v4.v[k]);
        reinterpret_cast<Pack<T, 4>*>(p)[i] = p4;
        reinterpret_cast<Pack<T, 4>*>(m)[i] = m4;
        reinterpret_cast<Pack<T, 4>*>(v)[i] = v4;
    }
    for (int i = 4 * packs + threadIdx.x; i < chunk.count; i += 256) step(p[i], g[i], m[i], v[i]);
}
