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

// A sum of any number of packs, in their order. One running sum of thousands would lose digits, so it ends at the first call of `added` after 128
// additions, and another begins: `count` packs, at most 128, have been added since the last call.
template <typename T, int N>
struct Sum {
    Pack<T, N> part = {}, parts = {};
    int in_part = 0;

    __device__ __forceinline__ void add(const Pack<T, N> pack)        // a copy: read with one load, where from a reference it would be N
    {
        for (int k = 0; k < N; k++) part.v[k] += pack.v[k];
    }
    __device__ __forceinline__ void added(int count)
    {
        in_part += count;
        if (in_part < 128) return;
        for (int k = 0; k < N; k++) parts.v[k] += part.v[k];
        part = {};
        in_part = 0;
    }
    // A row of `count` packs that are `apart` from each other, however long.
    __device__ __forceinline__ void add_row(const Pack<T, N>* pack, int count, int apart)
    {
        for (; count > 0; count -= 128) {
            const int some = min(count, 128);
            for (int k = 0; k < some; k++, pack += apart) add(*pack);
            added(some);
        }
    }
    __device__ __forceinline__ Pack<T, N> total() const
    {
        Pack<T, N> sum = parts;
        for (int k = 0; k < N; k++) sum.v[k] += part.v[k];
        return sum;
    }
};
