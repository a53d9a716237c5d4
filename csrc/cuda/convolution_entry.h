// The convolutions' entries, forward and backward, for units that instantiate them.
#pragma once

#include <algorithm>

#include "api.h"
#include "convolution_bias.h"
#include "convolution_packed.h"
#include "convolution_weights.h"
#include "depthwise.h"

namespace tbptt {
namespace cuda {

inline void check_sizes(const ConvolutionShape& s) {
    for (const std::int64_t size :
         {s.batch, s.inputs, s.outputs, s.height + s.pad_top, s.width + s.pad_left, s.batch * s.height * s.width,
          s.batch * s.out_height * s.out_width, s.kernel_height * s.kernel_width * (s.inputs / s.groups),
          s.kernel_height * s.kernel_width * (s.outputs / s.groups), (s.out_height - 1) * s.stride_y + 1,
          (s.out_width - 1) * s.stride_x + 1})
        to_index(size);
}

template <class Sum>
void set_forward(const ConvolutionShape& s, Sum& p) {
    p.step_y = step_of(s.out_height, s.stride_y);
    p.step_x = step_of(s.out_width, s.stride_x);
    p.target_step_y = p.target_step_x = 1;
    p.phases_down = p.phases_across = 1;
    p.down[0] = forward_direction(s.out_height, s.kernel_height, s.dilation_y, s.pad_top);
    p.across[0] = forward_direction(s.out_width, s.kernel_width, s.dilation_x, s.pad_left);
}

// Calls run() with the phases, those of a transpose as many at a time as one launch takes.
template <class Sum, class Run>
void for_phases(const ConvolutionShape& s, Sum& p, Run run) {
    if (!s.transposed) {
        set_forward(s, p);
        return run();
    }
    const std::int64_t all_down = std::min(s.height, s.stride_y), all_across = std::min(s.width, s.stride_x);
    p.step_y = p.step_x = 1;
    p.target_step_y = step_of(s.height > s.stride_y ? 2 : 1, s.stride_y);
    p.target_step_x = step_of(s.width > s.stride_x ? 2 : 1, s.stride_x);
    for (std::int64_t y = 0; y < all_down; y += most_phases_down)
        for (std::int64_t x = 0; x < all_across; x += most_phases_across) {
            p.phases_down = static_cast<int>(all_down - y < most_phases_down ? all_down - y : most_phases_down);
            p.phases_across =
                static_cast<int>(all_across - x < most_phases_across ? all_across - x : most_phases_across);
            for (int i = 0; i < p.phases_down; ++i)
                p.down[i] = transposed_direction(s.height, s.kernel_height, s.stride_y, s.dilation_y, s.pad_top, y + i);
            for (int i = 0; i < p.phases_across; ++i)
                p.across[i] =
                    transposed_direction(s.width, s.kernel_width, s.stride_x, s.dilation_x, s.pad_left, x + i);
            run();
        }
}

template <class T>
void depthwise(const ConvolutionForward<T>& f, const Call& call) {
    const ConvolutionShape& s = f.shape;
    DepthwiseSum<T> p{};
    p.source_images = source_images(s);
    p.target_images = target_images(s);
    p.multiplier = to_index(s.outputs / s.inputs);
    p.to_big = s.transposed;
    p.last = s.channels_last;
    p.kernel_width = to_index(s.kernel_width);
    p.kernel_size = to_index(s.kernel_height * s.kernel_width);
    p.batch = to_index(s.batch);
    p.activation = f.activation;
    p.source = f.x;
    p.w = f.w;
    p.bias = f.b;
    p.target = {f.y, nullptr};
    run_and_activate<T>(p, s.batch * p.target_images.image, call.stream,
                        [&] { for_phases(s, p, [&] { depthwise_phases(p, call.stream); }); });
}

// What weights and sizes tell a correlation, whose source has `depth` channels of a group: neither phases nor images.
template <class T>
Correlation<T> correlation_of(const ConvolutionShape& s, const T* w, const T* b, int depth, bool last) {
    const std::int64_t kernel = s.kernel_height * s.kernel_width, inputs = s.inputs / s.groups,
                       outputs = s.outputs / s.groups;
    const Images source = source_images(s), target = target_images(s);
    Correlation<T> p{};
    p.source_images = images_of(source.height, source.width, s.groups * depth, last);
    p.target_images = images_of(target.height, target.width, target.channels, last);
    p.groups = to_index(s.groups);
    p.depth = depth;
    p.w_depths = to_index(s.transposed ? outputs : inputs);
    p.columns = to_index(s.transposed ? inputs : outputs);
    p.kernel_width = to_index(s.kernel_width);
    p.by_depth = divide_by(depth);
    p.last = last;
    p.w = w;
    p.w_group = outputs * inputs * kernel;
    p.w_column = s.transposed ? kernel : inputs * kernel;
    p.w_depth = s.transposed ? inputs * kernel : kernel;
    p.bias = b;
    to_index(kernel * depth);  // which may have zeros behind what check_sizes knew
    return p;
}

// Sets how many images there are, and for them the parts. There are pixels.
template <class T>
void set_batch(const ConvolutionShape& s, std::int64_t batch, Correlation<T>& p) {
    p.batch = to_index(batch);
    if (!s.transposed) {
        p.parts = parts_of(p, 1, batch * s.out_height * s.out_width, s.kernel_height * s.kernel_width);
        return;
    }
    // phases that meet taps, as if all had the same size
    const std::int64_t down = std::min(s.height, s.stride_y), across = std::min(s.width, s.stride_x);
    p.parts = parts_of(p, std::min(down, s.kernel_height) * std::min(across, s.kernel_width),
                       batch * divide_up(s.height, down) * divide_up(s.width, across),
                       divide_up(s.kernel_height, s.stride_y) * divide_up(s.kernel_width, s.stride_x));
}

// `source` is f.x in order. In another order than f.y's the results are turned round behind.
template <class T>
void correlation(const ConvolutionForward<T>& f, const OrderedImages<T>& source, const Call& call) {
    const ConvolutionShape& s = f.shape;
    const Images results = target_images(s);
    const bool turned = source.last && !s.channels_last && !has_one_order(results);
    const Scratch<T> together(turned ? s.batch * results.image : 0, call.stream);
    Correlation<T> p = correlation_of(s, f.w, f.b, source.depth, source.last);
    p.activation = f.activation;
    p.source = source.data;
    p.target = {turned ? together : f.y, nullptr};
    if (s.transposed && s.height * s.width == 0) return;
    set_batch(s, s.batch, p);
    run_in_parts<T>(p, s.batch, call.stream, [&] { for_phases(s, p, [&] { correlate_phases(p, call); }); });
    if constexpr (is_narrow<T>)
        if (together) turn_images<T, false>(s.batch, results, together, f.y, call.stream);
}

template <class T>
PackedConvolution<T>::PackedConvolution(const ConvolutionShape& shape, const T* w, const T* b, const Call& call)
    : shape_(shape), call_(call), p_(correlate(shape, w, b)), factors_(p_, call.stream) {}

template <class T>
Correlation<T> PackedConvolution<T>::correlate(const ConvolutionShape& s, const T* w, const T* b) {
    check_sizes(s);
    Correlation<T> p = correlation_of(s, w, b, ordered_depth<T>(s.transposed ? s.outputs : s.inputs), true);
    for_phases(s, p, [] {});  // there is one
    return p;
}

template <class T>
void PackedConvolution<T>::run(std::int64_t images, const int* live, const T* x, Real<T>* y) const {
    ConvolutionShape s = shape_;
    s.batch = images;
    check_sizes(s);
    const OrderedImages<T> source(x, images, 1, source_images(s), true, call_.stream);
    Correlation<T> p = p_;
    p.source = source.data;
    p.target.take_sums(y);
    p.live = live;
    set_batch(s, images, p);
    run_in_parts<T>(p, images, call_.stream, [&] { correlate_packed(p, call_); });
}

template <class T>
void convolution_forward(const ConvolutionForward<T>& p, const Call& call) {
    const ConvolutionShape& s = p.shape;
    check_sizes(s);
    if (is_depthwise(s)) return depthwise(p, call);
    const OrderedImages<T> source(p.x, s.batch, s.groups, source_images(s), s.channels_last, call.stream);
    correlation(p, source, call);
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p, const Call& call) {
    const ConvolutionShape& s = p.shape;
    check_sizes(s);
    const Images images = target_images(s);  // of y
    const Scratch<T> before(p.activation == Activation::none ? 0 : s.batch * images.image, call.stream);
    const T* g = before ? before : p.grad_y;
    find_before_activation<T>(p.activation, s.batch, images, s.channels_last, p.grad_y, p.y, before, p.grad_b,
                              call.stream);
    if (!p.grad_x && !p.grad_w) return;
    ConvolutionShape transpose = s;
    transpose.transposed = !s.transposed;
    const ConvolutionForward<T> by_x{transpose, Activation::none, g, p.w, nullptr, nullptr, p.grad_x};
    if (is_depthwise(s)) {
        if (p.grad_x) depthwise(by_x, call);
        if (p.grad_w)
            depthwise_weight_gradient(s, s.transposed ? g : p.x, s.transposed ? p.x : g, p.grad_w, call.stream);
        return;
    }
    const OrderedImages<T> by_y(g, s.batch, s.groups, images, s.channels_last, call.stream);
    if (p.grad_x) correlation(by_x, by_y, call);
    if (!p.grad_w) return;
    const OrderedImages<T> x(p.x, s.batch, s.groups, source_images(s), s.channels_last, call.stream);
    s.transposed ? weight_gradient(s, by_y, x, p.grad_w, call) : weight_gradient(s, x, by_y, p.grad_w, call);
}

}  // namespace cuda
}  // namespace tbptt
