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
          streams_(beyond_cache(c) && layout_.panels * layout_.width() == c.columns),
          in_order_(c.w_depth == c.tap_count && taps_in_order(c)),
          packed_(c, kernel_id, layout_.vectors, c.groups * layout_.size()),
          zeros_(c.depth),
          pieces_(threads_ * pieces_of_worker()),
          rows_(folded_ ? threads_ * block * layout_.depth : 0),
          tasks_(c.groups * blocks_, threads_) {
        fill<T>(zeros_, c.depth, 0);
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
                for_columns<T>(from, c_.w_column, layout_.depth, count, [&](int64_t k, Vec<T> values) {
                    store(to + (k % c_.tap_count * c_.depth + k / c_.tap_count) * width, values);
                });
            }
            return;
        }
        for (int64_t lane = 0; lane < width; ++lane, ++to) {
            const int64_t column = p * width + lane;
            const T* from = c_.w + group * c_.w_group + column * c_.w_column;
            for (int64_t d = 0; d < c_.depth; ++d, from += c_.w_depth)
                for (int64_t t = 0; t < c_.tap_count; ++t)
                    to[(t * c_.depth + d) * width] = column < c_.columns ? from[c_.taps[t].element] : T(0);
        }
    }

    void multiply(const Worker& worker, int64_t group, int64_t index) {
        const int64_t first = index * block, count = smaller(block, c_.grid.positions() - first);
        Position at[block];
        at[0] = position_of(c_.grid, first);
        for (int64_t r = 1; r < count; ++r) at[r] = after(c_.grid, at[r - 1]);
        const Rows<T> rows = find_rows(worker, group, at, count);
        const Packed<T> b = weights(group);
        product<T>(rows, count, b, Range{0, b.panels}, [&](int64_t p, int64_t row, int height, const T* c) {
            for (int r = 0; r < height; ++r, c += b.width()) {
                T* to = c_.target + c_.target_at(at[row + r]) + group * c_.columns;
                const T* bias = c_.bias ? c_.bias + group * c_.columns : nullptr;
                const auto finish = [&](Vec<T> sum, int64_t j) {
                    return c_.finish(sum, bias ? load_partial(bias + j, c_.columns - j) : Vec<T>{});
                };
                if (streams_)
                    for (int64_t j = 0; j < b.width(); j += lanes<T>)
                        stream(to + p * b.width() + j, finish(load(c + j), p * b.width() + j));
                else
                    write_columns(to, c_.columns, p * b.width(), b.width(), c, finish);
            }
        });
    }

    Rows<T> find_rows(const Worker& worker, int64_t group, const Position* at, int64_t count) {
        const T** pieces = pieces_ + worker.index * pieces_of_worker();
        for (int64_t t = 0; t < c_.tap_count; ++t)
            for (int64_t r = 0; r < count; ++r) {
                const int64_t y = at[r].y * c_.step_y + c_.taps[t].dy, x = at[r].x * c_.step_x + c_.taps[t].dx;
                pieces[t * block + r] = c_.inside(y, x)
                                            ? c_.source + c_.source_shape.at(at[r].n, y, x) + group * c_.depth
                                            : static_cast<const T*>(zeros_);
            }
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
    const bool streams_, in_order_;
    KernelWeights<T> packed_;
    Buffer<T> zeros_;
    Buffer<const T*> pieces_;
    Buffer<T> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
