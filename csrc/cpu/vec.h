// SIMD values for one ISA: GCC/Clang vector extensions, as wide as the flags of the translation unit allow.
//
// Everything lives in the namespace of the ISA: the same function compiled with other flags is another function, and the
// linker must never merge the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define TBPTT_VECTOR_BYTES 64
#define TBPTT_REGISTERS 32
#elif defined(__AVX2__)
#define TBPTT_VECTOR_BYTES 32
#define TBPTT_REGISTERS 16
#elif defined(__aarch64__)
#define TBPTT_VECTOR_BYTES 16
#define TBPTT_REGISTERS 32
#else
#define TBPTT_VECTOR_BYTES 16
#define TBPTT_REGISTERS 16
#endif

#define TBPTT_INLINE inline __attribute__((always_inline))
// What runs rarely, or only leads to the loops that matter: compiled for size.
#define TBPTT_COLD __attribute__((cold, noinline))

namespace tbptt {
namespace TBPTT_ISA {

using std::int64_t;

template <class T>
struct VecTypes;

template <>
struct VecTypes<float> {
    typedef float Value __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
    typedef float Unaligned __attribute__((vector_size(TBPTT_VECTOR_BYTES), aligned(4), may_alias));
    typedef std::int32_t Bits __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
};

template <>
struct VecTypes<double> {
    typedef double Value __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
    typedef double Unaligned __attribute__((vector_size(TBPTT_VECTOR_BYTES), aligned(8), may_alias));
    typedef std::int64_t Bits __attribute__((vector_size(TBPTT_VECTOR_BYTES)));
};

template <class T>
using Vec = typename VecTypes<T>::Value;

template <class T>
using VecBits = typename VecTypes<T>::Bits;

template <class T>
constexpr int lanes = TBPTT_VECTOR_BYTES / sizeof(T);

template <class T>
TBPTT_INLINE Vec<T> load(const T* from) {
    return *reinterpret_cast<const typename VecTypes<T>::Unaligned*>(from);
}

template <class T>
TBPTT_INLINE void store(T* to, Vec<T> value) {
    *reinterpret_cast<typename VecTypes<T>::Unaligned*>(to) = value;
}

// value - 0 keeps the sign of zero, so the compiler turns it into one broadcast; value + 0 would cost an addition.
template <class T>
TBPTT_INLINE Vec<T> broadcast(T value) {
    return value - Vec<T>{};
}

// The lanes begin … end-1 of memory at `from`, zeros in the others, and stores to the first `count` lanes; bounds outside
// of the vector are allowed. What lies beyond is neither read nor written.
#if defined(__AVX512F__)
template <class T>
TBPTT_INLINE unsigned first_lanes(int64_t count) {
    return count <= 0 ? 0u : count >= lanes<T> ? (1u << lanes<T>)-1 : (1u << count) - 1;
}
TBPTT_INLINE Vec<float> load_range(const float* from, int64_t begin, int64_t end) {
    return (Vec<float>)_mm512_maskz_loadu_ps(
        static_cast<__mmask16>(first_lanes<float>(end) & ~first_lanes<float>(begin)), from);
}
TBPTT_INLINE Vec<double> load_range(const double* from, int64_t begin, int64_t end) {
    return (Vec<double>)_mm512_maskz_loadu_pd(
        static_cast<__mmask8>(first_lanes<double>(end) & ~first_lanes<double>(begin)), from);
}
TBPTT_INLINE void store_partial(float* to, Vec<float> value, int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(first_lanes<float>(count)), value);
}
TBPTT_INLINE void store_partial(double* to, Vec<double> value, int64_t count) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes<double>(count)), value);
}
#elif defined(__AVX2__)
template <class T>
TBPTT_INLINE VecBits<T> lanes_from_to(int64_t begin, int64_t end) {
    using Lane = std::remove_reference_t<decltype(VecBits<T>{}[0])>;
    const auto bound = [](int64_t value) {
        return VecBits<T>{} + static_cast<Lane>(value < 0 ? 0 : value > lanes<T> ? lanes<T> : value);
    };
    VecBits<T> index{};
    for (int i = 0; i < lanes<T>; ++i) index[i] = static_cast<Lane>(i);
    return (VecBits<T>)(index >= bound(begin)) & (VecBits<T>)(index < bound(end));
}
TBPTT_INLINE Vec<float> load_range(const float* from, int64_t begin, int64_t end) {
    return (Vec<float>)_mm256_maskload_ps(from, (__m256i)lanes_from_to<float>(begin, end));
}
TBPTT_INLINE Vec<double> load_range(const double* from, int64_t begin, int64_t end) {
    return (Vec<double>)_mm256_maskload_pd(from, (__m256i)lanes_from_to<double>(begin, end));
}
TBPTT_INLINE void store_partial(float* to, Vec<float> value, int64_t count) {
    _mm256_maskstore_ps(to, (__m256i)lanes_from_to<float>(0, count), value);
}
TBPTT_INLINE void store_partial(double* to, Vec<double> value, int64_t count) {
    _mm256_maskstore_pd(to, (__m256i)lanes_from_to<double>(0, count), value);
}
#else
template <class T>
TBPTT_INLINE Vec<T> load_range(const T* from, int64_t begin, int64_t end) {
    Vec<T> value{};
    for (int64_t i = begin < 0 ? 0 : begin; i < end && i < lanes<T>; ++i) value[i] = from[i];
    return value;
}
template <class T>
TBPTT_INLINE void store_partial(T* to, Vec<T> value, int64_t count) {
    if (count >= lanes<T>) return store(to, value);
    for (int64_t i = 0; i < count; ++i) to[i] = value[i];
}
#endif

template <class T>
TBPTT_INLINE Vec<T> load_partial(const T* from, int64_t count) {
    return count >= lanes<T> ? load(from) : load_range(from, 0, count);
}

// The same where the caller knows at compile time that the vector is Full.
template <bool Full, class T>
TBPTT_INLINE Vec<T> load_lanes(const T* from, int64_t count) {
    return Full ? load(from) : load_partial(from, count);
}

template <bool Full, class T>
TBPTT_INLINE void store_lanes(T* to, Vec<T> value, int64_t count) {
    Full ? store(to, value) : store_partial(to, value, count);
}

// Asks for the cache lines in which `Vectors` vectors at `from` begin.
template <int Vectors, class T>
TBPTT_INLINE void prefetch(const T* from) {
#pragma GCC unroll 4
    for (int bytes = 0; bytes < Vectors * TBPTT_VECTOR_BYTES; bytes += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + bytes);
}

// Asks for a cache line in the second-level cache only.
TBPTT_INLINE void prefetch_far(const void* from) { __builtin_prefetch(from, 0, 2); }

// Asks for a cache line that will be written to.
TBPTT_INLINE void prefetch_to_write(const void* to) { __builtin_prefetch(to, 1); }

template <class T>
TBPTT_INLINE int64_t smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
TBPTT_INLINE int64_t larger(T a, T b) {
    return a < b ? b : a;
}

TBPTT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f(Constant<n>) for n in 1 … N
template <int N>
struct Constant {
    static constexpr int value = N;
};
template <int N, class F>
TBPTT_INLINE auto with_constant(int n, F f) {
    if constexpr (N > 1)
        return n >= N ? f(Constant<N>{}) : with_constant<N - 1>(n, f);
    else
        return f(Constant<1>{});
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
