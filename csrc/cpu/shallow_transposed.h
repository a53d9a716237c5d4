// The transpose of a convolution of images with few channels, which is also its gradient by the input: every output pixel
// times the weights of all taps at once, added to what the taps reach.
//
// The product's rows are the taps of all input channels, its columns a few vectors of neighbouring output pixels. Its
// results are added to a strip of the image in cache, [channel][row][phase][column] with the phases of shallow_first.h, so
// that strides cost nothing and a row of results goes to neighbours. Strips are cut by the problem's sizes alone and
// outputs that reach two strips are worked out for both: an element's sum has one order.
#pragma once

#include "shallow_tiles.h"

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
          steps_(s_.outputs),
          panel_size_(round_up(s_.outputs, lanes<T>) * panel_width),
          panels_(threads_ * panel_size_),
          strip_size_(s_.inputs * channel_size_ + lanes<T>),
          strips_(threads_ * strip_size_),
          turns_(s_.stride_x * (s_.channels_last ? s_.inputs : 1)),
          line_size_(turns_ * pitch_),
          lines_(threads_ * line_size_),
          planes_(threads_ * turns_),
          tasks_(s_.batch * y_.parts * x_.parts, threads_) {
        for (int64_t k = 0; k < s_.outputs; ++k) steps_[k] = k * panel_width;
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range rows = split(count_, worker);
            for (int64_t i = rows.begin; i < rows.end; ++i) pack(i);
            wait_for_all(worker);
            tasks_.run(worker, [&](int64_t i) { make(worker, i); });
        });
    }

   private:
    static constexpr int64_t panel_width = max_vectors * lanes<T>;

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
        T* const panel = panels_ + worker.index * panel_size_;
        shallow::PixelVector<T> at[max_vectors];
        int64_t first[max_vectors];
        int count = 0;
        for (int64_t oy = y.first; oy < y.last; ++oy)
            for (int64_t ox = x.first; ox < x.last; ox += lanes<T>) {
                first[count] = oy * s_.out_width + ox;
                T* to = strip + (oy * s_.stride_y - y.origin) * row_size_ + ox - x.origin / s_.stride_x;
                at[count] = {panel + count * lanes<T>, to, x.last - ox};
                if (++count < max_vectors && (ox + lanes<T> < x.last || oy + 1 < y.last)) continue;
                gather(n, first, at, count, panel);
                multiply(n, first[count - 1] + lanes<T>, at, count);
                count = 0;
            }
        write(worker, n, y, x, strip);
    }

    // panel [output channels][vectors][lanes] = the pixels of image n from first[v] on; lanes beyond at[v].count are of no
    // importance
    void gather(int64_t n, const int64_t* first, const shallow::PixelVector<T>* at, int count, T* panel) {
        const int64_t plane = s_.out_height * s_.out_width, images = s_.batch - n;
        const T* from = p_.x + n * s_.outputs * plane;
        if (s_.channels_last) {
            for (int v = 0; v < count; ++v)
                transpose_block(from + first[v] * s_.outputs, s_.outputs,
                                smaller<int64_t>(lanes<T>, images * plane - first[v]), s_.outputs, panel + v * lanes<T>,
                                panel_width);
            return;
        }
        // only at the end of all images is a whole vector too much
        const bool whole = first[count - 1] + lanes<T> <= ((images - 1) * s_.outputs + 1) * plane;
        for (int64_t k = 0; k < s_.outputs; ++k, from += plane, panel += panel_width)
            for (int v = 0; v < count; ++v)
                store(panel + v * lanes<T>, whole ? load(from + first[v]) : load_partial(from + first[v], at[v].count));
    }

    // next: the pixel after them in a plane. So many planes are more than the hardware foresees.
    void multiply(int64_t n, int64_t next, const shallow::PixelVector<T>* at, int count) {
        const int64_t tiles = ceil_div(count_, max_tile_rows(count)), plane = s_.out_height * s_.out_width;
        const T* ahead = p_.x + n * s_.outputs * plane + next;
        for (int64_t i = 0; i < tiles; ++i) {
            const Range rows = split(count_, i, tiles), planes = split(s_.channels_last ? 0 : s_.outputs, i, tiles);
            for (int64_t k = planes.begin; k < planes.end; ++k)
                for (int v = 0; v < count; ++v)
                    prefetch_far(reinterpret_cast<const char*>(ahead + k * plane + v * lanes<T>));
            shallow::find_pixel_tile<T, true>(static_cast<int>(rows.end - rows.begin), count)(
                rows_ + rows.begin, s_.outputs, at, steps_, nullptr, offsets_ + rows.begin);
        }
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
    Buffer<int64_t> offsets_, steps_;  // of the product's rows in the strip, of its depth in a panel
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
