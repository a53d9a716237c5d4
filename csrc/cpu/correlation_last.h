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
          far_(layout_.size() * static_cast<int64_t>(sizeof(T)) > core_cache),
          finishes_(c.activation == Activation::none || c.activation == Activation::relu),
          streams_(finishes_ && beyond_cache(c) && layout_.panels * layout_.width() == c.columns),
          in_order_(c.w_depth == c.tap_count && taps_in_order(c)),
          packed_(c, kernel_id, layout_.vectors, c.groups * layout_.size()),
          bias_(c.groups * layout_.panels * layout_.width()),
          zeros_(c.depth),
          pieces_(threads_ * pieces_of_worker()),
          rows_(folded_ ? threads_ * block * layout_.depth : 0),
          tasks_(c.groups * blocks_, threads_) {
        fill<T>(zeros_, c.depth, 0);
        for (int64_t i = 0; i < c.groups * layout_.panels; ++i) find_bias(i / layout_.panels, i % layout_.panels);
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range panels = split(packed_.filled() ? 0 : c_.groups * layout_.panels, worker);
            for (int64_t i = panels.begin; i < panels.end; ++i) pack(i / layout_.panels, i % layout_.panels);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { multiply(worker, i / blocks_, i % blocks_); });
            if (streams_) finish_streams();
        });
        packed_.complete();
    }

   private:
    static constexpr int64_t kernel_id = 0;
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
        if (in_order_) {
            // All of a column's kernels lie in one row [depth][tap].
            for (int64_t v = 0; v < layout_.vectors; ++v, to += lanes<T>) {
                const int64_t column = p * width + v * lanes<T>, count = c_.columns - column;
                const T* from = c_.w + group * c_.w_group + (count > 0 ? column : 0) * c_.w_column;
                int64_t d = 0, t = 0;
                for_columns<T>(from, c_.w_column, layout_.depth, count, [&](int64_t, Vec<T> values) {
                    store(to + (t * c_.depth + d) * width, values);
                    if (++t < c_.tap_count) return;
                    t = 0, ++d;
                });
            }
            return;
        }
        // Else the columns of one depth are neighbours.
        const int64_t column = p * width, count = smaller(width, c_.columns - column);
        const T* from = c_.w + group * c_.w_group + column * c_.w_column;
        for (int64_t d = 0; d < c_.depth; ++d, from += c_.w_depth)
            for (int64_t t = 0; t < c_.tap_count; ++t) {
                const T* element = from + c_.taps[t].element;
                T* row = to + (t * c_.depth + d) * width;
                if (c_.w_column == 1)
                    for (int64_t j = 0; j < width; j += lanes<T>) store(row + j, load_partial(element + j, count - j));
                else
                    for (int64_t j = 0; j < width; ++j) row[j] = j < count ? element[j * c_.w_column] : T(0);
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
        const int64_t tiles = ceil_div(count, max_tile_rows(b.vectors)), size = sizeof(T);
        const T least = c_.activation == Activation::relu ? T(0) : -static_cast<T>(__builtin_inf());
        for (int64_t p = 0; p < b.panels; ++p) {
            const int64_t column = p * b.width(), columns = smaller(b.width(), c_.columns - column);
            const T* panel = b.panel(p + 1 < b.panels ? p + 1 : 0);
            for (int64_t i = 0; i < tiles; ++i) {
                const Range tile = split(count, i, tiles);
                const AheadRows<T> ahead =
                    far_ ? AheadRows<T>(&panel, 1, 0, b.panel_size() * size, i, tiles, b.depth)
                         : AheadRows<T>(next, coming, 0, c_.depth * size, p * tiles + i, b.panels * tiles, b.depth);
                find_tile_to<T>(static_cast<int>(tile.end - tile.begin), b.vectors)(
                    rows.from(tile.begin), b.panel(p),
                    {to + tile.begin, column, columns, bias(group, p), least, streams_}, ahead);
                if (finishes_) continue;
                for (int64_t r = tile.begin; r < tile.end; ++r)
                    map_part<T>(columns, to[r] + column, to[r] + column,
                                [&](auto value) { return activate(c_.activation, value); });
            }
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
    const bool far_;       // the weights are in no worker's cache
    const bool finishes_;  // the tiles do, but for an activation that costs more than a comparison
    const bool streams_, in_order_;
    KernelWeights<T> packed_;
    Buffer<T> bias_, zeros_;
    Buffer<const T*> pieces_;
    Buffer<T> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
