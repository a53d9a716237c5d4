// Sums over lanes, and loads and stores that widen to double, for sums over many elements.
#pragma once

#include "intrinsics.h"

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
    VecBits<T> index{};
    for (int i = 0; i < lanes<T>; ++i) index[i] = static_cast<decltype(index[0] + 0)>(i);
    const auto end = static_cast<decltype(index[0] + 0)>(smaller<int64_t>(count, lanes<T>));
    return (Vec<T>)((VecBits<T>)value & (index < VecBits<T>{} + end));
}

typedef float UnalignedHalfVec __attribute__((vector_size(TBPTT_VECTOR_BYTES / 2), aligned(4), may_alias));

TBPTT_INLINE Vec<double> load_double(const double* from) { return load(from); }

TBPTT_INLINE Vec<double> load_double(const float* from) {
    return widen(*reinterpret_cast<const UnalignedHalfVec*>(from));
}

TBPTT_INLINE void store_double(double* to, Vec<double> value) { store(to, value); }

TBPTT_INLINE void store_double(float* to, Vec<double> value) {
    *reinterpret_cast<UnalignedHalfVec*>(to) = narrow(value);
}

// The first `count` lanes; the others are zero (load) or untouched (store).
TBPTT_INLINE Vec<double> load_double(const double* from, int64_t count) { return load_partial(from, count); }

TBPTT_INLINE Vec<double> load_double(const float* from, int64_t count) {
    return count >= lanes<double> ? load_double(from) : widen_partial(from, count);
}

template <class T>
TBPTT_INLINE void store_double(T* to, Vec<double> value, int64_t count) {
    if (count >= lanes<double>) return store_double(to, value);
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(value[i]);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
