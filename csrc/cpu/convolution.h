// Convolution and its transpose, forward and backward, as correlations.
#pragma once

#include "channels.h"
#include "convolution_gradient.h"
#include "correlation_first.h"
#include "correlation_last.h"
#include "depthwise.h"
#include "shallow_first.h"
#include "shallow_gradient.h"
#include "shallow_last.h"
#include "shallow_transposed.h"
#include "winograd_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

// A kernel of one element meets pixels one by one where nothing is strided or padded: images are rows of pixels then.
TBPTT_INLINE ConvolutionShape flattened(ConvolutionShape s) {
    const bool point = s.kernel_height == 1 && s.kernel_width == 1 && s.stride_y == 1 && s.stride_x == 1;
    if (!point || s.pad_top != 0 || s.pad_left != 0 || s.out_height != s.height || s.out_width != s.width) return s;
    s.width = s.out_width = s.height * s.width;
    s.height = s.out_height = 1;
    return s;
}

template <class T>
void correlate(const Correlation<T>& c) {
    if (c.grid.positions() == 0 || c.groups * c.columns == 0) return;
    const bool last = c.source_shape.channels_last;
    switch (winograd_tile(c)) {
        case 2: return WinogradCorrelation<T, 2>(c).run();
        case 4: return WinogradCorrelation<T, 4>(c).run();
        default: break;
    }
    last ? CorrelationLast<T>(c).run() : CorrelationFirst<T>(c).run();
}

TBPTT_INLINE ImageShape input_image(const ConvolutionShape& s) {
    return {s.height, s.width, s.inputs, s.channels_last};
}
TBPTT_INLINE ImageShape output_image(const ConvolutionShape& s) {
    return {s.out_height, s.out_width, s.outputs, s.channels_last};
}
TBPTT_INLINE int64_t kernel_size(const ConvolutionShape& s) { return s.kernel_height * s.kernel_width; }

// The correlation that makes the output; taps [kernel_size] is filled.
template <class T>
Correlation<T> forward_correlation(const ConvolutionShape& s, const T* x, const T* w, const T* b, Activation activation,
                                   T* y, Tap* taps, PackedWeights* packed = nullptr) {
    for (int64_t i = 0; i < kernel_size(s); ++i)
        taps[i] = {i / s.kernel_width * s.dilation_y - s.pad_top, i % s.kernel_width * s.dilation_x - s.pad_left, i};
    const int64_t depth = s.inputs / s.groups, columns = s.outputs / s.groups, row = depth * kernel_size(s);
    return {x,
            input_image(s),
            s.stride_y,
            s.stride_x,
            taps,
            kernel_size(s),
            s.groups,
            depth,
            columns,
            w,
            columns * row,
            kernel_size(s),
            row,
            b,
            activation,
            y,
            output_image(s),
            {s.batch, s.out_height, s.out_width},
            s.algorithm,
            packed};
}

// The transpose of the convolution, one phase of the stride: its pixels met only some of the taps. Output oy met input iy
// at tap ky where iy = oy·stride - pad + ky·dilation.
template <class T>
void transposed_phase(const ConvolutionForward<T>& p, int64_t phase_y, int64_t phase_x) {
    const ConvolutionShape& s = p.shape;
    Buffer<Tap> taps(kernel_size(s));
    int64_t count = 0;
    for (int64_t i = 0; i < kernel_size(s); ++i) {
        const int64_t y = phase_y + s.pad_top - i / s.kernel_width * s.dilation_y;
        const int64_t x = phase_x + s.pad_left - i % s.kernel_width * s.dilation_x;
        if (y % s.stride_y == 0 && x % s.stride_x == 0) taps[count++] = {y / s.stride_y, x / s.stride_x, i};
    }
    const Grid grid{s.batch,
                    ceil_div(larger<int64_t>(0, s.height - phase_y), s.stride_y),
                    ceil_div(larger<int64_t>(0, s.width - phase_x), s.stride_x),
                    phase_y,
                    phase_x,
                    s.stride_y,
                    s.stride_x};
    const int64_t depth = s.outputs / s.groups, columns = s.inputs / s.groups;
    correlate(Correlation<T>{p.x,
                             output_image(s),
                             1,
                             1,
                             taps,
                             count,
                             s.groups,
                             depth,
                             columns,
                             p.w,
                             depth * columns * kernel_size(s),
                             columns * kernel_size(s),
                             kernel_size(s),
                             p.b,
                             p.activation,
                             p.y,
                             input_image(s),
                             grid,
                             s.algorithm,
                             p.packed});
}

// The way that a convolution takes, to be asked for by name: for fewer or more images the automatic choice may be another, whose
// sums have other bits.
template <class T>
Algorithm way_of(const ConvolutionShape& s) {
    Buffer<Tap> taps(kernel_size(s));
    if (shallow::is_shallow<T>(s)) return Algorithm::direct;
    switch (winograd_tile(forward_correlation<T>(s, nullptr, nullptr, nullptr, Activation::none, nullptr, taps))) {
        case 2: return Algorithm::winograd_2x2;
        case 4: return Algorithm::winograd_4x4;
        default: return Algorithm::direct;
    }
}

// Whether a convolution without stride that is none of depth goes a faster way than over the tiles of CorrelationLast; so does
// its transpose.
template <class T>
bool has_faster_way(const ConvolutionShape& s) {
    return shallow::is_shallow<T>(s) || way_of<T>(s) != Algorithm::direct;
}

template <class T>
void convolution_forward(const ConvolutionForward<T>& given) {
    ConvolutionForward<T> p = given;
    p.shape = flattened(p.shape);
    if (is_depthwise(p.shape)) return depthwise_sum<T>(p.shape, p.shape.transposed, p.x, p.w, p.b, p.activation, p.y);
    if (shallow::is_shallow<T>(p.shape)) {
        if (p.shape.transposed) return ShallowTransposed<T>(p).run();
        return p.shape.channels_last ? ShallowLast<T>(p).run() : ShallowFirst<T>(p).run();
    }
    if (!p.shape.transposed) {
        Buffer<Tap> taps(kernel_size(p.shape));
        return correlate(forward_correlation<T>(p.shape, p.x, p.w, p.b, p.activation, p.y, taps, p.packed));
    }
    for (int64_t y = 0; y < p.shape.stride_y; ++y)
        for (int64_t x = 0; x < p.shape.stride_x; ++x) transposed_phase(p, y, x);
}

TBPTT_INLINE int64_t size_of(int64_t batch, const ImageShape& image) { return batch * image.plane() * image.channels; }

// sums [channels] = the sums over all pixels of all images.
template <class T>
void channel_sums(int64_t batch, const ImageShape& image, const T* x, T* sums) {
    const ChannelCuts cuts = cut_channels(image.channels_last ? ChannelShape{batch * image.plane(), image.channels, 1}
                                                              : ChannelShape{batch, image.channels, image.plane()});
    Buffer<double> parts(cuts.parts());
    const int threads = threads_for(static_cast<double>(size_of(batch, image)));
    Tasks tasks(cuts.tasks(), threads);
    run_parallel(threads, [&](const Worker& worker) {
        tasks.run(worker, [&](int64_t i) {
            const ChannelTask task = task_of(cuts, i);
            sum_channels<1>(cuts, task, {parts + task.block * cuts.shape.channels},
                            [&](int64_t k, int64_t count, auto) { return Terms<1>{{load_double(x + k, count)}}; });
        });
        wait_for_all(worker);
        const Range mine = split(image.channels, worker);
        for (int64_t channel = mine.begin; channel < mine.end; ++channel) {
            double sum = 0;
            for (int64_t i = channel; i < cuts.parts(); i += cuts.channels) sum += parts[i];
            sums[channel] = static_cast<T>(sum);
        }
    });
}

// Parts of the images, each with a gradient by the weights of its own, that are added in their order: small gradients leave
// threads too little to share within a block of pixels. The problem alone decides how many.
template <class T>
int64_t image_parts(const ConvolutionShape& s) {
    constexpr int64_t most = 8, bytes = 1 << 20, least_pixels = 512;
    const int64_t size = s.outputs * (s.inputs / s.groups) * kernel_size(s) * static_cast<int64_t>(sizeof(T));
    int64_t parts = 1;
    while (parts < most && 2 * parts <= s.batch && 2 * parts * size <= bytes &&
           s.batch * s.out_height * s.out_width >= 2 * parts * least_pixels)
        parts *= 2;
    return parts;
}

template <class T>
void direct_weight_gradients(const Correlation<T>& c, const T* g, T* grad_w, T* grad_b, int threads) {
    const int useful = threads_for(c.flops() / static_cast<double>(c.groups));
    for (int64_t group = 0; group < c.groups; ++group)
        c.source_shape.channels_last
            ? ConvolutionGradientLast<T>(c, g, grad_w, grad_b, group, smaller(threads, useful)).run()
            : ConvolutionGradientFirst<T>(c, g, grad_w, grad_b, group, smaller(threads, useful)).run();
}

// c: the forward correlation of all images
template <class T>
void add_parts(const ConvolutionShape& s, const Correlation<T>& c, const T* g, T* grad_w, T* grad_b) {
    const int64_t parts = image_parts<T>(s), w_size = grad_w ? c.columns * c.groups * c.depth * c.tap_count : 0,
                  size = w_size + (grad_b ? s.outputs : 0);
    Buffer<T> sums((parts - 1) * size);
    const auto find = [&](int64_t i, int threads) {
        const Range images = split(s.batch, i, parts);
        Correlation<T> part = c;
        part.source += images.begin * size_of(1, c.source_shape);
        part.grid.batch = images.end - images.begin;
        T* to = i > 0 ? sums + (i - 1) * size : nullptr;
        direct_weight_gradients<T>(part, g + images.begin * size_of(1, c.target_shape), grad_w && to ? to : grad_w,
                                   grad_b && to ? to + w_size : grad_b, threads);
    };
    const int threads = threads_for(c.flops());
    if (threads <= parts) {
        Tasks tasks(parts, threads);
        run_parallel(threads, [&](const Worker& worker) { tasks.run(worker, [&](int64_t i) { find(i, 1); }); });
    } else {
        for (int64_t i = 0; i < parts; ++i) find(i, threads);
    }
    const auto add = [&](T* to, int64_t count, int64_t first) {
        share_elements<T>(parts > 1 ? count : 0, [&](int64_t begin, int64_t length) {
            for (int64_t i = 0; i + 1 < parts; ++i) {
                const T* from = sums + i * size + first + begin;
                for (int64_t k = 0; k < length; ++k) to[begin + k] += from[k];
            }
        });
    };
    if (grad_w) add(grad_w, w_size, 0);
    if (grad_b) add(grad_b, s.outputs, w_size);
}

// The gradients by w and b of the convolution of x, for the gradient g by its output before the activation.
template <class T>
void weight_gradients(const ConvolutionShape& s, const T* x, const T* g, T* grad_w, T* grad_b) {
    if (!grad_w && !grad_b) return;
    if (shallow::has_shallow_gradient<T>(s)) return ShallowGradient<T>(s, x, g, grad_w, grad_b).run();
    Buffer<Tap> taps(kernel_size(s));
    const Correlation<T> c = forward_correlation<T>(s, x, nullptr, nullptr, Activation::none, nullptr, taps);
    if (const int tile = grad_w ? winograd_tile(c) : 0) {
        if (grad_b) channel_sums<T>(s.batch, output_image(s), g, grad_b);
        return tile == 2 ? WinogradGradient<T, 2>(c, g, grad_w).run() : WinogradGradient<T, 4>(c, g, grad_w).run();
    }
    add_parts<T>(s, c, g, grad_w, grad_b);
}

// The gradient before the activation: `before` is filled where there is one.
template <class T>
const T* before_activation(Activation activation, int64_t count, const T* grad_y, const T* y, T* before) {
    if (activation == Activation::none) return grad_y;
    activation_backward(ActivationBackward<T>{count, activation, grad_y, y, before});
    return before;
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p) {
    const ConvolutionShape s = flattened(p.shape);
    const ImageShape image = s.transposed ? input_image(s) : output_image(s);  // of y
    const int64_t count = size_of(s.batch, image);
    Buffer<T> before(p.activation == Activation::none ? 0 : count);
    const T* g = before_activation<T>(p.activation, count, p.grad_y, p.y, before);
    if (is_depthwise(s)) {
        if (!s.transposed) return depthwise_gradients<T>(s, p.x, g, true, p.w, p.grad_x, p.grad_w, p.grad_b);
        depthwise_gradients<T>(s, g, p.x, false, p.w, p.grad_x, p.grad_w, nullptr);
        if (p.grad_b) channel_sums<T>(s.batch, image, g, p.grad_b);
        return;
    }
    if (p.grad_x) {
        ConvolutionShape transpose = s;
        transpose.transposed = !s.transposed;
        convolution_forward(ConvolutionForward<T>{transpose, Activation::none, g, p.w, p.packed, nullptr, p.grad_x});
    }
    if (!s.transposed) return weight_gradients<T>(s, p.x, g, p.grad_w, p.grad_b);
    weight_gradients<T>(s, g, p.x, p.grad_w, nullptr);
    if (p.grad_b) channel_sums<T>(s.batch, image, g, p.grad_b);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
