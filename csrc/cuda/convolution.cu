// Convolution and its transpose, forward and backward.
#include <algorithm>

#include "api.h"
#include "convolution_bias.h"
#include "convolution_correlate.h"
#include "convolution_weights.h"
#include "depthwise.h"

namespace tbptt {
namespace cuda {

namespace {

void check_sizes(const ConvolutionShape& s) {
    for (const std::int64_t size :
         {s.batch, s.inputs, s.outputs, s.height + s.pad_top, s.width + s.pad_left, s.batch * s.height * s.width,
          s.batch * s.out_height * s.out_width, s.kernel_height * s.kernel_width * (s.inputs / s.groups),
          s.kernel_height * s.kernel_width * (s.outputs / s.groups), (s.out_height - 1) * s.stride_y + 1,
          (s.out_width - 1) * s.stride_x + 1})
        to_index(size);
}

template <class T, class Sum>
void set_forward(const ConvolutionShape& s, Sum& p) {
    p.source_images = input_images(s);
    p.target_images = output_images(s);
    p.step_y = step_of(s.out_height, s.stride_y);
    p.step_x = step_of(s.out_width, s.stride_x);
    p.target_step_y = p.target_step_x = 1;
    p.phases_down = p.phases_across = 1;
    p.down[0] = forward_direction(s.out_height, s.kernel_height, s.dilation_y, s.pad_top);
    p.across[0] = forward_direction(s.out_width, s.kernel_width, s.dilation_x, s.pad_left);
}

// Calls run() with phases of the transpose, as many at a time as one launch takes.
template <class T, class Sum, class Run>
void for_phases(const ConvolutionShape& s, Sum& p, Run run) {
    const std::int64_t all_down = std::min(s.height, s.stride_y), all_across = std::min(s.width, s.stride_x);
    p.source_images = output_images(s);
    p.target_images = input_images(s);
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
    p.target = f.y;
    if (!s.transposed) {
        set_forward<T>(s, p);
        return depthwise_phases(p, call.stream);
    }
    for_phases<T>(s, p, [&] { depthwise_phases(p, call.stream); });
}

template <class T>
void correlation(const ConvolutionForward<T>& f, const Call& call) {
    const ConvolutionShape& s = f.shape;
    const std::int64_t kernel = s.kernel_height * s.kernel_width, inputs = s.inputs / s.groups,
                       outputs = s.outputs / s.groups;
    Correlation<T> p{};
    p.batch = to_index(s.batch);
    p.groups = to_index(s.groups);
    p.depth = to_index(s.transposed ? outputs : inputs);
    p.columns = to_index(s.transposed ? inputs : outputs);
    p.kernel_width = to_index(s.kernel_width);
    p.by_depth = divide_by(p.depth);
    p.last = s.channels_last;
    p.relu = f.activation == Activation::relu;
    p.source = f.x;
    p.w = f.w;
    p.w_group = outputs * inputs * kernel;
    p.w_column = s.transposed ? kernel : inputs * kernel;
    p.w_depth = s.transposed ? inputs * kernel : kernel;
    p.bias = f.b;
    p.target = f.y;
    if (!s.transposed) {
        p.parts = parts_of(p, 1, s.batch * s.out_height * s.out_width, kernel);
        set_forward<T>(s, p);
        return correlate_in_parts(p, output_images(s), call.stream, [&] { correlate_phases(p, call); });
    }
    // phases that meet taps, as if all had the same size
    const std::int64_t down = std::min(s.height, s.stride_y), across = std::min(s.width, s.stride_x);
    if (down * across == 0) return;
    p.parts = parts_of(p, std::min(down, s.kernel_height) * std::min(across, s.kernel_width),
                       s.batch * divide_up(s.height, down) * divide_up(s.width, across),
                       divide_up(s.kernel_height, s.stride_y) * divide_up(s.kernel_width, s.stride_x));
    correlate_in_parts(p, input_images(s), call.stream,
                       [&] { for_phases<T>(s, p, [&] { correlate_phases(p, call); }); });
}

}  // namespace

template <class T>
void convolution_forward(const ConvolutionForward<T>& p, const Call& call) {
    const ConvolutionShape& s = p.shape;
    check_sizes(s);
    is_depthwise(s) ? depthwise(p, call) : correlation(p, call);
    const Images images = s.transposed ? input_images(s) : output_images(s);
    finish_activation(p.activation, s.batch * images.image, p.y, call.stream);
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& p, const Call& call) {
    const ConvolutionShape& s = p.shape;
    check_sizes(s);
    const Images images = s.transposed ? input_images(s) : output_images(s);  // of y
    const Scratch<T> before(p.activation == Activation::none ? 0 : s.batch * images.image, call.stream);
    const T* g = before ? before : p.grad_y;
    find_before_activation<T>(p.activation, s.batch, images, s.channels_last, p.grad_y, p.y, before, p.grad_b,
                              call.stream);
    if (p.grad_x) {
        ConvolutionShape transpose = s;
        transpose.transposed = !s.transposed;
        convolution_forward(ConvolutionForward<T>{transpose, Activation::none, g, p.w, nullptr, nullptr, p.grad_x},
                            call);
    }
    if (!p.grad_w) return;
    const T *source = s.transposed ? g : p.x, *gradient = s.transposed ? p.x : g;
    is_depthwise(s) ? depthwise_weight_gradient(s, source, gradient, p.grad_w, call.stream)
                    : weight_gradient(s, source, gradient, p.grad_w, call);
}

template void convolution_forward<float>(const ConvolutionForward<float>&, const Call&);
template void convolution_forward<double>(const ConvolutionForward<double>&, const Call&);
template void convolution_backward<float>(const ConvolutionBackward<float>&, const Call&);
template void convolution_backward<double>(const ConvolutionBackward<double>&, const Call&);

}  // namespace cuda
}  // namespace tbptt
