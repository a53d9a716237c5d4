// Which pixels of a convolution's two images meet, and how the one image is walked to be made from the other. The big image
// is the input, the small one the output; either may be the source, the other is the target.
#pragma once

#include "../api.h"
#include "depthwise_tile.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

// One direction: small q meets big stride·q + dilation·k - pad at element k of the kernel.
struct Axis {
    int64_t big, small, kernel, stride, dilation, pad;
};

TBPTT_INLINE Axis vertical(const ConvolutionShape& s) {
    return {s.height, s.out_height, s.kernel_height, s.stride_y, s.dilation_y, s.pad_top};
}
TBPTT_INLINE Axis horizontal(const ConvolutionShape& s) {
    return {s.width, s.out_width, s.kernel_width, s.stride_x, s.dilation_x, s.pad_left};
}

// Windows of 3 by 3 elements without dilation, which the compiler knows: with stride 1, with stride 2, and the transpose of
// that. `none` is the general case.
enum class Window { none, same, down, up };

TBPTT_INLINE Window find_window(const Axis& y, const Axis& x, bool to_big) {
    const bool square = y.kernel == 3 && x.kernel == 3 && y.stride == x.stride && y.dilation == 1 && x.dilation == 1;
    if (!square || y.stride > 2) return Window::none;
    return y.stride == 1 ? Window::same : to_big ? Window::up : Window::down;
}

template <class M, int Rows, int Columns>
struct Tiling {
    using Meet = M;
    static constexpr int rows = Rows, columns = Columns;
};

// body(Tiling) for a window that is not `none`; with stride 1, columns of a tile share what they meet.
template <int Columns = 2, class Body>
TBPTT_INLINE void with_tiling(Window window, Body body) {
    constexpr int up_rows = TBPTT_REGISTERS == 32 ? 4 : 2;
    switch (window) {
        case Window::same: return body(Tiling<ToSmall<3, 1>, 4, Columns>{});
        case Window::down: return body(Tiling<ToSmall<3, 2>, 4, 1>{});
        default: return body(Tiling<ToBig<3, 2>, up_rows, 1>{});
    }
}

// Positions from `first` on that lie within a size, as bits.
TBPTT_INLINE unsigned existing(int64_t first, int count, int64_t size) {
    unsigned bits = 0;
    for (int i = 0; i < count; ++i) bits |= static_cast<unsigned>(first + i >= 0 && first + i < size) << i;
    return bits;
}

// Where the source lies that an element of the kernel meets, from a step's own position.
struct Element {
    int64_t offset, index;
};

// A walk along one direction of the target. Step t makes the positions from target_step·t + target_first on, and meets those
// of the source from source_step·t + nearest to source_step·t + farthest. In the general case it makes one position of
// each phase, which meets only some of the elements.
class Walk {
   public:
    Walk(const Axis& axis, Window window, bool to_big)
        : source(to_big ? axis.small : axis.big),
          target(to_big ? axis.big : axis.small),
          source_step(to_big ? 1 : axis.stride),
          target_step(to_big ? axis.stride : 1),
          target_first(window == Window::up ? -axis.pad : 0),
          phases(smaller(target_step, target)),
          steps{-target_first / target_step, ceil_div(target - target_first, target_step)},
          elements_(axis.kernel),
          begin_(phases + 1) {
        int64_t count = 0;
        nearest = farthest = 0;
        for (int64_t phase = 0; phase < phases; ++phase) {
            begin_[phase] = count;
            for (int64_t k = 0; k < axis.kernel; ++k) {
                const int64_t ahead = axis.dilation * k - axis.pad, behind = phase - ahead;
                if (to_big && behind % axis.stride != 0) continue;
                const int64_t offset = to_big ? behind / axis.stride : ahead;
                nearest = count == 0 ? offset : smaller(nearest, offset);
                farthest = count == 0 ? offset : larger(farthest, offset);
                elements_[count++] = {offset, k};
            }
        }
        begin_[phases] = count;
        if (window == Window::up) nearest = -ToBig<3, 2>::lag, farthest = 0;
    }

    int64_t steps_of(int64_t phase) const { return ceil_div(target - phase, target_step); }
    Range elements_of(int64_t phase) const { return {begin_[phase], begin_[phase + 1]}; }
    const Element& element(int64_t i) const { return elements_[i]; }

    // The elements of a phase that meet the source at a step. They are neighbours: offsets rise or fall.
    Range elements_inside(int64_t phase, int64_t step) const {
        Range range = elements_of(phase);
        while (range.begin < range.end && !meets(range.begin, step)) ++range.begin;
        while (range.begin < range.end && !meets(range.end - 1, step)) --range.end;
        return range;
    }

    // What some steps meet and make, within the images.
    Range sources(Range of) const {
        return {larger<int64_t>(0, source_step * of.begin + nearest),
                smaller(source_step * (of.end - 1) + farthest + 1, source)};
    }
    Range targets(Range of) const {
        return {larger<int64_t>(0, target_step * of.begin + target_first),
                smaller(target_step * of.end + target_first, target)};
    }

    const int64_t source, target, source_step, target_step, target_first, phases;
    const Range steps;
    int64_t nearest, farthest;

   private:
    bool meets(int64_t i, int64_t step) const {
        const int64_t at = source_step * step + elements_[i].offset;
        return at >= 0 && at < source;
    }

    Buffer<Element> elements_;
    Buffer<int64_t> begin_;
};

// Every target channel is a sum over `depth` source channels, those of its group.
struct Channels {
    int64_t groups, depth, columns;

    int64_t source() const { return groups * depth; }
    int64_t target() const { return groups * columns; }
    bool plain() const { return depth * columns == 1; }
};

// One direction of a convolution: how its target is made from its source.
struct Passage {
    Passage(const ConvolutionShape& s, const Axis& down, const Axis& across, bool up)
        : batch(s.batch),
          window(find_window(down, across, up)),
          y(down, window, up),
          x(across, window, up),
          channels{s.groups, (up ? s.outputs : s.inputs) / s.groups, (up ? s.inputs : s.outputs) / s.groups},
          kernel_height(down.kernel),
          kernel_width(across.kernel),
          to_big(up) {}

    int64_t elements() const { return kernel_height * kernel_width; }
    // Steps down that are taken together.
    int64_t rows() const {
        int64_t rows = column_rows;
        if (window != Window::none) with_tiling(window, [&](auto tiling) { rows = tiling.rows; });
        return rows;
    }
    // Of pixels, in all channels.
    double meetings() const {
        const int64_t pixels = to_big ? y.source * x.source : y.target * x.target;
        return static_cast<double>(batch * channels.groups * channels.depth * channels.columns) *
               static_cast<double>(elements() * pixels);
    }

    const int64_t batch;
    const Window window;
    const Walk y, x;
    const Channels channels;
    const int64_t kernel_height, kernel_width;
    const bool to_big;
};

// A part of the target's channels.
struct Block {
    int64_t index, count;
};

// Into how many blocks, at most one for each unit, tasks are cut so that all threads are busy. More would lose the order of
// memory.
TBPTT_INLINE int64_t choose_blocks(int64_t tasks, int64_t units, int threads) {
    if (threads == 1 || tasks == 0) return 1;
    return larger<int64_t>(1, smaller(units, ceil_div(4 * threads, tasks)));
}

// How the sums of a weight gradient are cut: images into sections that stay in a core's cache, sections into chunks with a
// partial sum each. It depends on nothing but sizes.
struct Cut {
    int64_t sections, chunks;

    // parts: of an image; sum: bytes of a partial sum
    Cut(const Passage& p, int64_t parts, int64_t sum, int64_t element) {
        constexpr int64_t most = 32, least = 64 << 10, smallest_share = 32, most_bytes = 1 << 20;
        const int64_t big = p.y.source * p.x.source * p.channels.source();
        const int64_t image = (2 * big + p.y.target * p.x.target * p.channels.target()) * element;
        const int64_t wanted = ceil_div(most, larger<int64_t>(1, p.batch));
        sections = larger(ceil_div(image, core_cache / 2), smaller(wanted, image / least));
        sections = larger<int64_t>(1, smaller(sections, parts));
        chunks = smaller(most, smaller(p.batch * image / smallest_share, most_bytes) / sum);
        chunks = smaller(p.batch * sections, larger<int64_t>(1, chunks));
    }
};

// The weights of a target channel [depth][elements], `stride` apart, in the order in which windows meet them.
template <class T>
TBPTT_INLINE void pack_weights(const Passage& p, const T* w, int64_t channel, int64_t stride, T* to) {
    const int64_t depth = p.channels.depth, columns = p.channels.columns, elements = p.elements();
    const bool backwards = p.to_big && p.window == Window::same;
    const int64_t group = channel / columns, within = channel % columns;
    for (int64_t d = 0; d < depth; ++d) {
        const T* from = w + (p.to_big ? (group * depth + d) * columns + within : channel * depth + d) * elements;
        for (int64_t k = 0; k < elements; ++k, to += stride) *to = from[backwards ? elements - 1 - k : k];
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
