// What attention.cu and attention_short.cu share: the masks of a head.
#pragma once
#include "pack.cuh"

template <typename T>
__device__ __forceinline__ T infinity() { return __int_as_float(0x7f800000); }

// The masks of one head, and what they make of a score and of a weight.
template <typename T>
struct Masks {
    const T* bias;
    const bool* allowed;
    const T* keeping;
    const bool* kept;
    int s_n, s_m, keys;
    T scale;

    __device__ __forceinline__ Masks(const T* bias, const bool* allowed, const T* keeping, const bool* kept, long long head, long long weights_before,
                                     int s_n, int s_m, int keys, T scale)
        : bias(bias ? bias + head : bias), allowed(allowed ? allowed + head : allowed), keeping(keeping ? keeping + weights_before : keeping),
          kept(kept ? kept + weights_before : kept), s_n(s_n), s_m(s_m), keys(keys), scale(scale)
    {
    }
    __device__ __forceinline__ T score(T product, int n, int m) const
    {
        T s = product * scale;
        const long long at = (long long)n * s_n + (long long)m * s_m;
        if (bias) s += bias[at];
        if (allowed && !allowed[at]) s = -infinity<T>();
        return s;
    }
    __device__ __forceinline__ T keep(int n, int m) const
    {
        const long long at = (long long)n * keys + m;
        if (kept) return kept[at];
        return keeping ? keeping[at] : T(1);
    }
};

template <typename T>
__device__ __forceinline__ Pack<T, 4> pack_at(const T* place) { return *reinterpret_cast<const Pack<T, 4>*>(place); }
