// Packing weights into panels (product.h).
#pragma once

#include "interleave.h"
#include "product.h"

namespace tbptt {
namespace TBPTT_ISA {

// Calls put(k, values) for k in 0 … depth-1 with values[lane] = from[lane·ld + k], zero from lane `count` on: squares of
// lanes are transposed in registers.
template <class T, class Put>
TBPTT_INLINE void for_columns(const T* from, int64_t ld, int64_t depth, int64_t count, Put put) {
    constexpr int L = lanes<T>;
    for (int64_t k = 0; k < depth; k += L) {
        Vec<T> rows[L];
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) rows[l] = l < count ? load_partial(from + l * ld + k, depth - k) : Vec<T>{};
        transpose<T>(rows);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l)
            if (l < depth - k) put(k + l, rows[l]);
    }
}

// One SIMD column of a panel: to[k·stride + lane] = from[lane·ld + k], zero beyond `count` lanes.
template <class T>
TBPTT_INLINE void pack_transposed(T* to, int64_t stride, const T* from, int64_t ld, int64_t depth, int64_t count) {
    for_columns<T>(from, ld, depth, count, [&](int64_t k, Vec<T> values) { store(to + k * stride, values); });
}

// The panel `p` of the transpose of w [gates·units, depth]: the same unit block of every gate side by side,
// [depth][gates][unit vectors][lanes].
template <class T>
__attribute__((noinline)) void pack_gates(const Packed<T>& to, int64_t p, const T* w, int gates, int64_t units) {
    const int unit_vectors = to.vectors / gates;
    for (int g = 0; g < gates; ++g)
        for (int u = 0; u < unit_vectors; ++u) {
            const int64_t unit = (p * unit_vectors + u) * lanes<T>;
            const int64_t count = units - unit;
            pack_transposed(to.panel(p) + (g * unit_vectors + u) * lanes<T>, to.width(),
                            w + (g * units + (count > 0 ? unit : 0)) * to.depth, to.depth, to.depth, count);
        }
}

// The panel `p` of b [depth][columns] (ld elements between rows), whose row k is row (k + rotation) mod depth of b.
template <class T>
__attribute__((noinline)) void pack_rows(const Packed<T>& to, int64_t p, const T* b, int64_t ld, int64_t columns,
                                         int64_t rotation = 0) {
    const int64_t width = to.width(), first = p * width, count = smaller(width, columns - first);
    T* out = to.panel(p);
    for (int64_t k = 0; k < to.depth; ++k, out += width) {
        const T* from = b + (k + rotation < to.depth ? k + rotation : k + rotation - to.depth) * ld + first;
        for (int64_t j = 0; j < count; ++j) out[j] = from[j];
        for (int64_t j = count; j < width; ++j) out[j] = T(0);
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
