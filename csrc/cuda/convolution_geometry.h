// Where pixels and taps of a convolution lie, as kernels see them.
//
// A correlation makes each pixel of the target from pixels of the source, one at each tap, and its transpose is one too: the
// target's pixels fall in phases of the stride, and those of a phase all meet the same taps.
#pragma once

#include <stdexcept>

#include "../api_convolution.h"
#include "runtime.h"
#include "tiled_product.h"

namespace tbptt {
namespace cuda {

// n / divisor for n < 2^31 by a multiplication.
struct Divisor {
    unsigned divisor, multiplier, shift;
    TBPTT_DEVICE int quotient(int n) const {
        return static_cast<int>((std::uint64_t{static_cast<unsigned>(n)} * multiplier) >> shift);
    }
    TBPTT_DEVICE int remainder(int n, int quotient) const { return n - quotient * static_cast<int>(divisor); }
};

inline Divisor divide_by(std::int64_t divisor) {
    const std::uint64_t d = divisor > 0 ? static_cast<std::uint64_t>(divisor) : 1;
    unsigned bits = 0;
    while ((std::uint64_t{1} << bits) < d) ++bits;
    return {static_cast<unsigned>(d), static_cast<unsigned>(((std::uint64_t{1} << (31 + bits)) + d - 1) / d),
            31 + bits};
}

// Indices in kernels are of 32 bits, with room for a sum of two.
inline int to_index(std::int64_t value) {
    if (value < 0 || value >= std::int64_t{1} << 30)
        throw std::length_error("expected sizes, pixels and weights of a channel below 2**30 on cuda, got " +
                                std::to_string(value));
    return static_cast<int>(value);
}

// Images of a batch in memory; strides are elements.
struct Images {
    int height, width, channels;
    std::int64_t pixel, channel, image;
};

inline Images images_of(std::int64_t height, std::int64_t width, std::int64_t channels, bool channels_last) {
    return {to_index(height),
            to_index(width),
            to_index(channels),
            channels_last ? channels : 1,
            channels_last ? 1 : height * width,
            height * width * channels};
}
inline Images input_images(const ConvolutionShape& s) {
    return images_of(s.height, s.width, s.inputs, s.channels_last);
}
inline Images output_images(const ConvolutionShape& s) {
    return images_of(s.out_height, s.out_width, s.outputs, s.channels_last);
}
// Of x and of y, transposed or not.
inline Images source_images(const ConvolutionShape& s) { return s.transposed ? output_images(s) : input_images(s); }
inline Images target_images(const ConvolutionShape& s) { return s.transposed ? input_images(s) : output_images(s); }

// One direction of one phase: pixel i of the target lies at first_target + i·target step and meets, at tap j, the source at
// i·step + first_shift + j·shift_step with element first_tap + j·tap_step of the kernel.
struct Direction {
    int pixels, first_target, taps, first_tap, tap_step, first_shift, shift_step;
    Divisor by_pixels, by_taps;
};

inline Direction forward_direction(std::int64_t pixels, std::int64_t taps, std::int64_t dilation, std::int64_t pad) {
    return {
        to_index(pixels), 0, to_index(taps), 0, 1, -to_index(pad), to_index(taps > 1 ? dilation : 1), divide_by(pixels),
        divide_by(taps)};
}

// Output o met input i at tap k where i = o·stride - pad + k·dilation: here i is the target, of the given phase.
inline Direction transposed_direction(std::int64_t size, std::int64_t taps, std::int64_t stride, std::int64_t dilation,
                                      std::int64_t pad, std::int64_t phase) {
    Direction result{
        to_index(size > phase ? divide_up(size - phase, stride) : 0), to_index(phase), 0, 0, 1, 0, 0, {}, {}};
    std::int64_t last = 0;
    for (std::int64_t k = 0; k < taps; ++k) {
        const std::int64_t distance = phase + pad - k * dilation;
        if (distance % stride != 0) continue;
        if (result.taps == 0) {
            result.first_tap = to_index(k);
            result.first_shift = static_cast<int>(distance / stride);
        } else if (result.taps == 1) {
            result.tap_step = to_index(k - last);
            result.shift_step = static_cast<int>(distance / stride) - result.first_shift;
        }
        last = k;
        ++result.taps;
    }
    result.by_pixels = divide_by(result.pixels);
    result.by_taps = divide_by(result.taps);
    return result;
}

// A single pixel needs no step, however large.
inline int step_of(std::int64_t pixels, std::int64_t stride) { return pixels > 1 ? to_index(stride) : 1; }

// Whether every output pixel meets the input pixel of its own place and no other.
inline bool is_point(const ConvolutionShape& s) {
    return s.kernel_height == 1 && s.kernel_width == 1 && s.pad_top == 0 && s.pad_left == 0 &&
           s.out_height == s.height && s.out_width == s.width && (s.stride_y == 1 || s.height <= 1) &&
           (s.stride_x == 1 || s.width <= 1);
}

// A place in a batch of images or a distance there: which element, and the row and column that must be inside.
struct Place {
    std::int64_t element;
    int y, x;
};
TBPTT_DEVICE Place nowhere() { return {0, -(1 << 30), 0}; }

// As one access of shared memory.
using PackedPlace = Group<int>;
TBPTT_DEVICE PackedPlace pack(const Place& p) {
    return {{static_cast<int>(static_cast<std::uint32_t>(p.element)), static_cast<int>(p.element >> 32), p.y, p.x}};
}
TBPTT_DEVICE Place unpack(const PackedPlace& p) {
    return {static_cast<std::int64_t>(p.value[1]) * (std::int64_t{1} << 32) | static_cast<std::uint32_t>(p.value[0]),
            p.value[2], p.value[3]};
}

// Pixels first, first+1, … end-1 of a phase, all images' in their order, where their tap of no shift lies.
struct PixelPlaces {
    Direction down, across;
    Images images;
    int step_y, step_x, first, end;

    TBPTT_DEVICE Place operator()(int i) const {
        const int pixel = first + i;
        if (pixel >= end) return nowhere();
        const int line = across.by_pixels.quotient(pixel), x = across.by_pixels.remainder(pixel, line) * step_x;
        const int image = down.by_pixels.quotient(line), y = down.by_pixels.remainder(line, image) * step_y;
        return {image * images.image + (std::int64_t{y} * images.width + x) * images.pixel, y, x};
    }
};

// Taps of a phase with the channels of a group: tap·depth + channel, or channel·taps + tap.
struct TapPlaces {
    Direction down, across;
    Images images;
    Divisor by_inner;  // depth, or the number of taps
    bool taps_inside;
    int first, end;

    TBPTT_DEVICE Place operator()(int i) const {
        const int index = first + i;
        if (index >= end) return nowhere();
        const int outer = by_inner.quotient(index), inner = by_inner.remainder(index, outer);
        const int tap = taps_inside ? inner : outer, channel = taps_inside ? outer : inner;
        const int j = across.by_taps.quotient(tap);
        const int y = down.first_shift + j * down.shift_step;
        const int x = across.first_shift + across.by_taps.remainder(tap, j) * across.shift_step;
        return {(std::int64_t{y} * images.width + x) * images.pixel + channel * images.channel, y, x};
    }
};

// Without tensor cores the largest tiles are not launched (choose_tile), nor compiled: they would have too few registers.
// Those of bfloat16 are refused by the bindings.
template <class Tile>
constexpr bool is_of_every_chip = !is_narrow<typename Tile::T> && Tile::warp_rows * Tile::warp_columns <= 64 * 32;
template <class Tile>
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool is_launched = true;
#else
constexpr bool is_launched = is_of_every_chip<Tile>;
#endif

// A kernel without its tile would leave its results as they are.
template <class Tile>
void check_tile() {
    if (!is_of_every_chip<Tile> && current_device().capability < 80)
        throw std::logic_error("a tile that is not compiled for this device");
}

// The loader of tiled_product.h of what lies at the sum of two places: one for each row of the tile, one for each depth.
// Zeros are where the sum is outside of the images. `table` is shared memory; a barrier has to follow the construction.
// Groups: the rows (across) or depths (along) of a group are neighbours in memory and all inside or all outside.
template <class Tile, int Rows, bool Groups, class RowPlaces, class DepthPlaces>
class GatherLoader {
   public:
    using T = typename Tile::T;
    static constexpr int ahead = Tile::stages - 1, ring = 2 * ahead;
    static constexpr int table_size = Tile::along ? Rows : ring * Tile::depth;

    TBPTT_DEVICE GatherLoader(const T* source, int height, int width, const RowPlaces& rows, const DepthPlaces& depths,
                              PackedPlace* table)
        : source_(source), height_(height), width_(width), depths_(depths), table_(table), mine_{} {
        const int thread = static_cast<int>(threadIdx.x);
        if (Tile::along) {
            for (int i = thread; i < Rows; i += Tile::threads) table[i] = pack(rows(i));
        } else {
            for (int i = thread; i < ahead * Tile::depth; i += Tile::threads) table[i] = pack(depths_(i));
            mine_ = rows(in_line());
        }
    }

    TBPTT_DEVICE void load(T* panel, int chunk) {
        const Place mine = Tile::along ? depths_(chunk * Tile::depth + in_line()) : mine_;
        const PackedPlace* others = table_ + first_line() + (Tile::along ? 0 : chunk % ring * Tile::depth);
        const T* source = source_ + mine.element;
        T* to = panel + first_line() * Layout::stride + in_line();
#pragma unroll
        for (int i = 0; i < lines / lines_at_once; ++i) {
            const Place other = unpack(others[i * lines_at_once]);
            // both sides of the condition and the address always: to ask first whether they are needed costs more
            const bool in_height = static_cast<unsigned>(mine.y + other.y) < static_cast<unsigned>(height_);
            const bool in_width = static_cast<unsigned>(mine.x + other.x) < static_cast<unsigned>(width_);
            copy_async<Access>(to + i * lines_at_once * Layout::stride, source + other.element,
                               static_cast<bool>(int{in_height} & int{in_width}));
        }
        if (!Tile::along && static_cast<int>(threadIdx.x) < Tile::depth) {
            const int later = chunk + ahead;
            table_[later % ring * Tile::depth + threadIdx.x] =
                pack(depths_(later * Tile::depth + static_cast<int>(threadIdx.x)));
        }
    }

   private:
    using Layout = Panel<T, Rows, Tile::along>;
    using Access = Group<T, Groups ? Group<T>::size : 1>;
    static constexpr int accesses = (Tile::along ? Tile::depth : Rows) / Access::size;
    static constexpr int lines = Tile::along ? Rows : Tile::depth;
    static constexpr int lines_at_once = Tile::threads / accesses;
    static_assert(lines_at_once > 0 && lines % lines_at_once == 0 && Tile::threads % accesses == 0, "threads");

    static TBPTT_DEVICE int in_line() { return static_cast<int>(threadIdx.x) % accesses * Access::size; }
    static TBPTT_DEVICE int first_line() { return static_cast<int>(threadIdx.x) / accesses; }

    const T* source_;
    const int height_, width_;
    const DepthPlaces depths_;
    PackedPlace* table_;
    Place mine_;
};

}  // namespace cuda
}  // namespace tbptt
