// SIMD values for one ISA: GCC/Clang vector extensions, as wide as the flags of the translation unit allow.
//
// Everything lives in the namespace of the ISA: the same function compiled with other flags is another function, and the
// linker must never merge the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

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

// The first `count` lanes (all of them if it is larger, none if negative); the others are zero (load) or untouched (store).
template <class T>
TBPTT_INLINE Vec<T> load_partial(const T* from, int64_t count) {
    if (count >= lanes<T>) return load(from);
    Vec<T> value{};
    for (int64_t i = 0; i < count; ++i) value[i] = from[i];
    return value;
}

template <class T>
TBPTT_INLINE void store_partial(T* to, Vec<T> value, int64_t count) {
    if (count >= lanes<T>) return store(to, value);
    for (int64_t i = 0; i < count; ++i) to[i] = value[i];
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
TBPTT_INLINE void prefetch_far(const char* from) { __builtin_prefetch(from, 0, 2); }

template <class T>
TBPTT_INLINE int64_t smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
TBPTT_INLINE int64_t larger(T a, T b) {
    return a < b ? b : a;
}

TBPTT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace TBPTT_ISA
}  // namespace tbptt
