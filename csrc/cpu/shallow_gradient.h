// The gradient by the weights and bias of a convolution of images with few channels: Σ over pixels of what a pixel met,
// read from a strip, times the gradients by its output channels, which are the lanes.
//
// Sums over chunks of rows that the problem's sizes fix are added in their order, so threads do not change a bit.
#pragma once

#include "shallow_strips.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ShallowGradient {
   public:
    ShallowGradient(const ConvolutionShape& s, const T* x, const T* g, T* grad_w, T* grad_b)
        : s_(s),
          g_(g),
          grad_w_(grad_w),
          grad_b_(grad_b),
          threads_(threads_for(shallow::flops(s))),
          pieces_(s),
          depth_(s.inputs * shallow::taps(s)),
          width_(smaller(most_pixels, s.out_width)),
          strips_(s, x, width_),
          height_(clamp(wanted_pixels / width_, 1, larger<int64_t>(1, strip_elements / strips_.size()))),
          blocks_(ceil_div(s.out_width, width_)),
          rows_(s.batch * s.out_height),
          padded_(round_up(s.outputs, lanes<T>)),
          in_place_(s.channels_last && padded_ == s.outputs),
          sums_size_((depth_ + 1) * padded_),
          chunks_(clamp(sums_bytes / (sums_size_ * static_cast<int64_t>(sizeof(T))), 1, most_chunks)),
          begins_(pieces_.count),
          sums_(chunks_ * sums_size_),
          scratch_size_(height_ * strips_.size() + strips_.scratch() + folded_size() + turned_size() + lanes<T>),
          scratch_(threads_ * scratch_size_),
          tasks_(chunks_, threads_) {
        for (int64_t t = 0; t < pieces_.count; ++t) begins_[t] = pieces_.begin(t, strips_.pitch());
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            tasks_.run(worker, [&](int64_t i) { add_chunk(worker, i); });
            wait_for_all(worker);
            write(split(s_.outputs, worker));
        });
    }

   private:
    static constexpr int64_t most_pixels = 256, wanted_pixels = 128;  // of a block
    static constexpr int64_t strip_elements = (256 << 10) / sizeof(T);
    static constexpr int64_t most_chunks = 16, sums_bytes = 2 << 20;

    int64_t folded_size() const {
        return pieces_.folded() ? round_up(height_ * width_ * depth_, lanes<T>) + lanes<T> : 0;
    }
    int64_t turned_size() const { return in_place_ ? 0 : (height_ * width_ + lanes<T>)*padded_; }

    void add_chunk(const Worker& worker, int64_t chunk) {
        T* sums = sums_ + chunk * sums_size_;
        fill<T>(sums, sums_size_, 0);
        const Range mine = split(rows_, chunk, chunks_);
        for (int64_t row = mine.begin; row < mine.end; row += height_)
            for (int64_t block = 0; block < blocks_; ++block)
                add_block(worker, row, smaller(row + height_, mine.end) - row, block * width_, sums);
    }

    // `rows` rows from `row` on, counted over all images, from column x0 on.
    void add_block(const Worker& worker, int64_t row, int64_t rows, int64_t x0, T* sums) {
        const int64_t width = smaller(width_, s_.out_width - x0);
        T* const strip = scratch_ + worker.index * scratch_size_;
        T* const scratch = strip + height_ * strips_.size();
        T* const folded = scratch + strips_.scratch();
        T* const turned = folded + folded_size();
        const T* g = in_place_ ? g_ + (row * s_.out_width + x0) * s_.outputs : turned;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t n = (row + r) / s_.out_height, y = (row + r) % s_.out_height;
            if (grad_w_) strips_.copy(n, y, x0, strip + r * strips_.size(), scratch);
        }
        if (!in_place_) turn(row, rows, x0, width, turned);
        if (grad_b_) add_bias(rows * width, g, sums + depth_ * padded_);
        if (!grad_w_) return;
        if (pieces_.folded()) {
            for (int64_t r = 0; r < rows; ++r)
                pieces_.fold<T>(strip + r * strips_.size(), begins_, width, folded + r * width * depth_);
            multiply(rows, width, folded, depth_, width * depth_, depth_, g, sums);
            return;
        }
        for (int64_t t = 0; t < pieces_.count; ++t)
            multiply(rows, width, strip + begins_[t], pieces_.step(), strips_.size(), pieces_.length, g,
                     sums + t * pieces_.length * padded_);
    }

    // to [rows][width][padded outputs] = the gradients, pixels of a whole row and the next being neighbours
    void turn(int64_t row, int64_t rows, int64_t x0, int64_t width, T* to) const {
        const int64_t plane = s_.out_height * s_.out_width;
        for (int64_t end = row + rows; row < end;) {
            const int64_t n = row / s_.out_height, y = row % s_.out_height;
            const int64_t together = blocks_ > 1 ? 1 : smaller(end - row, s_.out_height - y);
            const int64_t pixels = together * width, first = y * s_.out_width + x0;
            if (s_.channels_last)
                copy_rows(g_ + (n * plane + first) * s_.outputs, pixels, to);
            else
                transpose_block(g_ + n * s_.outputs * plane + first, plane, s_.outputs, pixels, to, padded_);
            to += pixels * padded_;
            row += together;
        }
    }

    void copy_rows(const T* from, int64_t rows, T* to) const {
        for (int64_t i = 0; i < rows; ++i, from += s_.outputs, to += padded_)
            for (int64_t k = 0; k < padded_; k += lanes<T>) store(to + k, load_partial(from + k, s_.outputs - k));
    }

    void add_bias(int64_t pixels, const T* g, T* sums) const {
        constexpr int together = 4;  // sums whose latencies overlap
        for (int64_t k = 0; k < padded_; k += lanes<T>) {
            Vec<T> sum[together] = {};
            int64_t i = 0;
            for (; i + together <= pixels; i += together)
                for (int j = 0; j < together; ++j) sum[j] += load(g + (i + j) * padded_ + k);
            for (; i < pixels; ++i) sum[0] += load(g + i * padded_ + k);
            store(sums + k, load(sums + k) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
        }
    }

    // sums [length][padded outputs], in panels of vectors::[length][vectors], += a [rows][width][length] · g
    void multiply(int64_t rows, int64_t width, const T* a, int64_t a_step, int64_t a_row, int64_t length, const T* g,
                  T* sums) const {
        const int64_t tiles = ceil_div(length, gradient::height);
        for (int64_t k = 0; k < padded_; k += gradient::width<T>) {
            const int vectors = static_cast<int>(smaller<int64_t>(gradient::vectors, (padded_ - k) / lanes<T>));
            for (int64_t i = 0; i < tiles; ++i) {
                const Range part = split(length, i, tiles);
                gradient::find_tile<T, false>(static_cast<int>(part.end - part.begin), vectors)(
                    rows, width, a + part.begin, a_step, a_row, g + k, padded_,
                    sums + k * length + part.begin * vectors * lanes<T>, AheadRows<T>(nullptr));
            }
        }
    }

    // Where element i of a piece's rows has the sum for output channel k, see multiply.
    int64_t place(int64_t i, int64_t k) const {
        const int64_t length = pieces_.folded() ? depth_ : pieces_.length, first = i / length * length;
        const int64_t panel = k / gradient::width<T> * gradient::width<T>;
        const int64_t width = smaller<int64_t>(gradient::width<T>, padded_ - panel);
        return first * padded_ + panel * length + (i - first) * width + k - panel;
    }

    void write(Range outputs) const {
        for (int64_t k = outputs.begin; k < outputs.end; ++k) {
            for (int64_t i = 0; grad_w_ && i < depth_; ++i) {
                const int64_t tap = i / s_.inputs, c = i % s_.inputs;
                grad_w_[(k * s_.inputs + c) * shallow::taps(s_) + tap] = total(place(i, k));
            }
            if (grad_b_) grad_b_[k] = total(depth_ * padded_ + k);
        }
    }

    T total(int64_t place) const {
        T sum = 0;
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += sums_[chunk * sums_size_ + place];
        return sum;
    }

    const ConvolutionShape& s_;
    const T* g_;
    T *grad_w_, *grad_b_;
    const int threads_;
    const shallow::Pieces pieces_;
    const int64_t depth_;
    const int64_t width_;  // pixels of a block
    const shallow::Strips<T> strips_;
    const int64_t height_;
    const int64_t blocks_, rows_;
    const int64_t padded_;  // output channels, in whole vectors
    const bool in_place_;
    const int64_t sums_size_, chunks_;
    Buffer<int64_t> begins_;
    Buffer<T> sums_;
    const int64_t scratch_size_;
    Buffer<T> scratch_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
