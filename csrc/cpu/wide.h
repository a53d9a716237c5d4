// N vectors that go through the same operations side by side, so that their latencies overlap.
#pragma once

#include "intrinsics.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T, int N>
struct Wide {
    using Element = T;
    Vec<T> part[N];

    static TBPTT_INLINE Wide all(T value) {
        Wide result;
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) result.part[i] = broadcast(value);
        return result;
    }
};

// result.part[i] = function(i)
template <class T, int N, class Function>
TBPTT_INLINE Wide<T, N> each(Function function) {
    Wide<T, N> result;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) result.part[i] = function(i);
    return result;
}

#define TBPTT_WIDE_OPERATOR(op)                                                     \
    template <class T, int N>                                                       \
    TBPTT_INLINE Wide<T, N> operator op(const Wide<T, N>& a, const Wide<T, N>& b) { \
        return each<T, N>([&](int i) { return a.part[i] op b.part[i]; });           \
    }                                                                               \
    template <class T, int N>                                                       \
    TBPTT_INLINE Wide<T, N> operator op(const Wide<T, N>& a, T b) {                 \
        return each<T, N>([&](int i) { return a.part[i] op b; });                   \
    }                                                                               \
    template <class T, int N>                                                       \
    TBPTT_INLINE Wide<T, N> operator op(T a, const Wide<T, N>& b) {                 \
        return each<T, N>([&](int i) { return a op b.part[i]; });                   \
    }
TBPTT_WIDE_OPERATOR(+)
TBPTT_WIDE_OPERATOR(-)
TBPTT_WIDE_OPERATOR(*)
TBPTT_WIDE_OPERATOR(/)
#undef TBPTT_WIDE_OPERATOR

template <class T, int N>
TBPTT_INLINE Wide<T, N> operator-(const Wide<T, N>& a) {
    return each<T, N>([&](int i) { return -a.part[i]; });
}

// a < b ? yes : no
template <class T, int N>
TBPTT_INLINE Wide<T, N> where_less(const Wide<T, N>& a, const Wide<T, N>& b, const Wide<T, N>& yes,
                                   const Wide<T, N>& no) {
    return each<T, N>([&](int i) { return a.part[i] < b.part[i] ? yes.part[i] : no.part[i]; });
}

// a <= b ? yes : no
template <class T, int N>
TBPTT_INLINE Wide<T, N> where_at_most(const Wide<T, N>& a, const Wide<T, N>& b, const Wide<T, N>& yes,
                                      const Wide<T, N>& no) {
    return each<T, N>([&](int i) { return a.part[i] <= b.part[i] ? yes.part[i] : no.part[i]; });
}

template <class T>
TBPTT_INLINE VecBits<T> sign_bits() {
    return (VecBits<T>{} + 1) << (static_cast<int>(sizeof(T)) * 8 - 1);
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> minus_absolute(const Wide<T, N>& x) {
    return each<T, N>([&](int i) { return (Vec<T>)((VecBits<T>)x.part[i] | sign_bits<T>()); });
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> with_sign_of(const Wide<T, N>& size, const Wide<T, N>& sign) {
    return each<T, N>([&](int i) {
        const VecBits<T> mask = sign_bits<T>();
        return (Vec<T>)(((VecBits<T>)size.part[i] & ~mask) | ((VecBits<T>)sign.part[i] & mask));
    });
}

// intrinsics.h, part by part
template <class T, int N>
TBPTT_INLINE Wide<T, N> at_most(T limit, const Wide<T, N>& x) {
    return each<T, N>([&](int i) { return at_most(limit, x.part[i]); });
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> at_least(T limit, const Wide<T, N>& x) {
    return each<T, N>([&](int i) { return at_least(limit, x.part[i]); });
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> estimate_reciprocal(const Wide<T, N>& d) {
    return each<T, N>([&](int i) { return Reciprocal<T>::estimate(d.part[i]); });
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> scale(const Wide<T, N>& a, const Wide<T, N>& n) {
    return each<T, N>([&](int i) { return scale(a.part[i], n.part[i]); });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
