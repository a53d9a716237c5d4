// Images from planes to channels together, and back. Products of bfloat16 read no other order, with those of a group in whole
// accesses and zeros behind them: two bytes alone are less than a chip copies to shared memory while it works, so to turn
// images round costs less than to gather them from planes.
#pragma once

#include "activation.h"
#include "convolution_geometry.h"

namespace tbptt {
namespace cuda {

// Between planes [batch, groups, given, plane] and pixels [batch, plane, groups, depth].
template <class T>
struct TurnedImages {
    std::int64_t plane, channels;  // channels: groups·depth
    std::int64_t tiles, pixel_tiles, channel_tiles;
    int given, depth;  // of a group, `depth` with zeros behind them
    Divisor by_depth;
    bool pairs;  // of pixels: two channels are one access
    const T* from;
    T* to;
};

constexpr int turned_pixels = 32, turned_channels = 64;  // of a tile

template <class T, bool ToLast>
__global__ void __launch_bounds__(256) turn_order(const TurnedImages<T> p) {
    constexpr int stride = turned_pixels + 1;  // odd: neither direction meets a bank twice
    T* tile = shared_memory<T>();              // [channels, pixels]
    const int lane = lane_index(), warp = warp_index();
    const std::int64_t groups = p.channels / p.depth;
    for (std::int64_t index = blockIdx.x; index < p.tiles; index += gridDim.x) {
        const std::int64_t line = index / p.pixel_tiles, image = line / p.channel_tiles;
        const std::int64_t first_pixel = (index - line * p.pixel_tiles) * turned_pixels;
        const int first_channel = static_cast<int>(line - image * p.channel_tiles) * turned_channels;
        const auto planes = [&] {
#pragma unroll
            for (int i = 0; i < turned_channels / 8; ++i) {
                T& value = tile[(8 * i + warp) * stride + lane];
                const int channel = first_channel + 8 * i + warp, group = p.by_depth.quotient(channel);
                const int k = p.by_depth.remainder(channel, group);
                const std::int64_t pixel = first_pixel + lane;
                const bool valid = channel < p.channels && k < p.given && pixel < p.plane;
                const std::int64_t at = ((image * groups + group) * p.given + k) * p.plane + pixel;
                if (ToLast)
                    value = valid ? p.from[at] : T{};
                else if (valid)
                    p.to[at] = value;
            }
        };
        const auto pixels = [&] {
#pragma unroll
            for (int i = 0; i < turned_pixels / 8; ++i) {
                T *first = tile + 2 * lane * stride + 8 * i + warp, *second = first + stride;
                const int channel = first_channel + 2 * lane;
                const std::int64_t pixel = first_pixel + 8 * i + warp,
                                   at = (image * p.plane + pixel) * p.channels + channel;
                if (pixel >= p.plane || channel >= p.channels) continue;
                if (ToLast && p.pairs) {
                    *reinterpret_cast<Group<T, 2>*>(p.to + at) = {{*first, *second}};
                } else if (ToLast) {
                    p.to[at] = *first;
                    if (channel + 1 < p.channels) p.to[at + 1] = *second;
                } else if (p.pairs) {
                    const Group<T, 2> both = *reinterpret_cast<const Group<T, 2>*>(p.from + at);
                    *first = both.value[0], *second = both.value[1];
                } else {
                    *first = p.from[at];
                    if (channel + 1 < p.channels) *second = p.from[at + 1];
                }
            }
        };
        if (ToLast)
            planes();
        else
            pixels();
        __syncthreads();
        if (ToLast)
            pixels();
        else
            planes();
        __syncthreads();
    }
}

// Those with channels last are memory of the call itself, where two channels are aligned.
template <class T, bool ToLast>
void turn_images(std::int64_t batch, const Images& images, std::int64_t groups, int depth, const T* from, T* to,
                 Stream stream) {
    TurnedImages<T> p{};
    p.plane = std::int64_t{images.height} * images.width;
    p.channels = groups * depth;
    p.pixel_tiles = divide_up(p.plane, turned_pixels);
    p.channel_tiles = divide_up(p.channels, turned_channels);
    p.tiles = batch * p.pixel_tiles * p.channel_tiles;
    p.given = static_cast<int>(images.channels / groups);
    p.depth = depth;
    p.by_depth = divide_by(depth);
    p.pairs = p.channels % 2 == 0;
    p.from = from;
    p.to = to;
    Grid grid = grid_for(p.tiles * 256);
    grid.shared_bytes = turned_channels * (turned_pixels + 1) * sizeof(T);
    launch(turn_order<T, ToLast>, grid, stream, p);
}

// To [batch, plane, channels] of planes [batch, channels, plane] or, not `ToLast`, the other way.
template <class T, bool ToLast>
void turn_images(std::int64_t batch, const Images& images, const T* from, T* to, Stream stream) {
    turn_images<T, ToLast>(batch, images, 1, images.channels, from, to, stream);
}

template <class T>
struct FilledGroups {
    std::int64_t lines;  // a pixel's channels of a group
    int given, depth;
    const T* from;
    T* to;
};

template <class T>
__global__ void fill_groups(const FilledGroups<T> p) {
    constexpr int width = Group<T>::size;
    const int accesses = p.depth / width;
    for (std::int64_t i = global_index(); i < p.lines * accesses; i += global_count()) {
        const std::int64_t line = i / accesses;
        const int first = static_cast<int>(i - line * accesses) * width;
        Group<T> values;
#pragma unroll
        for (int e = 0; e < width; ++e)
            values.value[e] = first + e < p.given ? p.from[line * p.given + first + e] : T{};
        reinterpret_cast<Group<T>*>(p.to)[i] = values;
    }
}

// Whether planes and pixels are the same memory.
inline bool has_one_order(const Images& images) {
    return std::int64_t{images.height} * images.width <= 1 || images.channels <= 1;
}

// How many channels of a group products read.
template <class T>
int ordered_depth(std::int64_t given) {
    constexpr std::int64_t width = is_narrow<T> ? Group<T>::size : 1;
    return to_index(divide_up(given, width) * width);
}

// What products read: the images as they are given, or in bfloat16 a copy in the order that it asks for.
template <class T>
class OrderedImages {
   public:
    OrderedImages(const T* given, std::int64_t batch, std::int64_t groups, const Images& as_given, bool channels_last,
                  Stream stream)
        : images(as_given),
          depth(ordered_depth<T>(as_given.channels / groups)),
          last(channels_last),
          data(given),
          copy_(order(batch, groups, as_given), stream) {
        if (!copy_) return;
        data = copy_;
        if constexpr (is_narrow<T>) {
            const int before = static_cast<int>(as_given.channels / groups);
            const std::int64_t lines = batch * as_given.height * as_given.width * groups;
            if (channels_last || has_one_order(as_given))
                launch(fill_groups<T>, grid_for(lines * (depth / Group<T>::size)), stream,
                       FilledGroups<T>{lines, before, depth, given, copy_});
            else
                turn_images<T, true>(batch, as_given, groups, depth, given, copy_, stream);
        }
    }

    Images images;
    int depth;  // channels of a group
    bool last;
    const T* data;

   private:
    // How many values a copy has; 0: none is needed.
    std::int64_t order(std::int64_t batch, std::int64_t groups, const Images& as_given) {
        if (!is_narrow<T>) return 0;
        const bool whole = groups * depth == as_given.channels && in_groups(data) && (last || has_one_order(as_given));
        images = images_of(as_given.height, as_given.width, groups * depth, true);
        last = true;
        return whole ? 0 : batch * images.image;
    }

    Scratch<T> copy_;
};

}  // namespace cuda
}  // namespace tbptt
