// GELU: y = x Phi(x), with Phi(x) = erfc(-x / sqrt(2)) / 2 the normal distribution function; and dx = dy (Phi(x) + x phi(x)).
//
//   gelu_forward_naive   a thread per element      grid ceil(n / 256)       block 256
//   gelu_forward         a thread per pack         grid ceil(packs / 256)   block 256    used
//   gelu_backward        the same                                                        used
//
// Bytes moved: 8 n forward, 12 n backward (float32), which is what they must be; the arithmetic fits into the time the memory takes. What packs save
// is instructions: one load for four floats. erfc instead of 1 + erf keeps the digits of Phi far left of 0.
// T is the type of a number, V what is read at once: float, float4 or double.
#include "pack.cuh"

template <typename T>
__device__ __forceinline__ T distribution(T x) { return T(0.5) * erfc(x * T(-0.70710678118654752)); }

template <typename T>
__device__ __forceinline__ T density(T x) { return T(0.39894228040143268) * exp(T(-0.5) * x * x); }

// instances: gelu_forward_naive<float>
template <typename T>
__global__ void gelu_forward_naive(const T* __restrict__ x, T* __restrict__ y, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = x[i] * distribution(x[i]);
}

// instances: gelu_forward<float, float>, gelu_forward<float, float4>, gelu_forward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) gelu_forward(const V* __restrict__ x, V* __restrict__ y, long long packs)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= packs) return;
    auto pack = packs_of<T>(x)[i];
    for (T& v : pack.v) v *= distribution(v);
    packs_of<T>(y)[i] = pack;
}

// instances: gelu_backward<float, float>, gelu_backward<float, float4>, gelu_backward<double, double>
template <typename T, typename V>
__global__ void __launch_bounds__(256) gelu_backward(const V* __restrict__ dy, const V* __restrict__ x, V* __restrict__ dx, long long packs)
{
    const long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= packs) return;
    const auto upstream = packs_of<T>(dy)[i];
    auto pack = packs_of<T>(x)[i];
    for (int k = 0; k < sizeof(V) / sizeof(T); k++) pack.v[k] = upstream.v[k] * (distribution(pack.v[k]) + pack.v[k] * density(pack.v[k]));
    packs_of<T>(dx)[i] = pack;
}
