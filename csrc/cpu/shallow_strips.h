// The strips of convolutions of few channels in which channels lie together, of images in either order.
#pragma once

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
    static constexpr int most_folded = 5;
    bool folded() const { return length <= most_folded && count > 1; }

    // to [outputs][count·length] = the rows, whose pieces begin at `begins`; the last vector goes beyond
    template <class T>
    void fold(const T* strip, const int64_t* begins, int64_t outputs, T* to) const {
        const int64_t pieces = count, members = length, distance = step();
        for (int64_t i = 0; i < outputs; ++i, strip += distance)
            for (int64_t t = 0; t < pieces; ++t, to += members) {
                const T* from = strip + begins[t];
#pragma GCC unroll 3
                for (int j = 0; j < most_folded; j += lanes<T>)
                    if (j < members) store(to + j, load(from + j));
            }
    }
};

}  // namespace shallow

}  // namespace TBPTT_ISA
}  // namespace tbptt
