// Products of so few rows that storing packed weights and reading them again would cost more than it saves. Each element is
// the same sum in the order of depth that tile.h makes: to the bit.
#pragma once

#include "pack.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t few_rows = 6;

// These are called, not inlined, so that all cells share them.

// c [Count][lanes], `width` apart, = the products of the rows [depth] and the rows of w [count][depth], one a lane.
template <class T, int Count>
__attribute__((noinline)) void multiply_columns(const T* const* rows, const T* w, int64_t depth, int64_t count, T* c,
                                                int64_t width) {
    Vec<T> sum[Count];
    for (int r = 0; r < Count; ++r) sum[r] = Vec<T>{};
    for_columns<T>(w, depth, depth, count, [&](int64_t k, Vec<T> values) {
#pragma GCC unroll 8
        for (int r = 0; r < Count; ++r) sum[r] += broadcast(rows[r][k]) * values;
    });
    for (int r = 0; r < Count; ++r) store(c + r * width, sum[r]);
}

// What `product` gives to finish(panel, first row, height, c) for panels that `pack_gates` would make of w [gates·units, depth].
template <class T, class Finish>
TBPTT_INLINE void product_of_few(const T* const* rows, int64_t count, const Packed<T>& b, const T* w, int gates,
                                 int64_t units, Range panels, Finish&& finish) {
    alignas(64) T c[few_rows * max_vectors * lanes<T>];
    const int unit_vectors = b.vectors / gates;
    if (count == 0) return;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
        for (int v = 0; v < b.vectors; ++v) {
            const int64_t unit = (p * unit_vectors + v % unit_vectors) * lanes<T>, members = units - unit;
            const T* block = w + (v / unit_vectors * units + (members > 0 ? unit : 0)) * b.depth;
            with_constant<few_rows>(static_cast<int>(count), [&](auto n) {
                multiply_columns<T, decltype(n)::value>(rows, block, b.depth, members, c + v * lanes<T>, b.width());
            });
        }
        finish(p, 0, static_cast<int>(count), static_cast<const T*>(c));
    }
}

// c [Count][lanes], `width` apart, = the rows times the first `members` columns of b [depth][columns], whose row k is
// (k + rotation) mod depth.
template <class T, int Count>
__attribute__((noinline)) void multiply_lines(const T* const* rows, const T* b, int64_t depth, int64_t columns,
                                              int64_t rotation, int64_t members, T* c, int64_t width) {
    Vec<T> sum[Count];
    for (int r = 0; r < Count; ++r) sum[r] = Vec<T>{};
    for (int64_t k = 0; k < depth; ++k) {
        const int64_t line = k + rotation < depth ? k + rotation : k + rotation - depth;
        const Vec<T> values = load_partial(b + line * columns, members);
#pragma GCC unroll 8
        for (int r = 0; r < Count; ++r) sum[r] += broadcast(rows[r][k]) * values;
    }
    for (int r = 0; r < Count; ++r) store(c + r * width, sum[r]);
}

// What `product` gives to finish for panels that `pack_rows` would make of w [depth][columns].
template <class T, class Finish>
TBPTT_INLINE void product_of_few_lines(const T* const* rows, int64_t count, const Packed<T>& b, const T* w,
                                       int64_t columns, int64_t rotation, Range panels, Finish&& finish) {
    alignas(64) T c[few_rows * max_vectors * lanes<T>];
    if (count == 0) return;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
        for (int v = 0; v < b.vectors; ++v) {
            const int64_t column = p * b.width() + v * lanes<T>, members = larger<int64_t>(0, columns - column);
            with_constant<few_rows>(static_cast<int>(count), [&](auto n) {
                multiply_lines<T, decltype(n)::value>(rows, w + (members > 0 ? column : 0), b.depth, columns, rotation,
                                                      members, c + v * lanes<T>, b.width());
            });
        }
        finish(p, 0, static_cast<int>(count), static_cast<const T*>(c));
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
