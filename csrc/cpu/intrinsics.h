// What vector extensions do not reach: minimum and maximum in one instruction, the processor's estimate of a reciprocal,
// products of 32 bits by 32, conversions between float and double in one instruction and, in AVX-512, scaling by a power of
// two. Each has a portable form, so no kernel asks for the instruction set.
#pragma once

#include <type_traits>

#include "vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace tbptt {
namespace TBPTT_ISA {

// The masked forms with a full mask are the plain instructions; GCC 12 warns about its own definitions of the plain ones.
#if defined(__AVX512F__)
#define TBPTT_X86(name, suffix, ...) _mm512_maskz_##name##_##suffix(-1, __VA_ARGS__)
#elif defined(__AVX2__)
#define TBPTT_X86(name, suffix, ...) _mm256_##name##_##suffix(__VA_ARGS__)
#else
#define TBPTT_X86(name, suffix, ...) _mm_##name##_##suffix(__VA_ARGS__)
#endif

// The smaller and the larger of a limit and x; x where it is NaN.
#if defined(__SSE2__)
TBPTT_INLINE Vec<float> at_most(float limit, Vec<float> x) {
    return (Vec<float>)TBPTT_X86(min, ps, broadcast(limit), x);
}
TBPTT_INLINE Vec<double> at_most(double limit, Vec<double> x) {
    return (Vec<double>)TBPTT_X86(min, pd, broadcast(limit), x);
}
TBPTT_INLINE Vec<float> at_least(float limit, Vec<float> x) {
    return (Vec<float>)TBPTT_X86(max, ps, broadcast(limit), x);
}
TBPTT_INLINE Vec<double> at_least(double limit, Vec<double> x) {
    return (Vec<double>)TBPTT_X86(max, pd, broadcast(limit), x);
}
#else
template <class T>
TBPTT_INLINE Vec<T> at_most(T limit, Vec<T> x) {
    return broadcast(limit) < x ? broadcast(limit) : x;
}
template <class T>
TBPTT_INLINE Vec<T> at_least(T limit, Vec<T> x) {
    return x < broadcast(limit) ? broadcast(limit) : x;
}
#endif

// An estimate of 1/d for d in [1, 2], and its correct bits.
template <class T>
struct Reciprocal;

template <>
struct Reciprocal<float> {
#if defined(__AVX512F__)
    static constexpr int bits = 14;
    static TBPTT_INLINE Vec<float> estimate(Vec<float> d) { return (Vec<float>)TBPTT_X86(rcp14, ps, d); }
#elif defined(__SSE2__)
    static constexpr int bits = 11;
    static TBPTT_INLINE Vec<float> estimate(Vec<float> d) { return (Vec<float>)TBPTT_X86(rcp, ps, d); }
#else
    static constexpr int bits = 6;  // minimax, error 1/99
    static TBPTT_INLINE Vec<float> estimate(Vec<float> d) { return (d * (32.0f / 99) - 144.0f / 99) * d + 210.0f / 99; }
#endif
};

template <>
struct Reciprocal<double> {
#if defined(__AVX512F__)
    static constexpr int bits = 14;
    static TBPTT_INLINE Vec<double> estimate(Vec<double> d) { return (Vec<double>)TBPTT_X86(rcp14, pd, d); }
#else
    static constexpr int bits = 9;  // minimax, error 1/577
    static TBPTT_INLINE Vec<double> estimate(Vec<double> d) {
        return ((d * (-128.0 / 577) + 768.0 / 577) * d - 1696.0 / 577) * d + 1632.0 / 577;
    }
#endif
};

// a·2^n for integer-valued n of any size, rounded once where the result is subnormal; without `scales_any_power`, n must
// be a normal exponent.
#if defined(__AVX512F__)
constexpr bool scales_any_power = true;
TBPTT_INLINE Vec<float> scale(Vec<float> a, Vec<float> n) { return (Vec<float>)TBPTT_X86(scalef, ps, a, n); }
TBPTT_INLINE Vec<double> scale(Vec<double> a, Vec<double> n) { return (Vec<double>)TBPTT_X86(scalef, pd, a, n); }
#else
constexpr bool scales_any_power = false;
template <class V>
TBPTT_INLINE V scale(V a, V n) {
    using T = std::remove_reference_t<decltype(a[0])>;
    constexpr bool single = sizeof(T) == 4;
    // The rounding magic (1.5·2^mantissa) puts the integer into the low bits, from where it is shifted into the exponent.
    constexpr T magic = single ? T(12582912) : T(6755399441055744), bias = single ? 127 : 1023;
    return a * (V)((VecBits<T>)(n + (magic + bias)) << (single ? 23 : 52));
}
#endif

// Lane i is v[index[i]]; indices lie in 0 … lanes-1.
#if defined(__AVX512F__)
TBPTT_INLINE Vec<float> pick_lanes(Vec<float> v, VecBits<float> index) {
    return (Vec<float>)TBPTT_X86(permutexvar, ps, (__m512i)index, v);
}
TBPTT_INLINE Vec<double> pick_lanes(Vec<double> v, VecBits<double> index) {
    return (Vec<double>)TBPTT_X86(permutexvar, pd, (__m512i)index, v);
}
#elif defined(__AVX2__)
TBPTT_INLINE Vec<float> pick_lanes(Vec<float> v, VecBits<float> index) {
    return (Vec<float>)_mm256_permutevar8x32_ps(v, (__m256i)index);
}
// As pairs of 32 bits.
TBPTT_INLINE Vec<double> pick_lanes(Vec<double> v, VecBits<double> index) {
    const VecBits<double> pairs = (index * 2) | ((index * 2 + 1) << 32);
    return (Vec<double>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)pairs);
}
#else
template <class V>
TBPTT_INLINE V pick_lanes(V v, VecBits<std::remove_reference_t<decltype(V{}[0])>> index) {
    V result = v;
    for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(v[0])); ++i) result[i] = v[index[i]];
    return result;
}
#endif

// The product of the low 32 bits of every lane of 64 and of b.
typedef std::uint64_t LowHalves __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
TBPTT_INLINE LowHalves multiply_low_halves(LowHalves a, std::uint32_t b) {
#if defined(__SSE2__)
    typedef long long Integers __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
    return (LowHalves)TBPTT_X86(mul, epu32, (Integers)a, (Integers)(LowHalves{} + b));
#else
    return (a & 0xffffffff) * b;
#endif
}

// A store to an address aligned to whole vectors that does not fetch the line, and leaves it out of the cache; after such
// stores, `finish_streams` comes before anything that tells another thread of them.
#if defined(__AVX512F__)
TBPTT_INLINE void stream(float* to, Vec<float> value) { _mm512_stream_ps(to, value); }
TBPTT_INLINE void stream(double* to, Vec<double> value) { _mm512_stream_pd(to, value); }
#elif defined(__AVX2__)
TBPTT_INLINE void stream(float* to, Vec<float> value) { _mm256_stream_ps(to, value); }
TBPTT_INLINE void stream(double* to, Vec<double> value) { _mm256_stream_pd(to, value); }
#elif defined(__SSE2__)
TBPTT_INLINE void stream(float* to, Vec<float> value) { _mm_stream_ps(to, value); }
TBPTT_INLINE void stream(double* to, Vec<double> value) { _mm_stream_pd(to, value); }
#else
template <class T>
TBPTT_INLINE void stream(T* to, Vec<T> value) {
    store(to, value);
}
#endif
TBPTT_INLINE void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// As many floats as a vector has doubles. GCC 12 makes three or more instructions of __builtin_convertvector.
typedef float HalfVec __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2)));
TBPTT_INLINE Vec<double> widen(HalfVec x) {
#if defined(__AVX2__)
    return (Vec<double>)TBPTT_X86(cvtps, pd, x);
#else
    return __builtin_convertvector(x, Vec<double>);
#endif
}
// The first `count` floats as doubles, zeros in the other lanes.
TBPTT_INLINE Vec<double> widen_partial(const float* from, int64_t count) {
#if defined(__AVX512F__)
    return widen((HalfVec)_mm256_maskz_loadu_ps(static_cast<__mmask8>(first_lanes<double>(count)), from));
#elif defined(__AVX2__)
    typedef std::int32_t Mask __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2)));
    const Mask mask = Mask{0, 1, 2, 3} < (Mask{} + static_cast<std::int32_t>(smaller<int64_t>(count, 4)));
    return widen((HalfVec)_mm_maskload_ps(from, (__m128i)mask));
#else
    Vec<double> value{};
    for (int64_t i = 0; i < count && i < lanes<double>; ++i) value[i] = static_cast<double>(from[i]);
    return value;
#endif
}
TBPTT_INLINE HalfVec narrow(Vec<double> x) {
#if defined(__AVX2__)
    return (HalfVec)TBPTT_X86(cvtpd, ps, x);
#else
    return __builtin_convertvector(x, HalfVec);
#endif
}

#undef TBPTT_X86

}  // namespace TBPTT_ISA
}  // namespace tbptt
