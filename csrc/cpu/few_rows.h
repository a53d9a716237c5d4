// Products of so few rows that packing the weights would cost more than it saves: dot products along the weights as they
// lie, a SIMD vector of units at a time.
#pragma once

#include "interleave.h"
#include "product.h"

namespace tbptt {
namespace TBPTT_ISA {

// Packing moves every weight through a transposition, a dot product reads it once a row.
constexpr int64_t few_rows = 6;

// The dot products of row [depth] and the rows of w [count][depth], one a lane; what lanes from `count` on hold is no use.
template <class T>
TBPTT_INLINE Vec<T> dot_products(const T* row, const T* w, int64_t depth, int64_t count) {
    constexpr int L = lanes<T>;
    const T* from[L];
    Vec<T> sum[L];
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) {
        from[l] = w + (l < count ? l : 0) * depth;
        sum[l] = Vec<T>{};
    }
    int64_t k = 0;
    for (; k + L <= depth; k += L) {
        const Vec<T> x = load(row + k);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) sum[l] += x * load(from[l] + k);
    }
    if (k < depth) {
        const Vec<T> x = load_partial(row + k, depth - k);
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) sum[l] += x * load_partial(from[l] + k, depth - k);
    }
    transpose<T>(sum);
#pragma GCC unroll 4
    for (int half = L / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    return sum[0];
}

// What `product` gives to finish(panel, first row, height, c) for panels that `pack_gates` would make of w [gates·units, depth].
template <class T, class Finish>
TBPTT_INLINE void product_of_few(const T* const* rows, int64_t count, const Packed<T>& b, const T* w, int gates,
                                 int64_t units, Range panels, Finish&& finish) {
    alignas(64) T c[few_rows * max_vectors * lanes<T>];
    const int unit_vectors = b.vectors / gates;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
        for (int v = 0; v < b.vectors; ++v) {
            const int64_t unit = (p * unit_vectors + v % unit_vectors) * lanes<T>;
            if (unit >= units) {
                for (int64_t r = 0; r < count; ++r) store(c + r * b.width() + v * lanes<T>, Vec<T>{});
                continue;
            }
            const T* block = w + (v / unit_vectors * units + unit) * b.depth;
            for (int64_t r = 0; r < count; ++r)
                store(c + r * b.width() + v * lanes<T>, dot_products(rows[r], block, b.depth, units - unit));
        }
        if (count > 0) finish(p, 0, static_cast<int>(count), static_cast<const T*>(c));
    }
}

// c [Count][Vectors][lanes] = the rows times columns `column` … of b [depth][columns], whose row k is (k + rotation) mod depth.
template <class T, int Count, int Vectors>
TBPTT_INLINE void multiply_lines(const T* const* rows, const T* b, int64_t depth, int64_t columns, int64_t rotation,
                                 int64_t column, T* c) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Count][Vectors];
    for (int r = 0; r < Count; ++r)
        for (int v = 0; v < Vectors; ++v) sum[r][v] = Vec<T>{};
    for (int64_t k = 0; k < depth; ++k) {
        const T* line = b + (k + rotation < depth ? k + rotation : k + rotation - depth) * columns + column;
        Vec<T> values[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) values[v] = load_partial(line + v * L, columns - column - v * L);
#pragma GCC unroll 8
        for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[r][v] += broadcast(rows[r][k]) * values[v];
    }
    for (int r = 0; r < Count; ++r)
        for (int v = 0; v < Vectors; ++v) store(c + (r * Vectors + v) * L, sum[r][v]);
}

// What `product` gives to finish for panels that `pack_rows` would make of w [depth][columns].
template <class T, class Finish>
TBPTT_INLINE void product_of_few_lines(const T* const* rows, int64_t count, const Packed<T>& b, const T* w,
                                       int64_t columns, int64_t rotation, Range panels, Finish&& finish) {
    alignas(64) T c[few_rows * max_vectors * lanes<T>];
    if (count == 0) return;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
        with_constant<few_rows>(static_cast<int>(count), [&](auto n) {
            with_constant<max_vectors>(b.vectors, [&](auto v) {
                multiply_lines<T, decltype(n)::value, decltype(v)::value>(rows, w, b.depth, columns, rotation,
                                                                          p * b.width(), c);
            });
        });
        finish(p, 0, static_cast<int>(count), static_cast<const T*>(c));
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
