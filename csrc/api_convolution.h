// The part of api.h that is about convolutions.
#pragma once

#include <cstdint>

namespace tbptt {

enum class Activation { none, relu, tanh, sigmoid };

// How a convolution is computed. `automatic` is direct, or in float32 Winograd's filtering where that is faster; `winograd`
// takes the faster of its two tiles.
enum class Algorithm { automatic, direct, winograd, winograd_2x2, winograd_4x4 };

// Cross-correlation in two dimensions, from input images to output images. Zeros surround the input: pad_top rows above it,
// pad_left columns before it, and as many behind as the output's size asks for. `transposed` asks for the transpose of the
// convolution, from images like its output to images like its input; all sizes are still the convolution's.
struct ConvolutionShape {
    std::int64_t batch, groups, inputs, outputs;  // N; I and O, the channels of all groups
    std::int64_t height, width;                   // of the input
    std::int64_t out_height, out_width;
    std::int64_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
    bool channels_last;  // images are [N, Y, X, channels], else [N, channels, Y, X]
    bool transposed;
    Algorithm algorithm;  // of Winograd's only with kernels of 3×3, without stride and dilation
};

class PackedWeights;  // packed_weights.h

// x are input images and y output images; transposed, x are output images and y input images. `packed`, forms of w that
// other calls may have left, or null.
template <class T>
struct ConvolutionForward {
    ConvolutionShape shape;
    Activation activation;
    const T* x;
    const T* w;  // [O, I/groups, kernel_height, kernel_width]
    PackedWeights* packed;
    const T* b;  // [channels of y] or null
    T* y;        // out =
};

template <class T>
struct ConvolutionBackward {
    ConvolutionShape shape;
    Activation activation;
    const T* grad_y;  // like y
    const T* x;
    const T* w;  // [O, I/groups, kernel_height, kernel_width]
    PackedWeights* packed;
    const T* y;  // null without activation
    T* grad_x;   // out = like x, or null
    T* grad_w;   // out = [O, I/groups, kernel_height, kernel_width] or null
    T* grad_b;   // out = [channels of y] or null
};

}  // namespace tbptt
