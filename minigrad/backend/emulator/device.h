// What a .cu file finds when it is compiled for the emulator: CUDA's vocabulary in plain C++.
//
// The kernel's text is compiled as it is but for `__shared__`, inside an unnamed namespace after this header; see compiler.py. Barriers, shuffles and
// votes wait in schedule.cpp; everything else is here. Fast intrinsics (__expf, rsqrtf) are exact here, so their error on a GPU is larger. What is missing is
// missing on purpose: __activemask (what it returns is not defined), grid-wide barriers, tensor cores. Read next: schedule.cpp.
#pragma once
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core.h"

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
#define __restrict__ __restrict

// For the compiler these never change: they do not while one thread runs, and a thread that waited finds its own again.
extern "C" const Place emulator_place;
extern "C" char* const emulator_dynamic_shared;
#define threadIdx (emulator_place.thread)
#define blockIdx (emulator_place.block)
#define blockDim (emulator_place.block_size)
#define gridDim (emulator_place.grid_size)
constexpr int warpSize = 32;

// Shared memory is not declared but asked for, the only change to a kernel's text (compiler.py): `extern __shared__ T s[];` becomes
// `T* s = dynamic_shared<T>();`, and `__shared__ T s[32];` becomes `static char s_declared; auto& s = static_shared<T[32]>(&s_declared, "s");`.
template <class T>
inline T* dynamic_shared() { return reinterpret_cast<T*>(emulator_dynamic_shared); }
template <class T>
inline __attribute__((always_inline)) T& static_shared(const char* declaration, const char* name, size_t alignment = 16)
{
    return reinterpret_cast<T&>(*emulator_shared_array(declaration, name, sizeof(T), alignof(T) > alignment ? alignof(T) : alignment));
}

// --- vectors

#define VECTOR(T, name, bytes)                                                                            \
    struct alignas(2 * bytes) name##2 { T x, y; };                                                        \
    struct name##3 { T x, y, z; };                                                                        \
    struct alignas(4 * bytes > 16 ? 16 : 4 * bytes) name##4 { T x, y, z, w; };                            \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                            \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                    \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(float, float, 4)
VECTOR(double, double, 8)
VECTOR(int, int, 4)
VECTOR(unsigned char, uchar, 1)
VECTOR(unsigned short, ushort, 2)
#undef VECTOR
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- barriers, shuffles, votes: the place of the call comes along by itself

#define __syncthreads() emulator_syncthreads({__FILE__, __LINE__})
#define SITE const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define INLINE inline __attribute__((always_inline))   // so that a report leads to the caller

INLINE void __syncwarp(unsigned mask = ~0u, SITE) { emulator_warp(kSync, {file, line}, mask, 0, 0); }

template <class T>
INLINE T emulator_shuffle(unsigned mask, T value, int source, Site site)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator_warp(kShuffle, site, mask, source, bits);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A warp is cut into groups of `width` lanes; a lane whose source lies outside its group keeps its own value.
INLINE int emulator_lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
INLINE int emulator_source(int source, bool inside) { return inside ? source : emulator_lane(); }

template <class T>
INLINE T __shfl_sync(unsigned mask, T value, int from, int width = 32, SITE)
{
    return emulator_shuffle(mask, value, (emulator_lane() & -width) + (from & (width - 1)), {file, line});
}
template <class T>
INLINE T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SITE)
{
    const int lane = emulator_lane();
    return emulator_shuffle(mask, value, emulator_source(lane - int(by), (lane & (width - 1)) >= int(by)), {file, line});
}
template <class T>
INLINE T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SITE)
{
    const int lane = emulator_lane();
    return emulator_shuffle(mask, value, emulator_source(lane + int(by), (lane & (width - 1)) + int(by) < width), {file, line});
}
template <class T>
INLINE T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SITE)
{
    const int lane = emulator_lane();
    return emulator_shuffle(mask, value, emulator_source(lane ^ bits, (lane ^ bits) < (lane & -width) + width), {file, line});
}
INLINE unsigned __ballot_sync(unsigned mask, int predicate, SITE) { return emulator_warp(kVote, {file, line}, mask, 0, predicate != 0); }
INLINE int __any_sync(unsigned mask, int predicate, SITE) { return emulator_warp(kVote, {file, line}, mask, 0, predicate != 0) != 0; }
INLINE int __all_sync(unsigned mask, int predicate, SITE) { return emulator_warp(kVote, {file, line}, mask, 0, predicate == 0) == 0; }
#undef SITE
#undef INLINE

inline void __threadfence() {}
inline void __threadfence_block() {}

#undef assert
#define assert(condition) ((condition) ? void() : emulator_assertion(#condition, {__FILE__, __LINE__}))

// --- atomics: threads take turns on one processor, so a plain update is one. The checker is told, instead of seeing a read and a write.

#define ATOMIC(name, new_value)                                                                                                       \
    template <class T>                                                                                                                \
    __attribute__((noinline, no_sanitize("thread"), no_sanitize("undefined"))) T name(T* address, std::common_type_t<T> value)        \
    {                                                                                                                                 \
        emulator_atomic(address, sizeof(T), __builtin_return_address(0));                                                             \
        const T old = *address;                                                                                                       \
        *address = new_value;                                                                                                         \
        return old;                                                                                                                   \
    }
namespace {
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicSub, old - value)
ATOMIC(atomicMin, value < old ? value : old)
ATOMIC(atomicMax, value > old ? value : old)
ATOMIC(atomicAnd, old & value)
ATOMIC(atomicOr, old | value)
ATOMIC(atomicXor, old ^ value)
ATOMIC(atomicExch, value)
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value)
{
    emulator_atomic(address, sizeof(T), __builtin_return_address(0));
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}
}  // namespace
#undef ATOMIC

// --- arithmetic

template <class T>
inline T __ldg(const T* address) { return *address; }

#define BOTH(T)                                                     \
    inline T min(T x, T y) { return y < x ? y : x; }                \
    inline T max(T x, T y) { return x < y ? y : x; }
BOTH(int)
BOTH(unsigned)
BOTH(long long)
BOTH(unsigned long long)
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
#undef BOTH

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return uint64_t(x) * y >> 32; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) { return (unsigned __int128)x * y >> 64; }

template <class To, class From>
inline To emulator_bits(From x)
{
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }

// --- what compiler.py puts after a kernel file: EMULATOR_LIBRARY({EMULATOR_KERNEL(layer_norm<4>), ...}), through which Python finds everything

namespace emulator {

// 'p' a pointer to what the kernel writes, 'c' one to what it only reads, 'f' a floating-point number, 'i' 'u' 'b' integers and bool
template <class T>
struct Kind { static constexpr char letter = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b' : std::is_signed_v<T> ? 'i' : 'u'; };
template <class T>
struct Kind<T*> { static constexpr char letter = 'p'; };
template <class T>
struct Kind<const T*> { static constexpr char letter = 'c'; };

template <auto kernel>
struct Of;
template <class... P, void (*kernel)(P...)>
struct Of<kernel> {
    template <size_t... I>
    __attribute__((no_sanitize("thread"), no_sanitize("address"))) static void unpack(void** arguments, std::index_sequence<I...>)
    {
        kernel(*static_cast<P*>(arguments[I])...);
    }
    static void call(void** arguments) { unpack(arguments, std::index_sequence_for<P...>{}); }
    static constexpr char kinds[] = {Kind<P>::letter..., 0};
    static constexpr int sizes[] = {int(sizeof(P))..., 0};
};

}  // namespace emulator

#define EMULATOR_KERNEL(...) {#__VA_ARGS__, emulator::Of<__VA_ARGS__>::call, emulator::Of<__VA_ARGS__>::kinds, emulator::Of<__VA_ARGS__>::sizes}
#define EMULATOR_LIBRARY(...)                                                                                             \
    extern "C" {                                                                                                          \
    __attribute__((visibility("hidden"))) extern char __ehdr_start[], _end[];                                             \
    __attribute__((visibility("default"))) extern const Kernel emulator_kernels[] = {__VA_ARGS__, {}};                    \
    __attribute__((visibility("default"))) extern const Library emulator_library{emulator_kernels, __ehdr_start, _end};   \
    }
