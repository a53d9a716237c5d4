// The arrays of convolutions, read and made in one way for every place where they may lie. `Arrays` knows that place: `input<T>`,
// `optional_input<T>` and `make<T>` are those of HostArrays.
#pragma once

#include "convolution_options.h"
#include "host_arrays.h"

namespace tbptt::python {

// Returns y. `Array`: x and w have told their shapes already; run(ConvolutionForward<T>) is the kernel.
template <class T, class Arrays, class Array, class Run>
py::object run_forward(const Arrays& arrays, const char* op, const Convolution& c, const Array& x_given,
                       const Array& w_given, PackedWeights* forms, py::handle b_given, Activation activation,
                       const Run& run) {
    const Input<T> x = arrays.template input<T>(x_given, c.x, {op, "x"});
    const Input<T> w = arrays.template input<T>(w_given, c.w, {op, "w"});
    const Input<T> b = arrays.template optional_input<T>(b_given, {c.out_channels}, {op, "b"});
    const Made<T> y = arrays.template make<T>(c.y);
    {
        const Unlocked unlocked;
        run(ConvolutionForward<T>{c.shape, activation, x.data, w.data, forms, b.data, y.data});
    }
    return y.array;
}

// The output that an activation's gradient needs.
template <class T, class Arrays>
Input<T> read_output(const Arrays& arrays, const char* op, const Convolution& c, py::handle given,
                     Activation activation) {
    if (activation == Activation::none) return {};
    if (given.is_none())
        Argument{op, "y"}.value_error("expected the output of the convolution, which an activation needs, got None");
    return arrays.template input<T>(given, c.y, {op, "y"});
}

// Returns the gradients by x, w and b, None where they are not needed. See run_forward.
template <class T, class Arrays, class Array, class Run>
py::tuple run_backward(const Arrays& arrays, const char* op, const Convolution& c, py::handle grad_given,
                       const Array& x_given, const Array& w_given, PackedWeights* forms, py::handle y_given,
                       Activation activation, Needs needs, const Run& run) {
    const Input<T> grad_y = arrays.template input<T>(grad_given, c.y, {op, "grad_out"});
    const Input<T> x = arrays.template input<T>(x_given, c.x, {op, "x"});
    const Input<T> w = arrays.template input<T>(w_given, c.w, {op, "w"});
    const Input<T> y = read_output<T>(arrays, op, c, y_given, activation);
    const Made<T> grad_x = needs.x ? arrays.template make<T>(c.x) : Made<T>{};
    const Made<T> grad_w = needs.w ? arrays.template make<T>(c.w) : Made<T>{};
    const Made<T> grad_b = needs.b ? arrays.template make<T>({c.out_channels}) : Made<T>{};
    {
        const Unlocked unlocked;
        run(ConvolutionBackward<T>{c.shape, activation, grad_y.data, x.data, w.data, forms, y.data, grad_x.data,
                                   grad_w.data, grad_b.data});
    }
    return py::make_tuple(grad_x.array, grad_w.array, grad_b.array);
}

}  // namespace tbptt::python
