// Convolution of images with few channels that lie together: pixels are the rows of a product, read in pieces of a whole
// kernel row from a strip [kernel row][column][channel].
#pragma once

#include "pack.h"
#include "shallow.h"

namespace tbptt {
namespace TBPTT_ISA {

namespace shallow {

// The strips that a row of outputs meets, in the order [kernel row][column][channel], of images in either order.
template <class T>
class Strips {
   public:
    // for `width` outputs
    Strips(const ConvolutionShape& s, const T* x, int64_t width)
        : s_(s),
          x_(x),
          columns_((width - 1) * s.stride_x + reach_x(s)),
          pitch_(round_up(columns_, lanes<T>) * s.inputs + lanes<T>) {}

    // Where the next kernel row begins, the size of a strip and of the memory to make it.
    int64_t pitch() const { return pitch_; }
    int64_t size() const { return s_.kernel_height * pitch_; }
    int64_t scratch() const { return s_.channels_last || s_.inputs == 1 ? 0 : pitch_; }

    // What the outputs of row y of image n meet, from column x0 on.
    void copy(int64_t n, int64_t y, int64_t x0, T* to, T* scratch) const {
        const int64_t first = x0 * s_.stride_x - s_.pad_left;
        for (int64_t ky = 0; ky < s_.kernel_height; ++ky, to += pitch_) {
            const int64_t from = y * s_.stride_y - s_.pad_top + ky * s_.dilation_y;
            const bool inside = from >= 0 && from < s_.height;
            if (s_.channels_last) {
                const T* row = inside ? x_ + (n * s_.height + from) * s_.width * s_.inputs : nullptr;
                copy_padded(row, s_.width * s_.inputs, first * s_.inputs, columns_ * s_.inputs, to);
                continue;
            }
            const int64_t line = round_up(columns_, lanes<T>);
            const T* planes[most_channels];
            for (int64_t c = 0; c < s_.inputs; ++c) {
                const T* row = inside ? x_ + ((n * s_.inputs + c) * s_.height + from) * s_.width : nullptr;
                T* plane = s_.inputs == 1 ? to : scratch + c * line;
                copy_padded(row, s_.width, first, columns_, plane);
                planes[c] = plane;
            }
            if (s_.inputs > 1) join<T>(planes, s_.inputs, line, to);
        }
    }

    static constexpr int64_t most_channels = 16;

   private:
    const ConvolutionShape& s_;
    const T* x_;
    const int64_t columns_, pitch_;
};

// The rows of the product with the weights, in pieces of neighbours in a strip.
struct Pieces {
    int64_t length, count;  // of a row
    const ConvolutionShape& s;

    explicit Pieces(const ConvolutionShape& shape)
        : length(shape.inputs * (shape.dilation_x == 1 ? shape.kernel_width : 1)),
          count(shape.kernel_height * (shape.dilation_x == 1 ? 1 : shape.kernel_width)),
          s(shape) {}

    // Where piece t of the first output begins in a strip, and the next output's.
    int64_t begin(int64_t t, int64_t pitch) const {
        if (s.dilation_x == 1) return t * pitch;
        return t / s.kernel_width * pitch + t % s.kernel_width * s.dilation_x * s.inputs;
    }
    int64_t step() const { return s.stride_x * s.inputs; }

    // Too short: rows are put together instead.
    bool folded() const { return length < 6 && count > 1; }

    // to [outputs][count·length] = the rows; the last vector goes beyond
    template <class T>
    void fold(const T* strip, int64_t pitch, int64_t outputs, T* to) const {
        for (int64_t i = 0; i < outputs; ++i, strip += step())
            for (int64_t t = 0; t < count; ++t, to += length)
                for (int64_t j = 0; j < length; j += lanes<T>) store(to + j, load(strip + begin(t, pitch) + j));
    }
};

}  // namespace shallow

template <class T>
class ShallowLast {
   public:
    explicit ShallowLast(const ConvolutionForward<T>& p)
        : p_(p),
          s_(p.shape),
          threads_(threads_for(shallow::flops(s_))),
          pieces_(s_),
          width_(smaller(most_columns, s_.out_width)),
          strips_(s_, p.x, width_),
          blocks_(ceil_div(s_.out_width, width_)),
          weights_(layout_panels<T>(s_.inputs * shallow::taps(s_), s_.outputs, choose_vectors<T>(s_.outputs))),
          packed_(weights_.size()),
          strip_size_(strips_.size() + strips_.scratch() + lanes<T>),
          strip_(threads_ * strip_size_),
          folded_size_(pieces_.folded() ? width_ * weights_.depth + lanes<T> : 0),
          folded_(threads_ * folded_size_),
          rows_(threads_ * pieces_.count * width_),
          tasks_(s_.batch * s_.out_height * blocks_, threads_) {
        weights_.data = packed_;
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range panels = split(weights_.panels, worker);
            for (int64_t i = panels.begin; i < panels.end; ++i) pack(i);
            find_rows(worker);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { make(worker, i); });
        });
    }

   private:
    static constexpr int64_t most_columns = 256;

    T* strip(const Worker& worker) const { return strip_ + worker.index * strip_size_; }
    T* folded(const Worker& worker) const { return folded_ + worker.index * folded_size_; }

    // Rows of the product in the order of a strip: kernel row, kernel column, channel.
    void pack(int64_t p) {
        T* to = weights_.panel(p);
        for (int64_t t = 0; t < shallow::taps(s_); ++t)
            for (int64_t c = 0; c < s_.inputs; ++c)
                for (int64_t lane = 0; lane < weights_.width(); ++lane) {
                    const int64_t k = p * weights_.width() + lane;
                    *to++ = k < s_.outputs ? p_.w[(k * s_.inputs + c) * shallow::taps(s_) + t] : T(0);
                }
    }

    // The same for every strip.
    void find_rows(const Worker& worker) {
        const T** rows = rows_ + worker.index * pieces_.count * width_;
        for (int64_t i = 0; i < width_; ++i)
            if (pieces_.folded())
                rows[i] = folded(worker) + i * weights_.depth;
            else
                for (int64_t t = 0; t < pieces_.count; ++t)
                    rows[t * width_ + i] = strip(worker) + pieces_.begin(t, strips_.pitch()) + i * pieces_.step();
    }

    void make(const Worker& worker, int64_t task) {
        const int64_t x0 = task % blocks_ * width_, row = task / blocks_, width = smaller(width_, s_.out_width - x0);
        T* const from = strip(worker);
        strips_.copy(row / s_.out_height, row % s_.out_height, x0, from, from + strips_.size());
        if (pieces_.folded()) pieces_.fold(from, strips_.pitch(), width, folded(worker));
        const T* const* at = rows_ + worker.index * pieces_.count * width_;
        const Rows<T> rows =
            pieces_.folded() ? Rows<T>{at, weights_.depth} : Rows<T>{at, pieces_.length, pieces_.count, width_};
        T* out = p_.y + (row * s_.out_width + x0) * s_.outputs;
        product<T>(rows, width, weights_, Range{0, weights_.panels},
                   [&](int64_t p, int64_t first, int height, const T* c) {
                       for (int r = 0; r < height; ++r, c += weights_.width())
                           write_columns(out + (first + r) * s_.outputs, s_.outputs, p * weights_.width(),
                                         weights_.width(), c, [&](Vec<T> sum, int64_t k) {
                                             const Vec<T> b = p_.b ? load_partial(p_.b + k, s_.outputs - k) : Vec<T>{};
                                             return activate(p_.activation, Wide<T, 1>{{sum + b}}).part[0];
                                         });
                   });
    }

    const ConvolutionForward<T>& p_;
    const ConvolutionShape& s_;
    const int threads_;
    const shallow::Pieces pieces_;
    const int64_t width_;  // outputs of a block
    const shallow::Strips<T> strips_;
    const int64_t blocks_;
    Packed<T> weights_;
    Buffer<T> packed_;
    const int64_t strip_size_;
    Buffer<T> strip_;
    const int64_t folded_size_;
    Buffer<T> folded_;
    Buffer<const T*> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
