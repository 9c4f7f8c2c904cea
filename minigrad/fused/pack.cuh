// Several numbers that are read and written at once, and sums over a warp: what the kernels of this folder share.
#pragma once

// N numbers side by side. A GPU moves up to 16 bytes with one instruction, so four floats cost as many instructions as one.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

// `array` (of float, float4, double, ...) as an array of Packs of T.
template <typename T, typename V>
__device__ __forceinline__ const Pack<T, sizeof(V) / sizeof(T)>* packs_of(const V* array)
{
    return reinterpret_cast<const Pack<T, sizeof(V) / sizeof(T)>*>(array);
}
template <typename T, typename V>
__device__ __forceinline__ Pack<T, sizeof(V) / sizeof(T)>* packs_of(V* array)
{
    return reinterpret_cast<Pack<T, sizeof(V) / sizeof(T)>*>(array);
}

// The sum over the 32 lanes of a warp, in every lane, always added in the same order. All lanes must call it.
template <typename T>
__device__ __forceinline__ T warp_sum(T x)
{
    for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffff, x, apart);
    return x;
}
