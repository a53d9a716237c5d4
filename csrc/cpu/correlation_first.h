// Correlation of images in planes, one a channel: pixels are the columns of a product, the target's channels its rows.
//
// The source's values for a panel of pixels, all taps of all channels, are put together in cache, a row of pixels at a
// time; the weights are read where they are.
#pragma once

#include "correlation.h"
#include "interleave.h"

namespace tbptt {
namespace TBPTT_ISA {

// Neighbouring positions of the grid in rows: what a panel of pixels is made of.
template <class T>
class PixelRuns {
   public:
    static constexpr int64_t most = 256;

    // `count` positions, at most `most`, from `first` on
    PixelRuns(const Correlation<T>& c, int64_t first, int64_t count) {
        Position at = position_of(c.grid, first);
        for (int64_t done = 0; done < count; at = row_after(c.grid, at)) {
            const int64_t length = smaller(count - done, c.grid.width - at.x);
            const int64_t plane = at.n * c.source_shape.channels * c.source_shape.plane();
            runs_[count_++] = {plane, at.y * c.step_y, at.x * c.step_x, done, length};
            done += length;
        }
    }

    // to [width] = the source's plane at one tap, for the positions that were found; zeros outside and beyond.
    void gather(const Correlation<T>& c, const T* source, const Tap& tap, T* to, int64_t width) const {
        const int64_t height = c.source_shape.height, row = c.source_shape.width, step = c.step_x;
        int64_t end = 0;
        for (int64_t k = 0; k < count_; ++k) {
            const Run& run = runs_[k];
            const int64_t y = run.y + tap.dy, x = run.x + tap.dx;
            // from[-x … room-1] is the source's row
            const int64_t room = y >= 0 && y < height ? row - x : 0;
            const T* from = source + run.plane + y * row + x;
            T* out = to + run.begin;
            if (step == 2)
                for (int64_t i = 0; i < run.length; i += lanes<T>) {
                    const int64_t before = -x - 2 * i, left = room - 2 * i, next = lanes<T>;
                    const Vec<T> values = every_second<T>(load_range(from + 2 * i, before, left),
                                                          load_range(from + 2 * i + next, before - next, left - next));
                    store_partial(out + i, values, run.length - i);
                }
            else if (step != 1)
                for (int64_t i = 0, offset = 0; i < run.length; ++i, offset += step)
                    out[i] = offset >= -x && offset < room ? from[offset] : T(0);
            else
                for (int64_t i = 0; i < run.length; i += lanes<T>) {
                    const bool whole = x + i >= 0 && room - i >= lanes<T> && run.length - i >= lanes<T>;
                    if (whole)
                        store(out + i, load(from + i));
                    else
                        store_partial(out + i, load_range(from + i, -x - i, room - i), run.length - i);
                }
            end = run.begin + run.length;
        }
        for (; end < width; ++end) to[end] = T(0);
    }

   private:
    struct Run {
        int64_t plane, y, x;  // in the source, before a tap is added
        int64_t begin, length;
    };

    static Position row_after(const Grid& grid, const Position& at) {
        return at.y + 1 < grid.height ? Position{at.n, at.y + 1, 0} : Position{at.n + 1, 0, 0};
    }

    Run runs_[most];
    int64_t count_ = 0;
};

template <class T>
class CorrelationFirst {
   public:
    explicit CorrelationFirst(const Correlation<T>& c)
        : c_(c),
          threads_(threads_for(c.flops())),
          depth_(c.depth * c.tap_count),
          vectors_(choose_panel()),
          width_(vectors_ * lanes<T>),
          together_(choose_panels()),
          blocks_(ceil_div(c.grid.positions(), together_ * width_)),
          in_order_(c.w_depth == c.tap_count && taps_in_order(c)),
          packed_(in_order_ ? 0 : c.groups * c.columns * depth_),
          rows_(c.groups * c.columns),
          scratch_(threads_ * together_ * depth_ * width_),
          tasks_(c.groups * blocks_, threads_) {}

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range rows = split(c_.groups * c_.columns, worker);
            for (int64_t i = rows.begin; i < rows.end; ++i) rows_[i] = find_row(i / c_.columns, i % c_.columns);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { multiply(worker, i / blocks_, i % blocks_); });
        });
    }

   private:
    // Wide panels are fastest while they stay in the second-level cache.
    int choose_panel() const {
        constexpr int64_t bytes = 512 << 10;
        const int64_t vectors = bytes / larger<int64_t>(1, depth_ * lanes<T> * static_cast<int64_t>(sizeof(T)));
        const int64_t needed = ceil_div(c_.grid.positions(), lanes<T>);
        return static_cast<int>(larger<int64_t>(1, smaller<int64_t>(smaller<int64_t>(vectors, max_vectors), needed)));
    }

    // Panels that a block of pixels is made of: they share the way to the target's planes, of which there are many and far
    // apart.
    int64_t choose_panels() const {
        constexpr int64_t bytes = 512 << 10;
        const int64_t fit = bytes / larger<int64_t>(1, depth_ * width_ * static_cast<int64_t>(sizeof(T)));
        const int64_t few = ceil_div(c_.grid.positions(), 2 * threads_ * width_);
        return larger<int64_t>(1, smaller(smaller(fit, PixelRuns<T>::most / width_), few));
    }

    const T* find_row(int64_t group, int64_t column) {
        const T* from = c_.w + group * c_.w_group + column * c_.w_column;
        if (in_order_) return from;
        T* row = packed_ + (group * c_.columns + column) * depth_;
        for (int64_t d = 0; d < c_.depth; ++d, from += c_.w_depth)
            for (int64_t t = 0; t < c_.tap_count; ++t) row[d * c_.tap_count + t] = from[c_.taps[t].element];
        return row;
    }

    void multiply(const Worker& worker, int64_t group, int64_t index) {
        const int64_t first = index * together_ * width_;
        const int64_t count = smaller<int64_t>(together_ * width_, c_.grid.positions() - first);
        const int64_t panels = ceil_div(count, width_), panel_size = depth_ * width_;
        T* panel = scratch_ + worker.index * together_ * panel_size;
        for (int64_t p = 0; p < panels; ++p)
            gather(group, first + p * width_, smaller(width_, count - p * width_), panel + p * panel_size);
        int64_t offsets[PixelRuns<T>::most];
        Position next = position_of(c_.grid, first);
        for (int64_t i = 0; i < count; ++i, next = after(c_.grid, next)) offsets[i] = c_.target_at(next);
        alignas(64) T c[largest_tile_rows * max_vectors * lanes<T>];
        const int64_t tiles = ceil_div(c_.columns, max_tile_rows(vectors_));
        for (int64_t i = 0; i < tiles; ++i) {
            const Range rows = split(c_.columns, i, tiles);
            const int height = static_cast<int>(rows.end - rows.begin);
            const Rows<T> weights{rows_ + group * c_.columns + rows.begin, depth_};
            for (int64_t p = 0; p < panels; ++p) {
                const int64_t begin = p * width_, members = smaller(width_, count - begin);
                for (int64_t row = rows.begin; row < rows.end; ++row)
                    fetch_row(group * c_.columns + row, offsets + begin, members);
                find_tile<T, false>(height, vectors_)(weights, panel + p * panel_size, c, Ahead{nullptr, 0});
                for (int64_t r = 0; r < height; ++r)
                    write_row(group * c_.columns + rows.begin + r, c + r * width_, offsets + begin, members);
            }
        }
    }

    // to [depth][width] = the source at `count` positions from `first` on
    void gather(int64_t group, int64_t first, int64_t count, T* to) const {
        const PixelRuns<T> runs(c_, first, count);
        for (int64_t d = 0; d < c_.depth; ++d) {
            const T* plane = c_.source + (group * c_.depth + d) * c_.source_shape.plane();
            for (int64_t t = 0; t < c_.tap_count; ++t, to += width_) runs.gather(c_, plane, c_.taps[t], to, width_);
        }
    }

    // The lines are owned when they are written.
    void fetch_row(int64_t channel, const int64_t* offsets, int64_t count) const {
        const T* plane = c_.target + channel * c_.target_shape.plane();
        for (int64_t i = 0; i < count; i += 64 / sizeof(T)) prefetch_to_write(plane + offsets[i]);
    }

    void write_row(int64_t channel, const T* c, const int64_t* offsets, int64_t count) {
        T* plane = c_.target + channel * c_.target_shape.plane();
        const Vec<T> bias = broadcast(c_.bias ? c_.bias[channel] : T(0));
        for (int64_t i = 0; i < count; i += lanes<T>) {
            const Vec<T> value = c_.finish(load(c + i), bias);
            const int64_t members = smaller<int64_t>(lanes<T>, count - i);
            if (offsets[i + members - 1] - offsets[i] == members - 1)
                store_partial(plane + offsets[i], value, members);
            else
                for (int64_t lane = 0; lane < members; ++lane) plane[offsets[i + lane]] = value[lane];
        }
    }

    const Correlation<T>& c_;
    const int threads_;
    const int64_t depth_;
    const int vectors_;
    const int64_t width_;
    const int64_t together_, blocks_;  // panels of a block; blocks
    const bool in_order_;
    Buffer<T> packed_;
    Buffer<const T*> rows_;
    Buffer<T> scratch_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
