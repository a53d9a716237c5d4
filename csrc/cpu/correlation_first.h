// Correlation of images in planes, one a channel: pixels are the columns of a product, the target's channels its rows.
//
// The source's values for a panel of pixels, all taps of all channels, are put together in cache, a row of pixels at a
// time; the weights are read where they are.
#pragma once

#include <cstring>

#include "correlation.h"

namespace tbptt {
namespace TBPTT_ISA {

// to [width] = the source's plane at one tap, for `count` positions of the grid from q on; zeros outside and beyond.
template <class T>
TBPTT_INLINE void gather_pixels(const Correlation<T>& c, const T* source, Tap tap, Position at, int64_t count, T* to,
                                int64_t width) {
    const int64_t plane_of_all = c.source_shape.plane() * c.source_shape.channels;
    for (int64_t done = 0; done < count;) {
        const int64_t run = smaller(count - done, c.grid.width - at.x);
        const int64_t y = at.y * c.step_y + tap.dy, x = at.x * c.step_x + tap.dx;
        const int64_t room = c.source_shape.width - x;
        int64_t begin = run, end = run;
        if (y >= 0 && y < c.source_shape.height && room > 0) {
            begin = smaller(run, x < 0 ? ceil_div(-x, c.step_x) : 0);
            end = larger(begin, smaller(run, ceil_div(room, c.step_x)));
        }
        const T* from = source + at.n * plane_of_all + y * c.source_shape.width + x;
        for (int64_t i = 0; i < begin; ++i) to[done + i] = T(0);
        if (c.step_x == 1)
            for (int64_t i = begin; i < end; ++i) to[done + i] = from[i];
        else
            for (int64_t i = begin; i < end; ++i) to[done + i] = from[i * c.step_x];
        for (int64_t i = end; i < run; ++i) to[done + i] = T(0);
        done += run;
        at.x = 0;
        if (++at.y == c.grid.height) {
            at.y = 0;
            ++at.n;
        }
    }
    for (int64_t i = count; i < width; ++i) to[i] = T(0);
}

template <class T>
class CorrelationFirst {
   public:
    explicit CorrelationFirst(const Correlation<T>& c)
        : c_(c),
          threads_(threads_for(c.flops())),
          depth_(c.depth * c.tap_count),
          vectors_(choose_panel()),
          width_(vectors_ * lanes<T>),
          panels_(ceil_div(c.grid.positions(), width_)),
          in_order_(c.w_depth == c.tap_count && elements_in_order()),
          packed_(in_order_ ? 0 : c.groups * c.columns * depth_),
          rows_(c.groups * c.columns),
          scratch_(threads_ * depth_ * width_),
          tasks_(c.groups * panels_, threads_) {}

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range rows = split(c_.groups * c_.columns, worker);
            for (int64_t i = rows.begin; i < rows.end; ++i) rows_[i] = find_row(i / c_.columns, i % c_.columns);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { multiply(worker, i / panels_, i % panels_); });
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

    bool elements_in_order() const {
        for (int64_t t = 0; t < c_.tap_count; ++t)
            if (c_.taps[t].element != t) return false;
        return true;
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
        const int64_t first = index * width_, count = smaller<int64_t>(width_, c_.grid.positions() - first);
        const Position at = position_of(c_.grid, first);
        T* panel = scratch_ + worker.index * depth_ * width_;
        for (int64_t d = 0; d < c_.depth; ++d) {
            const T* plane = c_.source + (group * c_.depth + d) * c_.source_shape.plane();
            for (int64_t t = 0; t < c_.tap_count; ++t)
                gather_pixels(c_, plane, c_.taps[t], at, count, panel + (d * c_.tap_count + t) * width_, width_);
        }
        int64_t offsets[max_vectors * lanes<T>];
        Position next = at;
        for (int64_t i = 0; i < count; ++i, next = after(c_.grid, next)) offsets[i] = c_.target_at(next);
        const Packed<T> b{panel, depth_, 1, vectors_};
        product<T>(rows_ + group * c_.columns, c_.columns, b, Range{0, 1},
                   [&](int64_t, int64_t row, int height, const T* c) {
                       for (int r = 0; r < height; ++r, c += width_)
                           write_row(group * c_.columns + row + r, c, offsets, count);
                   });
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
    const int64_t width_, panels_;
    const bool in_order_;
    Buffer<T> packed_;
    Buffer<const T*> rows_;
    Buffer<T> scratch_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
