// The transforms of Winograd's minimal filtering F(M×M, 3×3): an M×M tile of outputs from (M+2)² products.
//
//   Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A        and, for the gradient by g,        dG = Gᵀ [(A dY Aᵀ) ⊙ (Bᵀ d B)] G
//
// Source: Lavin and Gray (2016), "Fast algorithms for convolutional neural networks", section 4. Each is one direction;
// `in_both` applies it to columns, then to rows. Vectors are channels, so the same code serves every layout.
#pragma once

#include "vec.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T, int M>
struct Winograd;

// Points 0, ±1, ∞. Its factors are halves: exact wherever every partial sum is.
template <class T>
struct Winograd<T, 2> {
    using V = Vec<T>;
    static constexpr int tile = 2, reach = 4;

    static TBPTT_INLINE void input(const V* d, V* to) {  // Bᵀ d
        to[0] = d[0] - d[2];
        to[1] = d[1] + d[2];
        to[2] = d[2] - d[1];
        to[3] = d[1] - d[3];
    }
    static TBPTT_INLINE void weights(const V* g, V* to) {  // G g
        const V half = broadcast(T(0.5)), even = (g[0] + g[2]) * half, odd = g[1] * half;
        to[0] = g[0];
        to[1] = even + odd;
        to[2] = even - odd;
        to[3] = g[2];
    }
    static TBPTT_INLINE void output(const V* m, V* to) {  // Aᵀ m
        to[0] = m[0] + m[1] + m[2];
        to[1] = m[1] - m[2] - m[3];
    }
    static TBPTT_INLINE void output_adjoint(const V* y, V* to) {  // A y
        to[0] = y[0];
        to[1] = y[0] + y[1];
        to[2] = y[0] - y[1];
        to[3] = -y[1];
    }
    static TBPTT_INLINE void weights_adjoint(const V* e, V* to) {  // Gᵀ e
        const V half = broadcast(T(0.5)), even = (e[1] + e[2]) * half;
        to[0] = e[0] + even;
        to[1] = (e[1] - e[2]) * half;
        to[2] = even + e[3];
    }
};

// Points 0, ±1, ±2, ∞.
template <class T>
struct Winograd<T, 4> {
    using V = Vec<T>;
    static constexpr int tile = 4, reach = 6;

    static TBPTT_INLINE void input(const V* d, V* to) {
        const V two = broadcast(T(2)), four = broadcast(T(4)), five = broadcast(T(5));
        const V a = d[4] - four * d[2], b = d[3] - four * d[1], c = d[4] - d[2], e = two * (d[3] - d[1]);
        to[0] = four * d[0] - five * d[2] + d[4];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = four * d[1] - five * d[3] + d[5];
    }
    static TBPTT_INLINE void weights(const V* g, V* to) {
        const V sixth = broadcast(T(1) / 6), twelfth = broadcast(T(1) / 12), part = broadcast(T(1) / 24);
        const V a = -(g[0] + g[2]) * sixth, b = g[1] * sixth, c = g[0] * part + g[2] * sixth, e = g[1] * twelfth;
        to[0] = g[0] * broadcast(T(0.25));
        to[1] = a - b;
        to[2] = a + b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = g[2];
    }
    static TBPTT_INLINE void output(const V* m, V* to) {
        const V two = broadcast(T(2)), four = broadcast(T(4)), eight = broadcast(T(8));
        const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
        to[0] = m[0] + a + c;
        to[1] = b + two * e;
        to[2] = a + four * c;
        to[3] = b + eight * e + m[5];
    }
    static TBPTT_INLINE void output_adjoint(const V* y, V* to) {
        const V two = broadcast(T(2)), four = broadcast(T(4));
        const V a = y[0] + y[2], b = y[1] + y[3], c = y[0] + four * y[2], e = two * (y[1] + four * y[3]);
        to[0] = y[0];
        to[1] = a + b;
        to[2] = a - b;
        to[3] = c + e;
        to[4] = c - e;
        to[5] = y[3];
    }
    static TBPTT_INLINE void weights_adjoint(const V* e, V* to) {
        const V sixth = broadcast(T(1) / 6), twelfth = broadcast(T(1) / 12), part = broadcast(T(1) / 24);
        const V a = e[1] + e[2], c = e[3] + e[4];
        to[0] = e[0] * broadcast(T(0.25)) - a * sixth + c * part;
        to[1] = (e[2] - e[1]) * sixth + (e[3] - e[4]) * twelfth;
        to[2] = (c - a) * sixth + e[5];
    }
};

// to [To][To] = the function, from From values to To, along both directions of from [From][From].
template <int From, int To, class V, class Function>
TBPTT_INLINE void in_both(const V (&from)[From][From], V (&to)[To][To], Function function) {
    V half[From][To];  // [column][row]
#pragma GCC unroll 8
    for (int x = 0; x < From; ++x) {
        V column[From];
#pragma GCC unroll 8
        for (int y = 0; y < From; ++y) column[y] = from[y][x];
        function(column, half[x]);
    }
#pragma GCC unroll 8
    for (int y = 0; y < To; ++y) {
        V row[From];
#pragma GCC unroll 8
        for (int x = 0; x < From; ++x) row[x] = half[x][y];
        function(row, to[y]);
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
