// Products of small matrices on tensor cores, for kernels of float32 numbers.
//
// A tensor core multiplies numbers of 11 significant bits (tf32: float32 whose last 13 bits are not looked at) exactly and adds to float32, but cuts
// the sums off where other additions round. Short chains of sums, added up outside, keep that from mattering.
#pragma once

// x rounded to the nearest number of 11 significant bits: 8193 x - 8192 x, where a number 8193 times as large has no room for x's last 13 bits
// (Veltkamp's way; as sums and differences the compiler would fuse them with the product, which is then not rounded). nan stays nan; infinities
// become nan, and so may what is beyond 4e34. cvt.rna.tf32 is no instruction of its own: sm_90 takes four for it.
__device__ __forceinline__ float to_tf32(float x)
{
    const float far = 8193.0f * x, back = __fmaf_rn(-1.0f, far, x);
    return __fmaf_rn(1.0f, back, far);
}

// d += a b, of tf32 numbers, by a whole warp: a is 16 x 8, b 8 x 8, d 16 x 8. With g = lane / 4 and t = lane % 4 a lane holds
//     a  (row, column) = (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//     b  (t, g), (t + 4, g)
//     d  (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
// Source: https://docs.nvidia.com/cuda/parallel-thread-execution/, matrix fragments for mma.m16n8k8
#ifdef __CUDA_ARCH__
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
// The emulator: lanes hand each other what they hold, two numbers at a time. All terms of a sum are cut off at the last bit of the largest, which is
// no better than tensor cores are known to do (Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021).
__device__ __noinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    typedef unsigned long long Two;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Two held[3] = {(Two)a[1] << 32 | a[0], (Two)a[3] << 32 | a[2], (Two)b[1] << 32 | b[0]};
    double left[2][8], right[8][2];
    for (int k = 0; k < 4; k++) {
        for (int half = 0; half < 2; half++) {
            const Two rows = __shfl_sync(0xffffffff, held[half], g * 4 + k), column = __shfl_sync(0xffffffff, held[2], (2 * t + half) * 4 + k);
            left[0][k + 4 * half] = __uint_as_float((unsigned)rows & 0xffffe000), left[1][k + 4 * half] = __uint_as_float(rows >> 32 & 0xffffe000);
            right[k][half] = __uint_as_float((unsigned)column & 0xffffe000), right[k + 4][half] = __uint_as_float(column >> 32 & 0xffffe000);
        }
    }
    for (int i = 0; i < 4; i++) {
        double terms[9], largest = fabs(d[i]), sum = 0;
        terms[8] = d[i];
        for (int k = 0; k < 8; k++) terms[k] = left[i / 2][k] * right[k][i % 2], largest = fmax(largest, fabs(terms[k]));
        int exponent;
        frexp(largest, &exponent);
        for (double term : terms) sum += largest > 0 && largest < INFINITY ? ldexp(trunc(ldexp(term, 24 - exponent)), exponent - 24) : term;
        const float rounded = sum;
        d[i] = fabs(rounded) > fabs(sum) ? nextafterf(rounded, 0) : rounded;
    }
}
#endif
