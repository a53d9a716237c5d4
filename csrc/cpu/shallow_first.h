// Convolution of images with few channels, in planes: pixels of a row are the lanes, and the input is read where it lies in
// a strip [row][channel][kernel row][phase][column].
//
// A phase holds the columns whose number leaves the same rest by the stride, so that what an output row meets at one tap is
// a run of neighbours.
#pragma once

#include "shallow_tiles.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ShallowFirst {
   public:
    explicit ShallowFirst(const ConvolutionForward<T>& p)
        : p_(p),
          s_(p.shape),
          threads_(threads_for(shallow::flops(s_))),
          depth_(s_.inputs * shallow::taps(s_)),
          width_(smaller(most_columns, round_up(s_.out_width, lanes<T>))),
          height_(larger<int64_t>(1, max_vectors * lanes<T> / width_)),
          columns_(round_up(width_ + (shallow::reach_x(s_) - 1) / s_.stride_x, lanes<T>)),
          row_size_(s_.inputs * s_.kernel_height * s_.stride_x * columns_),
          blocks_x_(ceil_div(s_.out_width, width_)),
          blocks_y_(ceil_div(s_.out_height, height_)),
          rows_(s_.outputs),
          offsets_(depth_),
          planes_(s_.outputs),
          strips_(threads_ * strip_size()),
          tasks_(s_.batch * blocks_y_ * blocks_x_, threads_) {
        for (int64_t k = 0; k < s_.outputs; ++k) {
            rows_[k] = p.w + k * depth_;
            planes_[k] = k * s_.out_height * s_.out_width;
        }
        for (int64_t i = 0; i < depth_; ++i) {
            const int64_t x = i % s_.kernel_width * s_.dilation_x;
            offsets_[i] = (i / s_.kernel_width * s_.stride_x + x % s_.stride_x) * columns_ + x / s_.stride_x;
        }
    }

    void run() {
        run_parallel(threads_,
                     [this](const Worker& worker) { tasks_.run(worker, [&](int64_t i) { make(worker, i); }); });
    }

   private:
    static constexpr int64_t most_columns = 256;

    int64_t line_size() const { return s_.stride_x > 1 ? columns_ * s_.stride_x + lanes<T> : 0; }
    int64_t strip_size() const { return height_ * row_size_ + lanes<T> + line_size(); }

    void make(const Worker& worker, int64_t task) {
        const int64_t n = task / blocks_x_ / blocks_y_, x0 = task % blocks_x_ * width_;
        const int64_t y0 = task / blocks_x_ % blocks_y_ * height_, y1 = smaller(y0 + height_, s_.out_height);
        const int64_t width = smaller(width_, s_.out_width - x0), plane = s_.out_height * s_.out_width;
        T* const strip = strips_ + worker.index * strip_size();
        T* const out = p_.y + n * s_.outputs * plane + x0;
        shallow::PixelVector<T> vectors[max_vectors];
        int count = 0;
        for (int64_t y = y0; y < y1; ++y) {
            T* row = strip + (y - y0) * row_size_;
            copy_row(n, y, x0, row, strip + strip_size() - line_size());
            for (int64_t x = 0; x < width; x += lanes<T>) {
                vectors[count++] = {row + x, out + y * s_.out_width + x, width - x};
                if (count < max_vectors && (x + lanes<T> < width || y + 1 < y1)) continue;
                multiply(vectors, count);
                count = 0;
            }
        }
        if (p_.activation == Activation::none) return;
        for (int64_t k = 0; k < s_.outputs; ++k)
            for (int64_t y = y0; y < y1; ++y) {
                T* to = out + k * plane + y * s_.out_width;
                map_part<T>(width, to, to, [&](auto value) { return activate(p_.activation, value); });
            }
    }

    // What the outputs of row y meet, from column x0 on.
    void copy_row(int64_t n, int64_t y, int64_t x0, T* to, T* line) {
        const int64_t first = x0 * s_.stride_x - s_.pad_left, count = columns_ * s_.stride_x;
        for (int64_t c = 0; c < s_.inputs; ++c)
            for (int64_t ky = 0; ky < s_.kernel_height; ++ky, to += s_.stride_x * columns_) {
                const int64_t from = y * s_.stride_y - s_.pad_top + ky * s_.dilation_y;
                const bool inside = from >= 0 && from < s_.height;
                const T* row = inside ? p_.x + ((n * s_.inputs + c) * s_.height + from) * s_.width : nullptr;
                if (s_.stride_x == 1) {
                    shallow::copy_padded(row, s_.width, first, count, to);
                } else {
                    shallow::copy_padded(row, s_.width, first, count, line);
                    part<T>(line, s_.stride_x, columns_, to, columns_);
                }
            }
    }

    void multiply(const shallow::PixelVector<T>* vectors, int count) {
        const int64_t tiles = ceil_div(s_.outputs, max_tile_rows(count));
        for (int64_t i = 0; i < tiles; ++i) {
            const Range rows = split(s_.outputs, i, tiles);
            shallow::find_pixel_tile<T, false>(static_cast<int>(rows.end - rows.begin), count)(
                rows_ + rows.begin, depth_, vectors, offsets_, p_.b ? p_.b + rows.begin : nullptr,
                planes_ + rows.begin);
        }
    }

    const ConvolutionForward<T>& p_;
    const ConvolutionShape& s_;
    const int threads_;
    const int64_t depth_;
    const int64_t width_, height_;      // outputs of a block
    const int64_t columns_, row_size_;  // of a strip: columns of a phase, elements of a row
    const int64_t blocks_x_, blocks_y_;
    Buffer<const T*> rows_;
    Buffer<int64_t> offsets_, planes_;  // of the product's depth in a strip, of its rows in the output
    Buffer<T> strips_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
