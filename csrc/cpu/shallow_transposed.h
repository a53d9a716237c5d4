// The transpose of a convolution of images with few channels, which is also its gradient by the input: every output pixel
// times the weights of all taps at once, added to what the taps reach.
//
// The product's rows are the taps of all input channels, its columns a few vectors of neighbouring output pixels. Its
// results are added to a strip of the image in cache, [channel][row][phase][column] with the phases of shallow_first.h, so
// that strides cost nothing and a row of results goes to neighbours. Strips are cut by the problem's sizes alone and
// outputs that reach two strips are worked out for both: an element's sum has one order.
#pragma once

#include "shallow.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ShallowTransposed {
   public:
    explicit ShallowTransposed(const ConvolutionForward<T>& p)
        : p_(p),
          s_(p.shape),
          y_(cut(s_.height, s_.out_height, s_.stride_y, s_.pad_top, shallow::reach_y(s_), s_.batch, most_rows())),
          x_(cut(s_.width, s_.out_width, s_.stride_x, s_.pad_left, shallow::reach_x(s_), s_.batch * y_.parts,
                 most_columns())),
          threads_(threads_for(shallow::flops(s_))),
          pitch_(round_up(x_.covered / s_.stride_x + 1, lanes<T>)),
          row_size_(s_.stride_x * pitch_),
          channel_size_(y_.covered * row_size_),
          count_(s_.inputs * shallow::taps(s_)),
          weights_(count_ * s_.outputs),
          rows_(count_),
          offsets_(count_),
          panel_size_(round_up(s_.outputs, lanes<T>) * max_vectors * lanes<T>),
          panels_(threads_ * panel_size_),
          strip_size_(s_.inputs * channel_size_ + lanes<T>),
          strips_(threads_ * strip_size_),
          turns_(s_.stride_x * (s_.channels_last ? s_.inputs : 1)),
          line_size_(turns_ * pitch_),
          lines_(threads_ * line_size_),
          planes_(threads_ * turns_),
          tasks_(s_.batch * y_.parts * x_.parts, threads_) {}

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range rows = split(count_, worker);
            for (int64_t i = rows.begin; i < rows.end; ++i) pack(i);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { make(worker, i); });
        });
    }

   private:
    // Of a strip, so that it stays in a core's cache.
    int64_t most_columns() const { return clamp(strip_elements / (s_.inputs * 6 * shallow::reach_y(s_)), 128, 1024); }
    int64_t most_rows() const {
        const int64_t columns = smaller(s_.width, most_columns()) + 2 * (shallow::reach_x(s_) + s_.stride_x);
        return strip_elements / (s_.inputs * columns);
    }
    static constexpr int64_t strip_elements = (768 << 10) / sizeof(T);

    // How an axis of the image is cut.
    struct Axis {
        int64_t size, outputs, stride, pad, reach;
        int64_t part, parts;
        int64_t covered;  // by a strip, at most
    };
    // Into parts of at most `most`, if that is much more than the kernel reaches, and small enough for some tasks in all.
    static Axis cut(int64_t size, int64_t outputs, int64_t stride, int64_t pad, int64_t reach, int64_t others,
                    int64_t most) {
        constexpr int64_t tasks = 8;
        const int64_t wanted = ceil_div(size, ceil_div(tasks, clamp(others, 1, tasks)));
        const int64_t part = larger(smaller(wanted, most), 4 * reach);
        return {size, outputs, stride, pad, reach, part, ceil_div(size, part), part + 2 * (reach + stride)};
    }

    // A strip along an axis: its part of the image, the outputs that reach it, and the padded element where it begins.
    struct Span {
        int64_t begin, end, first, last, origin;
        Span(const Axis& axis, int64_t i) {
            begin = i * axis.part;
            end = smaller(begin + axis.part, axis.size);
            const int64_t from = floor_div(begin + axis.pad - axis.reach + 1, axis.stride);
            origin = from * axis.stride;
            first = larger<int64_t>(0, from);
            last = smaller((end - 1 + axis.pad) / axis.stride + 1, axis.outputs);
        }
    };

    // Rows of neighbouring columns of the kernel reach overlapping runs of the strip, so they are kept apart: a sum that is
    // read soon after it was written would have to wait.
    void pack(int64_t i) {
        const int64_t ky = i % s_.kernel_height, c = i / s_.kernel_height % s_.inputs,
                      kx = i / s_.kernel_height / s_.inputs;
        const int64_t tap = ky * s_.kernel_width + kx, x = kx * s_.dilation_x;
        T* row = weights_ + i * s_.outputs;
        for (int64_t k = 0; k < s_.outputs; ++k) row[k] = p_.w[(k * s_.inputs + c) * shallow::taps(s_) + tap];
        rows_[i] = row;
        offsets_[i] = c * channel_size_ + ky * s_.dilation_y * row_size_ + x % s_.stride_x * pitch_ + x / s_.stride_x;
    }

    void make(const Worker& worker, int64_t task) {
        const int64_t n = task / x_.parts / y_.parts;
        const Span y(y_, task / x_.parts % y_.parts), x(x_, task % x_.parts);
        T* const strip = strips_ + worker.index * strip_size_;
        for (int64_t c = 0; c < s_.inputs; ++c) fill(strip + c * channel_size_, channel_size_, p_.b ? p_.b[c] : T(0));
        Pixels at[max_vectors];
        int count = 0;
        for (int64_t oy = y.first; oy < y.last; ++oy)
            for (int64_t ox = x.first; ox < x.last; ox += lanes<T>) {
                at[count++] = {(n * s_.out_height + oy) * s_.out_width + ox,
                               (oy * s_.stride_y - y.origin) * row_size_ + ox - x.origin / s_.stride_x, x.last - ox};
                if (count < max_vectors && (ox + lanes<T> < x.last || oy + 1 < y.last)) continue;
                multiply(n, at, count, panels_ + worker.index * panel_size_, strip);
                count = 0;
            }
        write(worker, n, y, x, strip);
    }

    // Neighbouring output pixels, at most a vector of them, and where tap 0 of the first goes to in the strip.
    struct Pixels {
        int64_t first, to, count;
    };

    void multiply(int64_t n, const Pixels* at, int count, T* panel, T* strip) {
        const int64_t width = count * lanes<T>, plane = s_.out_height * s_.out_width;
        if (s_.channels_last)
            for (int v = 0; v < count; ++v)
                transpose_block(p_.x + at[v].first * s_.outputs, s_.outputs, smaller<int64_t>(at[v].count, lanes<T>),
                                s_.outputs, panel + v * lanes<T>, width);
        else
            for (int64_t k = 0; k < s_.outputs; ++k)
                for (int v = 0; v < count; ++v)
                    store(panel + k * width + v * lanes<T>,
                          load_partial(p_.x + (n * (s_.outputs - 1) + k) * plane + at[v].first, at[v].count));
        const Packed<T> b{panel, s_.outputs, 1, count};
        product<T>(static_cast<const T* const*>(rows_), count_, b, Range{0, 1},
                   [&](int64_t, int64_t first, int height, const T* c) {
                       for (int r = 0; r < height; ++r)
                           for (int v = 0; v < count; ++v, c += lanes<T>) {
                               T* to = strip + offsets_[first + r] + at[v].to;
                               store_partial(to, load(to) + load(c), at[v].count);
                           }
                   });
    }

    void write(const Worker& worker, int64_t n, const Span& y, const Span& x, const T* strip) {
        const int64_t skipped = x.begin + s_.pad_left - x.origin, together = s_.channels_last ? s_.inputs : 1;
        T* line = lines_ + worker.index * line_size_;
        const T** planes = planes_ + worker.index * turns_;
        for (int64_t c = 0; c < s_.inputs; c += together)
            for (int64_t row = y.begin; row < y.end; ++row) {
                const T* from = strip + c * channel_size_ + (row + s_.pad_top - y.origin) * row_size_;
                for (int64_t phase = 0; phase < s_.stride_x; ++phase)
                    for (int64_t i = 0; i < together; ++i)
                        planes[phase * together + i] = from + i * channel_size_ + phase * pitch_;
                if (turns_ > 1) join<T>(planes, turns_, pitch_, line);
                const int64_t count = (x.end - x.begin) * together;
                T* to = p_.y + ((n * (s_.inputs / together) + c) * s_.height + row) * s_.width * together +
                        x.begin * together;
                map_part<T>(count, (turns_ > 1 ? line : from) + skipped * together, to,
                            [&](auto value) { return activate(p_.activation, value); });
            }
    }

    const ConvolutionForward<T>& p_;
    const ConvolutionShape& s_;
    const Axis y_, x_;
    const int threads_;
    const int64_t pitch_, row_size_, channel_size_;  // of the strip
    const int64_t count_;                            // of the product's rows
    Buffer<T> weights_;
    Buffer<const T*> rows_;
    Buffer<int64_t> offsets_;
    const int64_t panel_size_;
    Buffer<T> panels_;
    const int64_t strip_size_;
    Buffer<T> strips_;
    const int64_t turns_, line_size_;
    Buffer<T> lines_;
    Buffer<const T*> planes_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
