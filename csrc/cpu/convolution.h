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
    if (is_depthwise(c)) return last ? DepthwiseLast<T>(c).run() : DepthwiseFirst<T>(c).run();
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
    Buffer<Tap> taps(kernel_size(p.shape));
    correlate(forward_correlation<T>(p.shape, p.x, p.w, p.b, p.activation, p.y, taps));
}

// dx of one phase of the stride: its pixels met only some of the taps. Output oy met input iy at tap ky where
// iy = oy·stride - pad + ky·dilation.
template <class T>
void input_gradient(const ConvolutionShape& s, const T* g, const T* w, T* grad_x, int64_t phase_y, int64_t phase_x) {
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
    correlate(Correlation<T>{g, output_image(s), 1, 1, taps, count, s.groups, depth, columns, w,
                             depth * columns * kernel_size(s), columns * kernel_size(s), kernel_size(s), nullptr,
                             Activation::none, grad_x, input_image(s), grid});
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p) {
    const ConvolutionShape& s = p.shape;
    const int64_t outputs = s.batch * output_image(s).plane() * s.outputs;
    const bool activated = p.activation != Activation::none;
    Buffer<T> before(activated ? outputs : 0);
    const T* g = activated ? static_cast<const T*>(before) : p.grad_y;
    if (activated) activation_backward(ActivationBackward<T>{outputs, p.activation, p.grad_y, p.y, before});
    if (p.grad_x)
        for (int64_t y = 0; y < s.stride_y; ++y)
            for (int64_t x = 0; x < s.stride_x; ++x) input_gradient<T>(s, g, p.w, p.grad_x, y, x);
    if (!p.grad_w && !p.grad_b) return;
    Buffer<Tap> taps(kernel_size(s));
    const Correlation<T> c =
        forward_correlation<T>(s, p.x, p.w, nullptr, Activation::none, static_cast<T*>(nullptr), taps);
    if (is_depthwise(c))
        return s.channels_last ? DepthwiseLast<T>(c).gradient(g, p.grad_w, p.grad_b)
                               : DepthwiseFirst<T>(c).gradient(g, p.grad_w, p.grad_b);
    for (int64_t group = 0; group < s.groups; ++group) {
        if (s.channels_last)
            ConvolutionGradientLast<T>(c, g, p.grad_w, p.grad_b, group).run();
        else
            ConvolutionGradientFirst<T>(c, g, p.grad_w, p.grad_b, group).run();
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
