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

// out c [rows][vectors][lanes] = the product of the rows a and the panel b, with Add in continuation of the sums that c
// already holds.
template <class T, int Height, int Vectors, bool Fetch, bool Add>
void tile(Rows<T> a, const T* __restrict b, T* __restrict c, Ahead ahead) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = Add ? load(c + (r * Vectors + v) * L) : Vec<T>{};
    accumulate<T, Height, Vectors, Fetch>(a, b, sum, ahead);
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) store(c + (r * Vectors + v) * L, sum[r][v]);
}

// Where a tile's rows belong, and how they are finished there: row r is to[r][0 … columns-1] = larger(least, bias + sum).
template <class T>
struct Destination {
    T* const* to;
    int64_t column, columns;  // `columns` from `column` on are this panel's
    const T* bias;            // [vectors][lanes]
    T least;
    bool streams;  // past the cache: whole panels at aligned addresses
};

template <class T, int Height, int Vectors>
void tile_to(Rows<T> a, const T* __restrict b, Destination<T> d, AheadRows<T> ahead) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = load(d.bias + v * L);
            // the line is owned when it is written
            if (v * L < d.columns && !d.streams) prefetch_to_write(d.to[r] + d.column + v * L);
        }
    accumulate<T, Height, Vectors, true>(a, b, sum, ahead);
    const Vec<T> least = broadcast(d.least);
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            T* to = d.to[r] + d.column + v * L;
            const Vec<T> result = sum[r][v] < least ? least : sum[r][v];  // NaN is not less than anything
            if (d.streams)
                stream(to, result);
            else if (d.columns >= Vectors * L)
                store(to, result);
            else
                store_partial(to, result, d.columns - v * L);
        }
}

template <class T>
using Tile = void (*)(Rows<T> a, const T* b, T* c, Ahead ahead);

template <class T, int Vectors, bool Fetch, bool Add>
TBPTT_INLINE Tile<T> find_tile(int rows) {
    constexpr int most = max_tile_rows(Vectors);
    switch (rows < most ? rows : most) {
        case 1: return tile<T, 1, Vectors, Fetch, Add>;
        case 2: return tile<T, 2, Vectors, Fetch, Add>;
        case 3: return tile<T, 3, Vectors, Fetch, Add>;
        case 4: return tile<T, (most < 4 ? most : 4), Vectors, Fetch, Add>;
        case 5: return tile<T, (most < 5 ? most : 5), Vectors, Fetch, Add>;
        case 6: return tile<T, (most < 6 ? most : 6), Vectors, Fetch, Add>;
        case 7: return tile<T, (most < 7 ? most : 7), Vectors, Fetch, Add>;
        default: return tile<T, most, Vectors, Fetch, Add>;
    }
}

// The tile for 1 … max_tile_rows(vectors) rows.
template <class T, bool Fetch, bool Add = false>
TBPTT_INLINE Tile<T> find_tile(int rows, int vectors) {
    switch (vectors) {
        case 1: return find_tile<T, 1, Fetch, Add>(rows);
        case 2: return find_tile<T, 2, Fetch, Add>(rows);
        case 3: return find_tile<T, 3, Fetch, Add>(rows);
        default: return find_tile<T, 4, Fetch, Add>(rows);
    }
}

template <class T>
using TileTo = void (*)(Rows<T> a, const T* b, Destination<T> d, AheadRows<T> ahead);

template <class T>
TBPTT_INLINE TileTo<T> find_tile_to(int rows, int vectors) {
    return with_constant<max_vectors>(vectors, [&](auto v) {
        constexpr int V = decltype(v)::value;
        return with_constant<max_tile_rows(V)>(rows,
                                               [](auto h) -> TileTo<T> { return tile_to<T, decltype(h)::value, V>; });
    });
}

// c [rows][vectors][lanes] += Σ_k a_kᵀ·b_k for rows a_k [rows], `stride` elements apart, and b [depth][vectors][lanes]: the
// tile of a product whose left factor lies transposed.
template <class T, int Height, int Vectors>
void outer_tile(const T* __restrict a, int64_t stride, const T* __restrict b, int64_t depth, T* __restrict c) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = load(c + (r * Vectors + v) * L);
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; ++k, a += stride, b += Vectors * L) {
        Vec<T> column[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * L);
#pragma GCC unroll 16
        for (int r = 0; r < Height; ++r) {
            const Vec<T> factor = broadcast(a[r]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * column[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) store(c + (r * Vectors + v) * L, sum[r][v]);
}

template <class T>
using OuterTile = void (*)(const T* a, int64_t stride, const T* b, int64_t depth, T* c);

template <class T, int Vectors>
TBPTT_INLINE OuterTile<T> find_outer_tile(int rows) {
    constexpr int most = max_tile_rows(Vectors);
    switch (rows < most ? rows : most) {
        case 1: return outer_tile<T, 1, Vectors>;
        case 2: return outer_tile<T, 2, Vectors>;
        case 3: return outer_tile<T, 3, Vectors>;
        case 4: return outer_tile<T, (most < 4 ? most : 4), Vectors>;
        case 5: return outer_tile<T, (most < 5 ? most : 5), Vectors>;
        case 6: return outer_tile<T, (most < 6 ? most : 6), Vectors>;
        case 7: return outer_tile<T, (most < 7 ? most : 7), Vectors>;
        default: return outer_tile<T, most, Vectors>;
    }
}

template <class T>
TBPTT_INLINE OuterTile<T> find_outer_tile(int rows, int vectors) {
    switch (vectors) {
        case 1: return find_outer_tile<T, 1>(rows);
        case 2: return find_outer_tile<T, 2>(rows);
        case 3: return find_outer_tile<T, 3>(rows);
        default: return find_outer_tile<T, 4>(rows);
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
