// What the forward and the backward pass of a convolutional recurrent layer share.
//
// Inside, images have their channels together: pixels are the rows of a product, addressed in one piece for each tap of the
// kernel, straight in the image of the step before. Only the last step, the cell's maths on the lines of a tile, is compiled
// for each cell; what leads there looks at the cell's shape.
#pragma once

#include "../cells/convrecurrent.h"
#include "correlation.h"
#include "image_order.h"
#include "recurrent.h"

namespace tbptt {
namespace TBPTT_ISA {

// Instantiated in convolution_float.cpp and convolution_double.cpp.
template <class T>
bool has_faster_way(const ConvolutionShape&);
template <class T>
Algorithm way_of(const ConvolutionShape&);
template <class T>
void convolution_forward(const ConvolutionForward<T>&);
template <class T>
void convolution_backward(const ConvolutionBackward<T>&);

TBPTT_INLINE CellShape shape_of(Cell cell) {
    switch (cell) {
        case Cell::gru: return Gru<VecMath<float, 1>>::shape;
        case Cell::lstm: return Lstm<VecMath<float, 1>>::shape;
        default: return RnnTanh<VecMath<float, 1>>::shape;
    }
}

TBPTT_INLINE int64_t taps_of_state(const ConvRecurrentShape& s) { return s.kernel_hh_height * s.kernel_hh_width; }

TBPTT_INLINE ConvolutionShape convolution_of(const ConvRecurrentShape& s, int64_t images, bool state) {
    return tbptt::convolution_of(s, shape_of(s.cell).gates, images, state);
}

// Whether the products of a step are made apart from the cell: where images are large and convolutions have a faster way
// than the tiles behind which the cell is applied.
template <class T>
bool stands_apart(const ConvRecurrentShape& s) {
    constexpr int64_t least_rows = 1024;
    return s.batch * pixels_of(s) >= least_rows && taps_of_state(s) > 1 &&
           has_faster_way<T>(convolution_of(s, s.batch, true));
}

// The taps of the recurrent kernel, or, `flipped`, of its transpose.
TBPTT_INLINE void find_taps(const ConvRecurrentShape& s, bool flipped, Tap* taps) {
    const int64_t sign = flipped ? -1 : 1;
    for (int64_t i = 0; i < taps_of_state(s); ++i)
        taps[i] = {sign * (i / s.kernel_hh_width - (s.kernel_hh_height - 1) / 2) * s.dilation_y,
                   sign * (i % s.kernel_hh_width - (s.kernel_hh_width - 1) / 2) * s.dilation_x, i};
}

// How the rows of one step, the pixels of some images, are shared out: in blocks that share their pieces' addresses, with few
// rows in parts of the panels too.
struct Blocks {
    static constexpr int64_t most = 96;
    int64_t size;

    Blocks(int64_t rows, int threads)
        : size(threads == 1 ? smaller(most, rows)
                            : smaller(most, larger<int64_t>(largest_tile_rows, ceil_div(rows, 2 * threads)))) {}
    int64_t count(int64_t rows) const { return ceil_div(rows, size); }
    static int64_t parts(int64_t blocks, int64_t panels, int threads) {
        return blocks >= threads ? 1 : smaller(panels, ceil_div(threads, blocks));
    }
};

// Calls body(row from `first` on, image, pixel in it, count) for the runs of neighbouring pixels of rows first …
// first+count-1.
template <class Body>
TBPTT_INLINE void for_images(int64_t pixels, int64_t first, int64_t count, Body body) {
    for (int64_t done = 0, length; done < count; done += length) {
        const int64_t image = (first + done) / pixels, pixel = (first + done) % pixels;
        length = smaller(count - done, pixels - pixel);
        body(done, image, pixel, length);
    }
}

// The pieces of rows first … first+count-1: pieces[tap·stride + row] is the pixel that the tap meets, `pixel` elements from one
// to the next, or zeros outside of the image; images[n] may be null for an image of zeros.
template <class T>
__attribute__((noinline)) void find_pieces(const ConvRecurrentShape& s, const Tap* taps, const T* const* images,
                                           int64_t pixel, int64_t first, int64_t count, const T* zeros,
                                           const T** pieces, int64_t stride) {
    const auto clamp = [](int64_t n, int64_t most) { return n < 0 ? 0 : n > most ? most : n; };
    for_images(pixels_of(s), first, count, [&](int64_t row, int64_t image, int64_t at, int64_t remaining) {
        for (int64_t length; remaining > 0; remaining -= length, at += length, row += length) {
            const int64_t y = at / s.width, x = at % s.width;
            length = smaller(remaining, s.width - x);
            for (int64_t t = 0; t < taps_of_state(s); ++t) {
                const T** to = pieces + t * stride + row;
                const int64_t source_y = y + taps[t].dy, left = x + taps[t].dx;
                const bool inside = images[image] && source_y >= 0 && source_y < s.height;
                const int64_t begin = inside ? clamp(-left, length) : length;
                const int64_t end = clamp(s.width - left, length);
                const T* source = images[image] + (inside ? (source_y * s.width + left) * pixel : 0);
                for (int64_t i = 0; i < begin; ++i) to[i] = zeros;
                for (int64_t i = begin; i < end; ++i) to[i] = source + i * pixel;
                for (int64_t i = larger(begin, end); i < length; ++i) to[i] = zeros;
            }
        }
    });
}

template <class T>
__attribute__((noinline)) void add_to(T* to, const T* from, int64_t count) {
    for (int64_t i = 0; i < count; i += lanes<T>)
        store_partial(to + i,
                      load_partial(static_cast<const T*>(to + i), count - i) + load_partial(from + i, count - i),
                      count - i);
}

// The peepholes of a layer, channels last: [3][pixels][H], or [3][H] for all pixels.
template <class T>
class Peepholes {
   public:
    TBPTT_COLD explicit Peepholes(const ConvRecurrentLayer<T>& layer)
        : pixel_(layer.peephole_maps ? layer.shape.hidden : 0),
          gate_(layer.shape.hidden * (layer.peephole_maps ? pixels_of(layer.shape) : 1)),
          turns_(layer.peephole && layer.peephole_maps && !same_order(layer.shape, layer.shape.hidden)),
          turned_(turns_ ? 3 * gate_ : 0),
          data_(turns_ ? static_cast<const T*>(turned_) : layer.peephole) {
        if (turns_) turn_images<T>(3, pixels_of(layer.shape), layer.shape.hidden, layer.peephole, turned_, true);
    }
    const T* at(int64_t pixel) const { return data_ ? data_ + pixel * pixel_ : nullptr; }
    int64_t gate() const { return gate_; }

   private:
    const int64_t pixel_, gate_;
    const bool turns_;
    Buffer<T> turned_;
    const T* data_;
};

// A state [B] with its channels together: the caller's, or a copy; null for zeros.
template <class T>
class StateImages {
   public:
    TBPTT_COLD StateImages(const ConvRecurrentShape& s, const T* given)
        : turns_(given && !same_order(s, s.hidden)),
          turned_(turns_ ? s.batch * pixels_of(s) * s.hidden : 0),
          data_(turns_ ? static_cast<const T*>(turned_) : given) {
        if (turns_) turn_images<T>(s.batch, pixels_of(s), s.hidden, given, turned_, true);
    }
    const T* data() const { return data_; }

   private:
    const bool turns_;
    Buffer<T> turned_;
    const T* data_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
