// Correlation of images whose channels lie together: pixels are the rows of a product, the target's channels its columns.
//
// A row is addressed in pieces, one for each tap, straight in the source: stride, dilation and halo cost no copy. Only
// where the source has few channels, which would make pieces too short, are rows put together, a block at a time.
#pragma once

#include "correlation.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class CorrelationLast {
   public:
    explicit CorrelationLast(const Correlation<T>& c)
        : c_(c),
          threads_(threads_for(c.flops())),
          folded_(c.depth < fold_below),
          blocks_(ceil_div(c.grid.positions(), block)),
          layout_(layout_panels<T>(c.tap_count * c.depth, c.columns, choose_vectors<T>(c.columns))),
          packed_(c.groups * layout_.size()),
          bias_(c.groups * layout_.panels * layout_.width()),
          zeros_(c.depth),
          pieces_(threads_ * pieces_of_worker()),
          rows_(folded_ ? threads_ * block * layout_.depth : 0),
          tasks_(c.groups * blocks_, threads_) {
        fill<T>(zeros_, c.depth, 0);
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range panels = split(c_.groups * layout_.panels, worker);
            for (int64_t i = panels.begin; i < panels.end; ++i) {
                pack(i / layout_.panels, i % layout_.panels);
                find_bias(i / layout_.panels, i % layout_.panels);
            }
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { multiply(worker, i / blocks_, i % blocks_); });
        });
    }

   private:
    static constexpr int64_t block = 96;  // pixels that share their pieces' addresses
    static constexpr int64_t fold_below = 16;

    int64_t pieces_of_worker() const { return larger<int64_t>(1, c_.tap_count) * block; }

    Packed<T> weights(int64_t group) const {
        Packed<T> b = layout_;
        b.data = packed_ + group * layout_.size();
        return b;
    }

    void pack(int64_t group, int64_t p) {
        const int64_t width = layout_.width();
        T* to = weights(group).panel(p);
        for (int64_t lane = 0; lane < width; ++lane, ++to) {
            const int64_t column = p * width + lane;
            const T* from = c_.w + group * c_.w_group + column * c_.w_column;
            for (int64_t d = 0; d < c_.depth; ++d, from += c_.w_depth)
                for (int64_t t = 0; t < c_.tap_count; ++t)
                    to[(t * c_.depth + d) * width] = column < c_.columns ? from[c_.taps[t].element] : T(0);
        }
    }

    T* bias(int64_t group, int64_t p) const { return bias_ + (group * layout_.panels + p) * layout_.width(); }

    void find_bias(int64_t group, int64_t p) {
        for (int64_t lane = 0; lane < layout_.width(); ++lane) {
            const int64_t column = p * layout_.width() + lane;
            bias(group, p)[lane] = c_.bias && column < c_.columns ? c_.bias[group * c_.columns + column] : T(0);
        }
    }

    void multiply(const Worker& worker, int64_t group, int64_t index) {
        const int64_t first = index * block, count = smaller(block, c_.grid.positions() - first);
        Position at[block];
        T* to[block];
        at[0] = position_of(c_.grid, first);
        for (int64_t r = 1; r < count; ++r) at[r] = after(c_.grid, at[r - 1]);
        for (int64_t r = 0; r < count; ++r) to[r] = c_.target + c_.target_at(at[r]) + group * c_.columns;
        const Rows<T> rows = find_rows(worker, group, at, count);
        const T* next[block];
        const int64_t coming = find_next(group, first + count, next);
        const Packed<T> b = weights(group);
        const int64_t tiles = ceil_div(count, max_tile_rows(b.vectors)), bytes = c_.depth * sizeof(T);
        for (int64_t p = 0; p < b.panels; ++p)
            for (int64_t i = 0; i < tiles; ++i) {
                const Range tile = split(count, i, tiles);
                const int height = static_cast<int>(tile.end - tile.begin);
                const int64_t column = p * b.width(), columns = smaller(b.width(), c_.columns - column);
                find_tile_to<T>(height, b.vectors)(
                    rows.from(tile.begin), b.panel(p), bias(group, p), to + tile.begin, column, columns,
                    AheadRows<T>(next, coming, 0, bytes, p * tiles + i, b.panels * tiles, b.depth));
                if (c_.activation == Activation::none) continue;
                for (int64_t r = tile.begin; r < tile.end; ++r)
                    map_part<T>(columns, to[r] + column, to[r] + column,
                                [&](auto value) { return activate(c_.activation, value); });
            }
    }

    // The pixels that the last tap meets for the block from position `first` on, which probably is this worker's next.
    int64_t find_next(int64_t group, int64_t first, const T** next) const {
        const int64_t count = smaller(block, c_.grid.positions() - first);
        next[0] = zeros_;
        if (count <= 0 || c_.tap_count == 0) return 0;
        const Tap& tap = c_.taps[c_.tap_count - 1];
        Position at = position_of(c_.grid, first);
        for (int64_t r = 0; r < count; ++r, at = after(c_.grid, at)) next[r] = source_at(group, at, tap);
        return count;
    }

    const T* source_at(int64_t group, const Position& at, const Tap& tap) const {
        const int64_t y = at.y * c_.step_y + tap.dy, x = at.x * c_.step_x + tap.dx;
        return c_.inside(y, x) ? c_.source + c_.source_shape.at(at.n, y, x) + group * c_.depth
                               : static_cast<const T*>(zeros_);
    }

    Rows<T> find_rows(const Worker& worker, int64_t group, const Position* at, int64_t count) {
        const T** pieces = pieces_ + worker.index * pieces_of_worker();
        for (int64_t t = 0; t < c_.tap_count; ++t)
            for (int64_t r = 0; r < count; ++r) pieces[t * block + r] = source_at(group, at[r], c_.taps[t]);
        if (!folded_) return {pieces, c_.depth, c_.tap_count, block};
        T* rows = rows_ + worker.index * block * layout_.depth;
        for (int64_t r = 0; r < count; ++r, rows += layout_.depth) {
            T* to = rows;
            for (int64_t t = 0; t < c_.tap_count; ++t)
                for (int64_t d = 0; d < c_.depth; ++d) *to++ = pieces[t * block + r][d];
            pieces[r] = rows;  // the row's first piece has been read
        }
        return {pieces, layout_.depth};
    }

    const Correlation<T>& c_;
    const int threads_;
    const bool folded_;
    const int64_t blocks_;
    const Packed<T> layout_;
    Buffer<T> packed_, bias_, zeros_;
    Buffer<const T*> pieces_;
    Buffer<T> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
