// Products with a packed right-hand side: the one loop over register tiles that every kernel is built on.
#pragma once

#include "tile.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

// B [depth][columns] in panels of `vectors` SIMD columns, each panel [depth][vectors][lanes], zero-padded at the end.
template <class T>
struct Packed {
    T* data;
    int64_t depth;
    int64_t panels;
    int vectors;

    int64_t width() const { return static_cast<int64_t>(vectors) * lanes<T>; }
    int64_t panel_size() const { return depth * width(); }
    int64_t size() const { return panels * panel_size(); }
    T* panel(int64_t p) const { return data + p * panel_size(); }

    // The same layout, where only panel `p` is in memory: at `own`.
    Packed only(int64_t p, T* own) const { return {own - p * panel_size(), depth, panels, vectors}; }

    // The part of a panel that tile `i` of `count` fetches while they are at work on the panel before.
    Ahead part(int64_t p, int64_t i, int64_t count) const {
        const int64_t step = smaller<int64_t>(64, width() * static_cast<int64_t>(sizeof(T)) / count);
        return {reinterpret_cast<const char*>(panel(p)) + i * step * depth, step};
    }
};

// Vectors per panel for `columns`: wide panels are fastest, but not when they are mostly padding.
template <class T>
TBPTT_INLINE int choose_vectors(int64_t columns) {
    const int64_t needed = ceil_div(columns, lanes<T>);
    constexpr double cost[max_vectors + 1] = {0, 1.5, 1.1, 1.0, 1.0};  // relative time of a vector in such a panel
    int best = 1;
    double least = 1e300;
    for (int vectors = max_vectors; vectors >= 1; --vectors) {
        const double time = static_cast<double>(ceil_div(needed, vectors) * vectors) * cost[vectors];
        if (time < least) {
            least = time;
            best = vectors;
        }
    }
    return best;
}

template <class T>
TBPTT_INLINE Packed<T> layout_panels(int64_t depth, int64_t columns, int vectors) {
    return {nullptr, depth, ceil_div(columns, static_cast<int64_t>(vectors) * lanes<T>), vectors};
}

// finish(panel, first_row, height, c) gets each tile of rows·B, c [rows][width], while it is in the first-level cache.
// Rows are cut into tiles of nearly equal height; panels are the outer loop, so that a panel stays in cache, and may be
// taken `backwards`.
template <class T, class Finish>
TBPTT_INLINE void product(const Rows<T>& rows, int64_t count, const Packed<T>& b, Range panels, Finish&& finish,
                          bool backwards = false) {
    alignas(64) T c[largest_tile_rows * max_vectors * lanes<T>];
    const int64_t tiles = ceil_div(count, max_tile_rows(b.vectors));
    const bool far = (panels.end - panels.begin) * b.panel_size() * static_cast<int64_t>(sizeof(T)) > core_cache;
    for (int64_t n = panels.begin; n < panels.end; ++n) {
        const int64_t p = backwards ? panels.begin + panels.end - 1 - n : n;
        const int64_t next = n + 1 == panels.end ? p : backwards ? p - 1 : p + 1;
        for (int64_t i = 0; i < tiles; ++i) {
            const Range tile = split(count, i, tiles);
            const int height = static_cast<int>(tile.end - tile.begin);
            const Tile<T> multiply =
                far ? find_tile<T, true>(height, b.vectors) : find_tile<T, false>(height, b.vectors);
            multiply(rows.from(tile.begin), b.panel(p), c, b.part(next, i, tiles));
            finish(p, tile.begin, height, static_cast<const T*>(c));
        }
    }
}

// The same for rows that are not in pieces.
template <class T, class Finish>
TBPTT_INLINE void product(const T* const* rows, int64_t count, const Packed<T>& b, Range panels, Finish&& finish,
                          bool backwards = false) {
    product<T>(Rows<T>{rows, b.depth}, count, b, panels, static_cast<Finish&&>(finish), backwards);
}

// Writes a tile's row to out [columns] from `column` on, each vector changed by `change(vector, column)`.
template <class T, class Change>
TBPTT_INLINE void write_columns(T* out, int64_t columns, int64_t column, int64_t width, const T* c, Change change) {
    for (int64_t j = 0; j < width && column + j < columns; j += lanes<T>)
        store_partial(out + column + j, change(load(c + j), column + j), columns - column - j);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
