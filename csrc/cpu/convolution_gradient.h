// The gradient of a convolution by its weights and bias, for both orders of the channels: the correlation that made the
// output says which pixel of the input met which output at each tap.
#pragma once

#include "correlation_first.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

// Channels last: the product of weight_gradient.h over all pixels, with one right-hand factor for each tap; where there are
// few channels, one for all of them, put together a block of pixels at a time.
template <class T>
class ConvolutionGradientLast {
   public:
    // c: the forward correlation; g: the gradient by its target before the activation
    ConvolutionGradientLast(const Correlation<T>& c, const T* g, T* grad_w, T* grad_b, int64_t group)
        : c_(c),
          group_(group),
          folded_(c.depth < fold_below),
          threads_(threads_for(c.flops() / static_cast<double>(c.groups))),
          count_(grad_w ? c.tap_count : 0),
          block_{group * c.columns, c.columns, {0, -1}},
          operands_(1 + count_),
          rows_((1 + count_) * 2 * gradient::block<T>),
          folded_rows_(folded_ ? 2 * gradient::block<T> * count_ * c.depth : 0),
          gradient_(c.grid.positions(), g, c.groups * c.columns, &block_, 1, operands_, describe(grad_w, grad_b),
                    threads_) {}

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            gradient_.run(worker, [&](int64_t first, int64_t rows, int64_t place) {
                return prepare(worker, first, rows, place);
            });
        });
    }

   private:
    static constexpr int64_t fold_below = 16;

    // The last operand has no columns: it only carries the bias.
    int describe(T* grad_w, T* grad_b) {
        T* w = grad_w ? grad_w + group_ * c_.w_group : nullptr;
        T* b = grad_b ? grad_b + group_ * c_.columns : nullptr;
        int n = 0;
        if (folded_ && count_ > 0) {
            // One row of all taps, in the order of the weights.
            operands_[n++] = {rows_, count_ * c_.depth, w, nullptr, 0, c_.w_column, 1};
        } else {
            for (; n < count_; ++n)
                operands_[n] = {rows_ + n * 2 * gradient::block<T>,
                                c_.depth,
                                w + c_.taps[n].element,
                                nullptr,
                                0,
                                c_.w_column,
                                c_.w_depth};
        }
        operands_[n++] = {rows_, 0, nullptr, b, 0, 0, 0};
        return n;
    }

    bool prepare(const Worker& worker, int64_t first, int64_t rows, int64_t place) {
        const Range mine = split(rows, worker);
        Position at = position_of(c_.grid, first + mine.begin);
        for (int64_t k = mine.begin; k < mine.end; ++k, at = after(c_.grid, at)) {
            T* row = folded_rows_ + (place + k) * count_ * c_.depth;
            if (folded_) rows_[place + k] = row;
            for (int64_t t = 0; t < count_; ++t) {
                const int64_t y = at.y * c_.step_y + c_.taps[t].dy, x = at.x * c_.step_x + c_.taps[t].dx;
                const T* from =
                    c_.inside(y, x) ? c_.source + c_.source_shape.at(at.n, y, x) + group_ * c_.depth : nullptr;
                if (folded_)
                    for (int64_t d = 0; d < c_.depth; ++d) row[d * count_ + t] = from ? from[d] : T(0);
                else
                    rows_[t * 2 * gradient::block<T> + place + k] = from;
            }
        }
        return true;
    }

    const Correlation<T>& c_;
    const int64_t group_;
    const bool folded_;
    const int threads_;
    const int64_t count_;
    const GradientBlock block_;
    Buffer<GradientOperand<T>> operands_;
    Buffer<const T*> rows_;
    Buffer<T> folded_rows_;
    WeightGradient<T> gradient_;
};

// Channels first: dWᵀ = X·G a block of pixels at a time, X [taps of all channels][pixels] put together as in the forward
// pass, G [pixels][output channels] turned round. Blocks are added in their order.
template <class T>
class ConvolutionGradientFirst {
   public:
    ConvolutionGradientFirst(const Correlation<T>& c, const T* g, T* grad_w, T* grad_b, int64_t group)
        : c_(c),
          g_(g),
          grad_w_(grad_w),
          grad_b_(grad_b),
          group_(group),
          threads_(threads_for(c.flops() / static_cast<double>(c.groups))),
          depth_(grad_w ? c.depth * c.tap_count : 0),
          pixels_(choose_pixels()),
          right_(layout_panels<T>(pixels_, c.columns, choose_vectors<T>(c.columns))),
          tiles_(ceil_div(depth_, max_tile_rows(right_.vectors))),
          left_(depth_ * pixels_),
          packed_(right_.size()),
          sums_(right_.panels * depth_ * right_.width()),
          bias_(right_.panels * right_.width()),
          rows_(depth_),
          tasks_(right_.panels * tiles_, threads_) {
        right_.data = packed_;
        fill<T>(bias_, right_.panels * right_.width(), 0);
        for (int64_t k = 0; k < depth_; ++k) rows_[k] = left_ + k * pixels_;
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            for (int64_t first = 0; first < c_.grid.positions(); first += pixels_) {
                gather(worker, first);
                tasks_.reset(worker);
                wait_for_all(worker);
                tasks_.run(worker, [&](int64_t i) { multiply(i / tiles_, i % tiles_, first == 0); });
                wait_for_all(worker);
            }
            write(worker);
        });
    }

   private:
    int64_t choose_pixels() const {
        constexpr int64_t bytes = 512 << 10;
        const int64_t fit = bytes / (larger<int64_t>(1, depth_) * static_cast<int64_t>(sizeof(T)));
        const int64_t pixels = smaller<int64_t>(PixelRuns<T>::most, larger<int64_t>(32, fit));
        return smaller(ceil_div(pixels, lanes<T>) * lanes<T>, ceil_div(c_.grid.positions(), lanes<T>) * lanes<T>);
    }

    // Pixels beyond the last are zeros on both sides.
    void gather(const Worker& worker, int64_t first) {
        const int64_t count = smaller(pixels_, c_.grid.positions() - first);
        const Position at = position_of(c_.grid, first);
        const PixelRuns<T> runs(c_, first, count);
        const Range rows = split(depth_, worker), panels = split(right_.panels, worker);
        for (int64_t k = rows.begin; k < rows.end; ++k) {
            const int64_t d = k / c_.tap_count;
            runs.gather(c_, c_.source + (group_ * c_.depth + d) * c_.source_shape.plane(), c_.taps[k % c_.tap_count],
                        left_ + k * pixels_, pixels_);
        }
        const int64_t width = right_.width(), plane = c_.target_shape.plane();
        for (int64_t p = panels.begin; p < panels.end; ++p)
            for (int64_t lane = 0; lane < width; ++lane) {
                const int64_t column = p * width + lane;
                T* to = right_.panel(p) + lane;
                T sum = bias_[column];
                Position next = at;
                for (int64_t i = 0; i < pixels_;) {
                    const bool outside = column >= c_.columns || i >= count;
                    const int64_t run =
                        outside ? pixels_ - i : smaller(count - i, c_.grid.height * c_.grid.width - in_plane(next));
                    const T* from = outside ? nullptr : g_ + channel_of(next.n, column) * plane + in_plane(next);
                    for (int64_t j = 0; j < run; ++j, to += width) {
                        const T value = outside ? T(0) : from[j];
                        *to = value;
                        sum += value;
                    }
                    i += run;
                    next = {next.n + 1, 0, 0};
                }
                bias_[column] = sum;
            }
    }

    int64_t in_plane(const Position& at) const { return at.y * c_.grid.width + at.x; }
    int64_t channel_of(int64_t n, int64_t column) const {
        return n * c_.target_shape.channels + group_ * c_.columns + column;
    }

    void multiply(int64_t p, int64_t index, bool first) {
        alignas(64) T c[largest_tile_rows * max_vectors * lanes<T>];
        const Range rows = split(depth_, index, tiles_);
        const int height = static_cast<int>(rows.end - rows.begin);
        find_tile<T, false>(height, right_.vectors)(Rows<T>{rows_ + rows.begin, pixels_}, right_.panel(p), c,
                                                    Ahead{nullptr, 0});
        T* sum = sums_ + (p * depth_ + rows.begin) * right_.width();
        for (int64_t i = 0; i < height * right_.width(); i += lanes<T>)
            store(sum + i, first ? load(c + i) : load(sum + i) + load(c + i));
    }

    void write(const Worker& worker) {
        const Range columns = split(c_.columns, worker);
        const bool none = c_.grid.positions() == 0;
        for (int64_t column = columns.begin; column < columns.end; ++column) {
            const int64_t p = column / right_.width(), lane = column % right_.width();
            T* to = grad_w_ ? grad_w_ + group_ * c_.w_group + column * c_.w_column : nullptr;
            for (int64_t k = 0; k < depth_; ++k) to[k] = none ? T(0) : sums_[(p * depth_ + k) * right_.width() + lane];
            if (grad_b_) grad_b_[group_ * c_.columns + column] = bias_[column];
        }
    }

    const Correlation<T>& c_;
    const T* g_;
    T *grad_w_, *grad_b_;
    const int64_t group_;
    const int threads_;
    const int64_t depth_, pixels_;
    Packed<T> right_;
    const int64_t tiles_;
    Buffer<T> left_, packed_, sums_, bias_;
    Buffer<const T*> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
