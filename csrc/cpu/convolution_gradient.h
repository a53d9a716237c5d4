// The gradient of a convolution by its weights and bias, for both orders of the channels: the correlation that made the
// output says which pixel of the input met which output at each tap.
#pragma once

#include "correlation_first.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

// Channels last: the product of weight_gradient.h over all pixels, with one right-hand factor for each tap; where there are
// few channels, one for all of them, put together a block of pixels at a time. Wide layers take several passes, each for
// some output channels and some columns of the factors, so that what is packed at a time stays small.
template <class T>
class ConvolutionGradientLast {
   public:
    // c: the forward correlation; g: the gradient by its target before the activation
    ConvolutionGradientLast(const Correlation<T>& c, const T* g, T* grad_w, T* grad_b, int64_t group, int threads)
        : c_(c),
          g_(g),
          grad_w_(grad_w ? grad_w + group * c.w_group : nullptr),
          grad_b_(grad_b ? grad_b + group * c.columns : nullptr),
          group_(group),
          folded_(c.depth < fold_below),
          threads_(threads),
          length_(folded_ ? c.tap_count * c.depth : c.depth),
          panels_(ceil_div(length_, gradient::width<T>)),
          factors_(grad_w ? (folded_ ? 1 : c.tap_count) * panels_ : 0) {}

    void run() {
        const int64_t parts = ceil_div(c_.columns, most_columns * threads_);
        const int64_t factor_parts = ceil_div(factors_ * gradient::width<T>, most_factor_columns * threads_);
        for (int64_t i = 0; i < parts; ++i)
            for (int64_t j = 0; j < larger<int64_t>(1, factor_parts); ++j)
                Pass(*this, split(c_.columns, i, parts), j, split(factors_, j, larger<int64_t>(1, factor_parts))).run();
    }

   private:
    static constexpr int64_t fold_below = 16;
    static constexpr int64_t most_columns = 512, most_factor_columns = 1024;  // per thread, of a kilobyte each

    // Columns first … first+columns-1 of a tap's pixels, or of the rows of all taps.
    struct Piece {
        int64_t tap, first, columns;
    };

    class Pass {
       public:
        Pass(const ConvolutionGradientLast& all, Range columns, int64_t index, Range factors)
            : all_(all),
              block_{all.group_ * all.c_.columns + columns.begin, columns.end - columns.begin, {columns.begin, -1}},
              pieces_(factors.end - factors.begin),
              count_(cut(factors)),
              operands_(1 + count_),
              rows_((1 + count_) * row_count),
              folded_rows_(all.folded_ && count_ > 0 ? row_count * pieces_[0].columns : 0),
              gradient_(all.c_.grid.positions(), all.g_, all.c_.groups * all.c_.columns, &block_, 1, operands_,
                        describe(index == 0 ? all.grad_b_ : nullptr), all.threads_) {}

        void run() {
            run_parallel(all_.threads_, [this](const Worker& worker) {
                gradient_.run(worker, [&](int64_t first, int64_t rows, int64_t place) {
                    return prepare(worker, first, rows, place);
                });
            });
        }

       private:
        static constexpr int64_t row_count = 2 * gradient::block<T>;

        // Panels `factors` of all taps' panels, those of one tap together.
        int64_t cut(Range factors) {
            int64_t count = 0;
            for (int64_t i = factors.begin; i < factors.end; ++count) {
                const int64_t tap = i / all_.panels_, panel = i % all_.panels_;
                const int64_t more = smaller(all_.panels_ - panel, factors.end - i), first = panel * gradient::width<T>;
                pieces_[count] = {tap, first, smaller(more * gradient::width<T>, all_.length_ - first)};
                i += more;
            }
            return count;
        }

        // The last operand has no columns: it only carries the bias.
        int describe(T* grad_b) {
            const Correlation<T>& c = all_.c_;
            for (int64_t i = 0; i < count_; ++i) {
                const Piece& piece = pieces_[i];
                // folded rows are in the order of the weights
                T* w =
                    all_.grad_w_ + (all_.folded_ ? piece.first : c.taps[piece.tap].element + piece.first * c.w_depth);
                operands_[i] = {rows_ + i * row_count,       piece.columns, w, nullptr, 0, c.w_column,
                                all_.folded_ ? 1 : c.w_depth};
            }
            operands_[count_] = {rows_, 0, nullptr, grad_b, 0, 0, 0};
            return static_cast<int>(count_ + 1);
        }

        bool prepare(const Worker& worker, int64_t first, int64_t rows, int64_t place) {
            const Correlation<T>& c = all_.c_;
            const Range mine = split(rows, worker);
            Position at = position_of(c.grid, first + mine.begin);
            for (int64_t k = place + mine.begin; k < place + mine.end; ++k, at = after(c.grid, at))
                for (int64_t i = 0; i < count_; ++i) {
                    const Piece& piece = pieces_[i];
                    if (all_.folded_) {
                        rows_[k] = folded_rows_ + k * piece.columns;
                        fold(at, piece, folded_rows_ + k * piece.columns);
                    } else {
                        const T* from = source_at(at, c.taps[piece.tap]);
                        rows_[i * row_count + k] = from ? from + piece.first : nullptr;
                    }
                }
            return true;
        }

        // Element d·taps + t of a row is channel d at tap t.
        void fold(const Position& at, const Piece& piece, T* to) {
            const int64_t taps = all_.c_.tap_count, end = piece.first + piece.columns;
            for (int64_t t = 0; t < taps; ++t) {
                const T* from = source_at(at, all_.c_.taps[t]);
                for (int64_t i = piece.first + (t - piece.first % taps + taps) % taps; i < end; i += taps)
                    to[i - piece.first] = from ? from[i / taps] : T(0);
            }
        }

        const T* source_at(const Position& at, const Tap& tap) const {
            const Correlation<T>& c = all_.c_;
            const int64_t y = at.y * c.step_y + tap.dy, x = at.x * c.step_x + tap.dx;
            return c.inside(y, x) ? c.source + c.source_shape.at(at.n, y, x) + all_.group_ * c.depth : nullptr;
        }

        const ConvolutionGradientLast& all_;
        const GradientBlock block_;
        Buffer<Piece> pieces_;
        const int64_t count_;  // of pieces
        Buffer<GradientOperand<T>> operands_;
        Buffer<const T*> rows_;
        Buffer<T> folded_rows_;
        WeightGradient<T> gradient_;
    };

    const Correlation<T>& c_;
    const T* g_;
    T *grad_w_, *grad_b_;  // the group's, or null
    const int64_t group_;
    const bool folded_;
    const int threads_;
    const int64_t length_, panels_;  // of a tap's pixels, or of the rows of all taps: columns and panels
    const int64_t factors_;          // panels of all right-hand factors
};

// Channels first: dWᵀ = X·G a block of pixels at a time, X [taps of all channels][pixels] put together as in the forward
// pass, G [pixels][output channels] turned round. Blocks are added in their order.
template <class T>
class ConvolutionGradientFirst {
   public:
    ConvolutionGradientFirst(const Correlation<T>& c, const T* g, T* grad_w, T* grad_b, int64_t group, int threads)
        : c_(c),
          g_(g),
          grad_w_(grad_w),
          grad_b_(grad_b),
          group_(group),
          threads_(threads),
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
        constexpr int64_t left = 512 << 10, right = 1 << 20, size = sizeof(T);
        const int64_t fit =
            smaller(left / (larger<int64_t>(1, depth_) * size), right / (larger<int64_t>(1, c_.columns) * size));
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
        for (int64_t p = panels.begin; p < panels.end; ++p)
            for (int v = 0; v < right_.vectors; ++v)
                turn(at, count, p * right_.width() + v * lanes<T>, right_.panel(p) + v * lanes<T>);
    }

    // The gradients of a vector of channels from `column` on, at `count` pixels, a row each.
    void turn(Position at, int64_t count, int64_t column, T* to) {
        const int64_t width = right_.width(), plane = c_.target_shape.plane(), members = c_.columns - column;
        Vec<T> sum = load(bias_ + column);
        const T* end = to + pixels_ * width;
        for (int64_t run; count > 0; count -= run, at = {at.n + 1, 0, 0}) {
            run = smaller(count, c_.grid.height * c_.grid.width - in_plane(at));
            const T* from = g_ + channel_of(at.n, members > 0 ? column : 0) * plane + in_plane(at);
            for_columns<T>(from, plane, run, members, [&](int64_t k, Vec<T> values) {
                store(to + k * width, values);
                sum += values;
            });
            to += run * width;
        }
        for (; to < end; to += width) store(to, Vec<T>{});
        store(bias_ + column, sum);
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
