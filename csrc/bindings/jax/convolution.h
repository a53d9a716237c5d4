// Convolutions for XLA. A call's options are `shape`, the numbers of a ConvolutionShape, and `activation`.
#pragma once

#include <array>

#include "../../api.h"
#include "call.h"

namespace tbptt::jax {

constexpr std::size_t convolution_numbers = 18;

// In the order of the struct; Python gets them when it traces a call, and XLA gives them back.
inline std::array<int64_t, convolution_numbers> numbers_of(const ConvolutionShape& s) {
    return {s.batch,        s.groups,        s.inputs,
            s.outputs,      s.height,        s.width,
            s.out_height,   s.out_width,     s.kernel_height,
            s.kernel_width, s.stride_y,      s.stride_x,
            s.dilation_y,   s.dilation_x,    s.pad_top,
            s.pad_left,     s.channels_last, static_cast<int64_t>(s.algorithm)};
}

inline ConvolutionShape read_convolution(const Call& call) {
    const auto n = call.integers<convolution_numbers>("shape");
    constexpr int64_t limit = int64_t{1} << 48;  // far beyond memory; keeps positions from overflowing
    for (const int64_t number : n)
        if (number < 0 || number >= limit) Call::refuse("expected sizes below 2^48");
    ConvolutionShape s{n[0],
                       n[1],
                       n[2],
                       n[3],
                       n[4],
                       n[5],
                       n[6],
                       n[7],
                       n[8],
                       n[9],
                       n[10],
                       n[11],
                       n[12],
                       n[13],
                       n[14],
                       n[15],
                       n[16] != 0,
                       false,
                       static_cast<Algorithm>(n[17])};
    if (s.groups < 1 || s.inputs % s.groups || s.outputs % s.groups)
        Call::refuse("expected groups that divide channels");
    for (const int64_t least : {s.out_height, s.out_width, s.kernel_height, s.kernel_width, s.stride_y, s.stride_x,
                                s.dilation_y, s.dilation_x})
        if (least < 1) Call::refuse("expected an output, a kernel, strides and dilations >= 1");
    for (const auto& [steps, size] :
         {std::pair{s.out_height, s.stride_y}, std::pair{s.out_width, s.stride_x},
          std::pair{s.kernel_height, s.dilation_y}, std::pair{s.kernel_width, s.dilation_x}})
        if (Call::count({steps, size}) >= limit) Call::refuse("expected sizes below 2^48");
    if (s.algorithm != Algorithm::automatic && s.algorithm != Algorithm::direct)
        Call::refuse("expected an algorithm for every shape");
    return s;
}

struct ConvolutionSizes {
    int64_t x, w, b, y;

    explicit ConvolutionSizes(const ConvolutionShape& s)
        : x(Call::count({s.batch, s.inputs, s.height, s.width})),
          w(Call::count({s.outputs, s.inputs / s.groups, s.kernel_height, s.kernel_width})),
          b(s.outputs),
          y(Call::count({s.batch, s.outputs, s.out_height, s.out_width})) {}
};

inline Activation read_activation(const Call& call) {
    const auto given = call.option<int64_t>("activation");
    if (given < 0 || given > static_cast<int64_t>(Activation::sigmoid)) Call::refuse("expected an activation");
    return static_cast<Activation>(given);
}

// (x, w, b) -> y; b may be missing.
template <class Where>
struct ConvolutionForwardOp {
    template <class T>
    static void run(Call& call, T) {
        ConvolutionForward<T> p{};
        p.shape = read_convolution(call);
        p.activation = read_activation(call);
        const ConvolutionSizes n(p.shape);
        p.x = call.input<T>(n.x);
        p.w = call.input<T>(n.w);
        p.b = call.optional_input<T>(n.b);
        p.y = call.output<T>(n.y);
        call.no_more();
        Where::convolution_forward(call, p);
    }
};

// (grad_y, x, w, y) -> (x, w, b); y is there with an activation alone, and each result may be missing.
template <class Where>
struct ConvolutionBackwardOp {
    template <class T>
    static void run(Call& call, T) {
        ConvolutionBackward<T> p{};
        p.shape = read_convolution(call);
        p.activation = read_activation(call);
        const ConvolutionSizes n(p.shape);
        p.grad_y = call.input<T>(n.y);
        p.x = call.input<T>(n.x);
        p.w = call.input<T>(n.w);
        p.y = call.optional_input<T>(n.y);
        if (p.activation != Activation::none && !p.y && n.y > 0) Call::refuse("expected the output, for an activation");
        p.grad_x = call.optional_output<T>(n.x);
        p.grad_w = call.optional_output<T>(n.w);
        p.grad_b = call.optional_output<T>(n.b);
        call.no_more();
        Where::convolution_backward(call, p);
    }
};

}  // namespace tbptt::jax
