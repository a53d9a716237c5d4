// The register tiles of convolutions of few channels. They differ from tile.h's in what they read in place: pixels in a
// strip at any distance from each other, so that nothing is packed for them.
#pragma once

#include "shallow.h"
#include "tile.h"

namespace tbptt {
namespace TBPTT_ISA {
namespace shallow {

// Pixels of one vector: where their first input and result lie.
template <class T>
struct PixelVector {
    const T* source;
    T* to;
    int64_t count;
};

// Rows are channels, lanes are pixels: at place[r] behind every vector's `to` (Add: to what is there is added)
// bias[r] + Σ_k rows[r][k] · source[offset[k] …].
template <class T, int Height, int Vectors, bool Add>
void pixel_tile(const T* const* rows, int64_t depth, const PixelVector<T>* vectors, const int64_t* offset,
                const T* bias, const int64_t* place) {
    Vec<T> sum[Height][Vectors];
    const T *row[Height], *source[Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r) {
        row[r] = rows[r];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = bias ? broadcast(bias[r]) : Vec<T>{};
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) source[v] = vectors[v].source;
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> column[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) column[v] = load(source[v] + offset[k]);
#pragma GCC unroll 16
        for (int r = 0; r < Height; ++r) {
            const Vec<T> factor = broadcast(row[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * column[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            T* to = vectors[v].to + place[r];
            const Vec<T> value = Add ? load(to) + sum[r][v] : sum[r][v];
            // a partial store, even of all lanes, cannot be read again before it has reached the cache
            vectors[v].count >= lanes<T> ? store(to, value) : store_partial(to, value, vectors[v].count);
        }
}

template <class T>
using PixelTile = void (*)(const T* const* rows, int64_t depth, const PixelVector<T>* vectors, const int64_t* offset,
                           const T* bias, const int64_t* place);

template <class T, bool Add>
TBPTT_INLINE PixelTile<T> find_pixel_tile(int height, int vectors) {
    return with_constant<max_vectors>(vectors, [&](auto v) {
        constexpr int V = decltype(v)::value;
        return with_constant<max_tile_rows(V)>(
            height, [](auto h) -> PixelTile<T> { return pixel_tile<T, decltype(h)::value, V, Add>; });
    });
}

// Rows are pixels `step` apart, each in `count` pieces of `length` elements that begin at `piece`; lanes are channels:
// to [Height][columns], `to_step` apart, = bias [Vectors][lanes] + rows · the panel b [count·length][Vectors][lanes].
template <class T, int Height, int Vectors>
void row_tile(const T* first, int64_t step, const int64_t* piece, int64_t count, int64_t length, const T* b,
              const T* bias, T* to, int64_t to_step, int64_t columns) {
    constexpr int L = lanes<T>;
    Vec<T> sum[Height][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = load(bias + v * L);
#pragma GCC unroll 1
    for (int64_t t = 0; t < count; ++t) {
        // few pointers, each with up to three rows in reach of an address of one instruction
        const T* row[(Height + 2) / 3];
#pragma GCC unroll 8
        for (int r = 0; r < (Height + 2) / 3; ++r) row[r] = first + piece[t] + 3 * r * step;
#pragma GCC unroll 1
        for (int64_t k = 0; k < length; ++k, b += Vectors * L) {
            Vec<T> column[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * L);
#pragma GCC unroll 16
            for (int r = 0; r < Height; ++r) {
                const Vec<T> factor = broadcast(row[r / 3][r % 3 * step]);
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * column[v];
            }
#pragma GCC unroll 8
            for (int r = 0; r < (Height + 2) / 3; ++r) ++row[r];
        }
    }
    if (columns >= Vectors * L) {
#pragma GCC unroll 16
        for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) store(to + r * to_step + v * L, sum[r][v]);
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < Height; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) store_partial(to + r * to_step + v * L, sum[r][v], columns - v * L);
    }
}

template <class T>
using RowTile = void (*)(const T* first, int64_t step, const int64_t* piece, int64_t count, int64_t length, const T* b,
                         const T* bias, T* to, int64_t to_step, int64_t columns);

constexpr int max_row_tile_rows(int vectors) {
    return TBPTT_REGISTERS == 32 && vectors <= 2 ? 14 : max_tile_rows(vectors);
}

template <class T>
TBPTT_INLINE RowTile<T> find_row_tile(int height, int vectors) {
    return with_constant<max_vectors>(vectors, [&](auto v) {
        constexpr int V = decltype(v)::value;
        return with_constant<max_row_tile_rows(V)>(
            height, [](auto h) -> RowTile<T> { return row_tile<T, decltype(h)::value, V>; });
    });
}

}  // namespace shallow
}  // namespace TBPTT_ISA
}  // namespace tbptt
