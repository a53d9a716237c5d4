// Convolution, forward and backward, as correlations.
#pragma once

#include "convolution_gradient.h"
#include "correlation_first.h"
#include "correlation_last.h"
#include "depthwise.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
void correlate(const Correlation<T>& c) {
    if (c.grid.positions() == 0 || c.groups * c.columns == 0) return;
    const bool last = c.source_shape.channels_last;
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
                                   T* y, Tap* taps) {
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
            {s.batch, s.out_height, s.out_width}};
}

template <class T>
void convolution_forward(const ConvolutionForward<T>& p) {
    if (is_depthwise(p.shape)) return depthwise_sum<T>(p.shape, false, p.x, p.w, p.b, p.activation, p.y);
    Buffer<Tap> taps(kernel_size(p.shape));
    correlate(forward_correlation<T>(p.shape, p.x, p.w, p.b, p.activation, p.y, taps));
}

// The transpose of the convolution, one phase of the stride: its pixels met only some of the taps. Output oy met input iy
// at tap ky where iy = oy·stride - pad + ky·dilation.
template <class T>
void transposed_phase(const TransposedForward<T>& p, int64_t phase_y, int64_t phase_x) {
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
    correlate(Correlation<T>{p.x, output_image(s), 1, 1, taps, count, s.groups, depth, columns, p.w,
                             depth * columns * kernel_size(s), columns * kernel_size(s), kernel_size(s), p.b,
                             p.activation, p.y, input_image(s), grid});
}

template <class T>
void transposed_forward(const TransposedForward<T>& p) {
    if (is_depthwise(p.shape)) return depthwise_sum<T>(p.shape, true, p.x, p.w, p.b, p.activation, p.y);
    for (int64_t y = 0; y < p.shape.stride_y; ++y)
        for (int64_t x = 0; x < p.shape.stride_x; ++x) transposed_phase(p, y, x);
}

// The gradients by w and b of the convolution of x, for the gradient g by its output before the activation.
template <class T>
void weight_gradients(const ConvolutionShape& s, const T* x, const T* g, T* grad_w, T* grad_b) {
    if (!grad_w && !grad_b) return;
    Buffer<Tap> taps(kernel_size(s));
    const Correlation<T> c = forward_correlation<T>(s, x, nullptr, nullptr, Activation::none, nullptr, taps);
    for (int64_t group = 0; group < s.groups; ++group)
        s.channels_last ? ConvolutionGradientLast<T>(c, g, grad_w, grad_b, group).run()
                        : ConvolutionGradientFirst<T>(c, g, grad_w, grad_b, group).run();
}

// The gradient before the activation: `before` is filled where there is one.
template <class T>
const T* before_activation(Activation activation, int64_t count, const T* grad_y, const T* y, T* before) {
    if (activation == Activation::none) return grad_y;
    activation_backward(ActivationBackward<T>{count, activation, grad_y, y, before});
    return before;
}

TBPTT_INLINE int64_t size_of(int64_t batch, const ImageShape& image) { return batch * image.plane() * image.channels; }

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p) {
    const ConvolutionShape& s = p.shape;
    const int64_t count = size_of(s.batch, output_image(s));
    Buffer<T> before(p.activation == Activation::none ? 0 : count);
    const T* g = before_activation<T>(p.activation, count, p.grad_y, p.y, before);
    if (is_depthwise(s)) return depthwise_gradients<T>(s, p.x, g, true, p.w, p.grad_x, p.grad_w, p.grad_b);
    if (p.grad_x) transposed_forward(TransposedForward<T>{s, Activation::none, g, p.w, nullptr, p.grad_x});
    weight_gradients<T>(s, p.x, g, p.grad_w, p.grad_b);
}

// sums [channels] = the sums over all pixels of all images, each in the order of memory.
template <class T>
void channel_sums(int64_t batch, const ImageShape& image, const T* x, T* sums) {
    run_parallel(threads_for(static_cast<double>(size_of(batch, image))), [&](const Worker& worker) {
        const Range mine = split(image.channels, worker);
        for (int64_t channel = mine.begin; channel < mine.end; ++channel) {
            T sum = 0;
            for (int64_t n = 0; n < batch; ++n) {
                const T* from = x + image.at(n, 0, 0) + channel * image.channel_stride();
                const int64_t stride = image.channels_last ? image.channels : 1;
                for (int64_t i = 0; i < image.plane(); ++i) sum += from[i * stride];
            }
            sums[channel] = sum;
        }
    });
}

template <class T>
void transposed_backward(const TransposedBackward<T>& p) {
    const ConvolutionShape& s = p.shape;
    const int64_t count = size_of(s.batch, input_image(s));
    Buffer<T> before(p.activation == Activation::none ? 0 : count);
    const T* g = before_activation<T>(p.activation, count, p.grad_y, p.y, before);
    if (is_depthwise(s)) {
        depthwise_gradients<T>(s, g, p.x, false, p.w, p.grad_x, p.grad_w, nullptr);
    } else {
        if (p.grad_x) convolution_forward(ConvolutionForward<T>{s, Activation::none, g, p.w, nullptr, p.grad_x});
        weight_gradients<T>(s, g, p.x, p.grad_w, static_cast<T*>(nullptr));
    }
    if (p.grad_b) channel_sums<T>(s.batch, input_image(s), g, p.grad_b);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
