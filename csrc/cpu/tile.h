// The micro-kernel: one register tile of C = A·B, `rows` by `vectors` SIMD registers, along the whole depth.
//
// A row of A is addressed by its own pointer, so rows may lie anywhere; B is a packed panel [depth][vectors][lanes].
// Each element of C is the sum in the order of depth, whatever the shape of the tile: how rows and columns are grouped
// into tiles, and which thread takes them, never changes a bit.
#pragma once

#include "vec.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int max_vectors = 4;

// The most rows of a tile with `vectors` columns that the register file holds beside one row of B and a broadcast.
constexpr int max_tile_rows(int vectors) {
#if TBPTT_REGISTERS == 32
    return vectors == 4 ? 6 : 8;
#else
    return vectors == 4 ? 3 : vectors == 3 ? 4 : 6;
#endif
}

constexpr int largest_tile_rows = 8;

// Rows of a panel fetched ahead: panels stream from the second-level cache faster than the hardware's guesses.
constexpr int panel_ahead = 8;

// What to bring into the second-level cache meanwhile: a line every `step` bytes, one for each row of the panel.
struct Ahead {
    const char* next;
    int64_t step;

    void fetch() {
        prefetch_far(next);
        next += step;
    }
};

// The same for bytes begin … end-1 of the rows from `row` on, beginning with byte `at`: in their order, so that the hardware's
// prefetching joins in.
template <class T>
struct AheadRows {
    const T* const* row;
    int64_t begin = 0, end = 1, at = 0, step = 0;

    explicit AheadRows(const T* const* nothing) : row(nothing) {}

    // Part `i` of `count` of bytes begin … end-1 of so many rows, in so many steps.
    AheadRows(const T* const* first, int64_t rows, int64_t from, int64_t to, int64_t i, int64_t count, int64_t steps)
        : row(first) {
        const int64_t length = to - from, total = rows * length, skipped = total * i / count;
        if (total == 0) return;
        begin = from;
        end = to;
        at = from + skipped % length;
        row += skipped / length;
        step = total / count / steps;
    }

    void fetch() {
        // a row may be null, which has no address behind it
        prefetch_far(reinterpret_cast<const char*>(reinterpret_cast<std::intptr_t>(*row) + at));
        at += step;
        if (at >= end) at = begin, ++row;
    }
};

// The rows of A in `taps` pieces of `depth` elements: piece t of row r begins at piece[t·stride + r]. A plain matrix has one
// piece a row, a convolution one for each element of its kernel.
template <class T>
struct Rows {
    const T* const* piece;
    int64_t depth, taps = 1, stride = 0;

    Rows from(int64_t row) const { return {piece + row, depth, taps, stride}; }
};

// sum += the product of the rows a [taps·depth] and the panel b [taps·depth][vectors][lanes]
template <class T, int Height, int Vectors, bool Fetch, class Next>
TBPTT_INLINE void accumulate(Rows<T> a, const T* __restrict b, Vec<T> (&sum)[Height][Vectors], Next ahead) {
    constexpr int L = lanes<T>;
#pragma GCC unroll 1
    for (int64_t t = 0; t < a.taps; ++t, a.piece += a.stride) {
        const T* row[Height];
#pragma GCC unroll 16
        for (int r = 0; r < Height; ++r) row[r] = a.piece[r];
#pragma GCC unroll 1
        for (int64_t k = 0; k < a.depth; ++k, b += Vectors * L) {
            Vec<T> column[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * L);
            prefetch<Vectors>(b + panel_ahead * Vectors * L);
            if (Fetch) ahead.fetch();
#pragma GCC unroll 16
            for (int r = 0; r < Height; ++r) {
                const Vec<T> factor = broadcast(row[r][k]);
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * column[v];
            }
        }
    }
}

// out c [rows][vectors][lanes] = the product of the rows a and the panel b
template <class T, int Height, int Vectors, bool Fetch>
void tile(Rows<T> a, const T* __restrict b, T* __restrict c, Ahead ahead) {
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = Vec<T>{};
    accumulate<T, Height, Vectors, Fetch>(a, b, sum, ahead);
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) store(c + (r * Vectors + v) * lanes<T>, sum[r][v]);
}

// to[r][column … column + columns-1] = bias [vectors][lanes] + the product of the rows a and the panel b
template <class T, int Height, int Vectors>
void tile_to(Rows<T> a, const T* __restrict b, const T* bias, T* const* to, int64_t column, int64_t columns,
             AheadRows<T> ahead) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = load(bias + v * L);
            // the line is owned when it is written
            if (v * L < columns) __builtin_prefetch(to[r] + column + v * L, 1);
        }
    accumulate<T, Height, Vectors, true>(a, b, sum, ahead);
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
            columns >= Vectors* L ? store(to[r] + column + v * L, sum[r][v])
                                  : store_partial(to[r] + column + v * L, sum[r][v], columns - v * L);
}

template <class T>
using Tile = void (*)(Rows<T> a, const T* b, T* c, Ahead ahead);

template <class T, int Vectors, bool Fetch>
TBPTT_INLINE Tile<T> find_tile(int rows) {
    constexpr int most = max_tile_rows(Vectors);
    switch (rows < most ? rows : most) {
        case 1: return tile<T, 1, Vectors, Fetch>;
        case 2: return tile<T, 2, Vectors, Fetch>;
        case 3: return tile<T, 3, Vectors, Fetch>;
        case 4: return tile<T, (most < 4 ? most : 4), Vectors, Fetch>;
        case 5: return tile<T, (most < 5 ? most : 5), Vectors, Fetch>;
        case 6: return tile<T, (most < 6 ? most : 6), Vectors, Fetch>;
        case 7: return tile<T, (most < 7 ? most : 7), Vectors, Fetch>;
        default: return tile<T, most, Vectors, Fetch>;
    }
}

// The tile for 1 … max_tile_rows(vectors) rows.
template <class T, bool Fetch>
TBPTT_INLINE Tile<T> find_tile(int rows, int vectors) {
    switch (vectors) {
        case 1: return find_tile<T, 1, Fetch>(rows);
        case 2: return find_tile<T, 2, Fetch>(rows);
        case 3: return find_tile<T, 3, Fetch>(rows);
        default: return find_tile<T, 4, Fetch>(rows);
    }
}

template <class T>
using TileTo = void (*)(Rows<T> a, const T* b, const T* bias, T* const* to, int64_t column, int64_t columns,
                        AheadRows<T> ahead);

template <class T>
TBPTT_INLINE TileTo<T> find_tile_to(int rows, int vectors) {
    return with_constant<max_vectors>(vectors, [&](auto v) {
        constexpr int V = decltype(v)::value;
        return with_constant<max_tile_rows(V)>(rows,
                                               [](auto h) -> TileTo<T> { return tile_to<T, decltype(h)::value, V>; });
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
