// Sums over lanes, and loads and stores that widen to double, for sums over many elements.
#pragma once

#include "vec.h"

namespace tbptt {
namespace TBPTT_ISA {

// In a fixed order, by halves: the compiler makes shuffles of it.
template <class T>
TBPTT_INLINE T sum_lanes(Vec<T> value) {
    T lane[lanes<T>];
    store(lane, value);
#pragma GCC unroll 8
    for (int half = lanes<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

// Zeros from lane `count` on.
template <class T>
TBPTT_INLINE Vec<T> first_lanes(Vec<T> value, int64_t count) {
    for (int64_t i = count; i < lanes<T>; ++i) value[i] = 0;
    return value;
}

typedef float HalfVec __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2)));
typedef float UnalignedHalfVec __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2), aligned(4), may_alias));

TBPTT_INLINE Vec<double> load_double(const double* from) { return load(from); }

TBPTT_INLINE Vec<double> load_double(const float* from) {
    return __builtin_convertvector(*reinterpret_cast<const UnalignedHalfVec*>(from), Vec<double>);
}

TBPTT_INLINE void store_double(double* to, Vec<double> value) { store(to, value); }

TBPTT_INLINE void store_double(float* to, Vec<double> value) {
    *reinterpret_cast<UnalignedHalfVec*>(to) = __builtin_convertvector(value, HalfVec);
}

// The first `count` lanes; the others are zero (load) or untouched (store).
template <class T>
TBPTT_INLINE Vec<double> load_double(const T* from, int64_t count) {
    if (count >= lanes<double>) return load_double(from);
    Vec<double> value{};
    for (int64_t i = 0; i < count; ++i) value[i] = static_cast<double>(from[i]);
    return value;
}

template <class T>
TBPTT_INLINE void store_double(T* to, Vec<double> value, int64_t count) {
    if (count >= lanes<double>) return store_double(to, value);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(value[i]);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
