// Convolutions whose groups are too small for products: every channel meets only itself or few others.
#pragma once

#include "activation.h"
#include "convolution_correlate.h"
#include "convolution_weights.h"

namespace tbptt {
namespace cuda {

inline bool is_depthwise(const ConvolutionShape& s) { return s.groups > 1 && s.groups == s.inputs; }

constexpr int depthwise_strip = 4;  // pixels of a column that a thread makes, so that they share what they load

template <class T>
struct DepthwiseSum {
    Images source_images, target_images;
    int multiplier;  // output channels of an input channel
    bool to_big;     // the target has the input's channels: each meets several of the source
    bool last;
    int phases_down, phases_across;
    Direction down[most_phases_down], across[most_phases_across];
    int step_y, step_x, target_step_y, target_step_x;
    int kernel_width, kernel_size;
    Divisor by_lanes;  // channels in groups (channels last), or all
    int batch, lanes;
    Activation activation;
    const T* source;
    const T* w;     // [outputs, 1, kernel]
    const T* bias;  // or null
    Results<T> target;
};

template <class T, int Width>
TBPTT_DEVICE void add_product(Real<T> (&sum)[Width], const Real<T> (&w)[Width], const Group<T, Width>& x) {
#pragma unroll
    for (int e = 0; e < Width; ++e) sum[e] += w[e] * x.value[e];
}

// Width: channels of a thread, 1 or a group of sums; Rows: taps of a column where they lie side by side and the target's rows
// too, so that a thread loads each pixel once, else 0.
template <class T, int Width, int Rows>
__global__ void depthwise_sum(const DepthwiseSum<T> p) {
    constexpr int strip = depthwise_strip;
    using Access = Group<T, Width>;
    using Sum = Real<T>;
    const int phase = static_cast<int>(blockIdx.y);
    const Direction &down = p.down[phase / p.phases_across], &across = p.across[phase % p.phases_across];
    const int strips = (down.pixels + strip - 1) / strip;
    const Images &source = p.source_images, &target = p.target_images;
    // x is innermost with channels first, the channels with channels last
    const Divisor &inner = p.last ? p.by_lanes : across.by_pixels, &outer = p.last ? across.by_pixels : p.by_lanes;
    const int all = p.batch * p.lanes * strips * across.pixels;
    for (std::int64_t index = global_index(); index < all; index += global_count()) {
        int rest = static_cast<int>(index), next = inner.quotient(rest);
        const int first = inner.remainder(rest, next);
        rest = next;
        int image, piece, second;
        if (p.last) {
            next = outer.quotient(rest), second = outer.remainder(rest, next);
            image = next / strips, piece = next - image * strips;
        } else {
            next = rest / strips, piece = rest - next * strips;
            image = outer.quotient(next), second = outer.remainder(next, image);
        }
        const int x = p.last ? second : first, channel = (p.last ? first : second) * Width, y = piece * strip;
        Sum sum[strip][Width];
#pragma unroll
        for (int s = 0; s < strip; ++s)
#pragma unroll
            for (int e = 0; e < Width; ++e) sum[s][e] = p.bias ? Sum(p.bias[channel + e]) : Sum(0);
        const int terms = p.to_big ? p.multiplier : 1;
        for (int term = 0; term < terms; ++term) {
            const int of_w = p.to_big ? channel * p.multiplier + term : channel;
            const int of_source = p.to_big ? of_w : channel / p.multiplier;
            const T* images = p.source + image * source.image + of_source * source.channel;
            for (int jx = 0; jx < across.taps; ++jx) {
                const int at_x = x * p.step_x + across.first_shift + jx * across.shift_step;
                if (static_cast<unsigned>(at_x) >= static_cast<unsigned>(source.width)) continue;
                const T* column = images + at_x * source.pixel;
                const T* weights = p.w + std::int64_t{of_w} * p.kernel_size + across.first_tap + jx * across.tap_step;
                const auto weights_of = [&](int jy, Sum(&w)[Width]) {
#pragma unroll
                    for (int e = 0; e < Width; ++e)
                        w[e] = weights[e * p.kernel_size + (down.first_tap + jy * down.tap_step) * p.kernel_width];
                };
                const auto load = [&](int at_y) {
                    Access value{};
                    if (static_cast<unsigned>(at_y) < static_cast<unsigned>(source.height))
                        value =
                            *reinterpret_cast<const Access*>(column + std::int64_t{at_y} * source.width * source.pixel);
                    return value;
                };
                if constexpr (Rows > 0) {
                    const bool turned = down.shift_step < 0;
                    const int top = y + down.first_shift - (turned ? Rows - 1 : 0);
                    Sum w[Rows][Width];
#pragma unroll
                    for (int j = 0; j < Rows; ++j) weights_of(turned ? Rows - 1 - j : j, w[j]);
#pragma unroll
                    for (int i = 0; i < strip + Rows - 1; ++i) {
                        const Access value = load(top + i);
#pragma unroll
                        for (int j = 0; j < Rows; ++j)
                            if (i - j >= 0 && i - j < strip)
                                add_product<T>(sum[i - j < 0 || i - j >= strip ? 0 : i - j], w[j], value);
                    }
                } else {
                    for (int jy = 0; jy < down.taps; ++jy) {
                        Sum w[Width];
                        weights_of(jy, w);
                        const int at_y = y * p.step_y + down.first_shift + jy * down.shift_step;
#pragma unroll
                        for (int s = 0; s < strip; ++s) add_product<T>(sum[s], w, load(at_y + s * p.step_y));
                    }
                }
            }
        }
        const std::int64_t to_x = across.first_target + std::int64_t{x} * p.target_step_x;
        const std::int64_t at = image * target.image + channel * target.channel + to_x * target.pixel;
#pragma unroll
        for (int s = 0; s < strip; ++s)
            if (y + s < down.pixels) {
                const std::int64_t to_y = down.first_target + std::int64_t{y + s} * p.target_step_y;
                Group<Sum, Width> values;
#pragma unroll
                for (int e = 0; e < Width; ++e)
                    values.value[e] = p.activation == Activation::relu ? ScalarMath<Sum>::relu(sum[s][e]) : sum[s][e];
                p.target.store(at + to_y * target.width * target.pixel, values);
            }
    }
}

template <class T, int Width>
void run_depthwise(DepthwiseSum<T>& p, Stream stream) {
    p.lanes = p.target_images.channels / Width;
    p.by_lanes = divide_by(p.lanes);
    std::int64_t most = 0;
    bool side_by_side = p.step_y == 1;
    for (int y = 0; y < p.phases_down; ++y) {
        side_by_side = side_by_side && p.down[y].taps == 3 && (p.down[y].shift_step == 1 || p.down[y].shift_step == -1);
        for (int x = 0; x < p.phases_across; ++x) {
            const std::int64_t threads = to_index(std::int64_t{p.batch} * p.lanes * p.across[x].pixels *
                                                  divide_up(p.down[y].pixels, depthwise_strip));
            most = threads > most ? threads : most;
        }
    }
    Grid grid = grid_for(most);
    grid.y = static_cast<unsigned>(p.phases_down * p.phases_across);
    launch(side_by_side ? depthwise_sum<T, Width, 3> : depthwise_sum<T, Width, 0>, grid, stream, p);
}

template <class T>
void depthwise_phases(DepthwiseSum<T>& p, Stream stream) {
    constexpr int group = Group<Real<T>>::size;
    p.last&& p.multiplier == 1 && p.target_images.channels % group == 0 && in_groups(p.source) &&
            in_groups(p.target.rounded)
        ? run_depthwise<T, group>(p, stream)
        : run_depthwise<T, 1>(p, stream);
}

constexpr int depthwise_taps = 9;  // whose gradients a thread keeps

template <class T>
struct DepthwiseWeights {
    PixelPlaces pixels;  // from 0 to all of the output
    Images output_images;
    Divisor by_plane;
    int multiplier, channels, kernel_size;  // of the output
    bool last;
    int part_pixels;
    const T* source;
    const T* g;
    Real<T>* parts;  // [parts, channels, kernel_size]
};

// A block has 32 channels and eight pixels at a time (channels last) or one channel and 256 pixels (first).
template <class T, bool Last>
__global__ void __launch_bounds__(256, 4) depthwise_weights(const DepthwiseWeights<T> p) {
    constexpr int taps = depthwise_taps;
    const int lane = lane_index(), warp = warp_index(), first_tap = static_cast<int>(blockIdx.z) * taps;
    const int channel = Last ? static_cast<int>(blockIdx.x) * warp_size + lane : static_cast<int>(blockIdx.x);
    const int begin = static_cast<int>(blockIdx.y) * p.part_pixels;
    const int end = p.pixels.end - begin < p.part_pixels ? p.pixels.end : begin + p.part_pixels;
    const Direction &down = p.pixels.down, &across = p.pixels.across;
    const Images& images = p.pixels.images;
    Real<T> sum[taps];
#pragma unroll
    for (int t = 0; t < taps; ++t) sum[t] = 0;
    if (channel < p.channels) {
        const T* source = p.source + channel / p.multiplier * images.channel;
        const T* g = p.g + channel * p.output_images.channel;
        for (int i = begin + (Last ? warp : static_cast<int>(threadIdx.x)); i < end; i += Last ? 8 : 256) {
            const Place at = p.pixels(i);
            const int image = p.by_plane.quotient(i);
            const Real<T> gradient =
                g[image * p.output_images.image + p.by_plane.remainder(i, image) * p.output_images.pixel];
#pragma unroll
            for (int t = 0; t < taps; ++t) {
                const int tap = first_tap + t, jy = across.by_taps.quotient(tap);
                const int dy = down.first_shift + jy * down.shift_step;
                const int dx = across.first_shift + across.by_taps.remainder(tap, jy) * across.shift_step;
                if (tap < p.kernel_size && static_cast<unsigned>(at.y + dy) < static_cast<unsigned>(images.height) &&
                    static_cast<unsigned>(at.x + dx) < static_cast<unsigned>(images.width))
                    sum[t] += gradient * source[at.element + (std::int64_t{dy} * images.width + dx) * images.pixel];
            }
        }
    }
    Real<T>* sums = shared_memory<Real<T>>();  // [warps, taps, lanes]
#pragma unroll
    for (int t = 0; t < taps; ++t) sums[(warp * taps + t) * warp_size + lane] = sum[t];
    __syncthreads();
    for (int t = warp; t < taps; t += 8) {
        Real<T> total = 0;
#pragma unroll
        for (int w = 0; w < 8; ++w) total += sums[(w * taps + t) * warp_size + lane];
        if (!Last)
            for (int distance = 16; distance > 0; distance /= 2) total += from_lane(total, lane ^ distance);
        if (first_tap + t < p.kernel_size && channel < p.channels && (Last || lane == 0))
            p.parts[(std::int64_t{blockIdx.y} * p.channels + channel) * p.kernel_size + first_tap + t] = total;
    }
}

template <class T>
void depthwise_weight_gradient(const ConvolutionShape& s, const T* source, const T* g, T* grad_w, Stream stream) {
    const int pixels = to_index(s.batch * s.out_height * s.out_width), channels = to_index(s.outputs);
    const int kernel = to_index(s.kernel_height * s.kernel_width);
    if (channels == 0) return;
    const Direction down = forward_direction(s.out_height, s.kernel_height, s.dilation_y, s.pad_top);
    const Direction across = forward_direction(s.out_width, s.kernel_width, s.dilation_x, s.pad_left);
    DepthwiseWeights<T> p{
        {down, across, input_images(s), step_of(s.out_height, s.stride_y), step_of(s.out_width, s.stride_x), 0, pixels},
        output_images(s),
        divide_by(s.out_height * s.out_width),
        to_index(s.outputs / s.inputs),
        channels,
        kernel,
        s.channels_last,
        0,
        source,
        g,
        nullptr};
    constexpr std::int64_t blocks = 1056;  // eight on each multiprocessor of a large chip
    Grid grid;
    grid.x = static_cast<unsigned>(s.channels_last ? divide_up(channels, warp_size) : channels);
    grid.z = static_cast<unsigned>(divide_up(kernel, depthwise_taps));
    const std::int64_t at_once = s.channels_last ? 8 : 256, least = 16 * at_once;
    std::int64_t parts = divide_up(blocks, std::int64_t{grid.x} * grid.z);
    if (parts > pixels / least) parts = pixels / least;
    if (parts < 1) parts = 1;
    p.part_pixels = static_cast<int>(divide_up(divide_up(pixels, parts), at_once) * at_once);
    parts = pixels > 0 ? divide_up(pixels, p.part_pixels) : 1;
    grid.y = static_cast<unsigned>(parts);
    grid.shared_bytes = 8 * depthwise_taps * warp_size * sizeof(Real<T>);
    const std::int64_t size = std::int64_t{channels} * kernel;
    const bool direct = parts == 1 && !is_narrow<T>;
    const Scratch<Real<T>> sums(direct ? 0 : parts * size, stream);
    p.parts = direct ? only_part(grad_w) : static_cast<Real<T>*>(sums);
    launch(s.channels_last ? depthwise_weights<T, true> : depthwise_weights<T, false>, grid, stream, p);
    if (!direct) run_sums(PartSums<T>{size, static_cast<int>(parts), 0, 0, 0, 0, sums, grad_w}, stream);
}

}  // namespace cuda
}  // namespace tbptt
