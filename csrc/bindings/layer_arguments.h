// The linear layer and elementwise functions, read in one way for every place where arrays may lie; see
// normalization_arguments.h.
#pragma once

#include "host_arrays.h"

namespace tbptt::python {

// The kernels see the leading dimensions folded into rows.
struct LinearShape {
    Extents x, y;
    int64_t rows, inputs, outputs;
};

LinearShape read_linear(Shape x, Shape w, const char* op);

template <class T, class Arrays, class Array, class Run>
py::object run_linear(const Arrays& arrays, const LinearShape& shape, const Array& x_given, const Array& w_given,
                      py::handle b_given, Activation activation, const Run& run) {
    const char* op = "linear";
    const Input<T> x = arrays.template input<T>(x_given, shape.x, {op, "x"});
    const Input<T> w = arrays.template input<T>(w_given, {shape.outputs, shape.inputs}, {op, "w"});
    const Input<T> b = arrays.template optional_input<T>(b_given, {shape.outputs}, {op, "b"});
    const Made<T> y = arrays.template make<T>(shape.y);
    if (shape.rows > 0 && shape.outputs > 0) {
        const Unlocked unlocked;
        run(LinearForward<T>{shape.rows, shape.inputs, shape.outputs, activation, x.data, w.data, b.data, y.data});
    }
    return y.array;
}

template <class T, class Arrays, class Array, class Run>
py::tuple run_linear_backward(const Arrays& arrays, const LinearShape& shape, py::handle grad_given,
                              const Array& x_given, const Array& w_given, py::handle y_given, Activation activation,
                              Needs needs, const Run& run) {
    const char* op = "linear_backward";
    const Input<T> grad_y = arrays.template input<T>(grad_given, shape.y, {op, "grad_out"});
    const Input<T> x = arrays.template input<T>(x_given, shape.x, {op, "x"});
    const Input<T> w = arrays.template input<T>(w_given, {shape.outputs, shape.inputs}, {op, "w"});
    Input<T> y;
    if (activation != Activation::none) {
        if (y_given.is_none())
            Argument{op, "y"}.value_error("expected the output of linear, which an activation needs, got None");
        y = arrays.template input<T>(y_given, shape.y, {op, "y"});
    }
    const Made<T> grad_x = needs.x ? arrays.template make<T>(shape.x) : Made<T>{};
    const Made<T> grad_w = needs.w ? arrays.template make<T>({shape.outputs, shape.inputs}) : Made<T>{};
    const Made<T> grad_b = needs.b ? arrays.template make<T>({shape.outputs}) : Made<T>{};
    {
        const Unlocked unlocked;
        run(LinearBackward<T>{shape.rows, shape.inputs, shape.outputs, activation, grad_y.data, x.data, w.data, y.data,
                              grad_x.data, grad_w.data, grad_b.data});
    }
    return py::make_tuple(grad_x.array, grad_w.array, grad_b.array);
}

// run(count, from, to): a function of each element.
template <class T, class Arrays, class Array, class Run>
py::object run_elementwise(const Arrays& arrays, const Array& x_given, const Argument& argument, const Run& run) {
    const Extents extents = extents_of(shape_of(x_given));
    const Input<T> x = arrays.template input<T>(x_given, extents, argument);
    const Made<T> y = arrays.template make<T>(extents);
    {
        const Unlocked unlocked;
        run(element_count(extents), x.data, y.data);
    }
    return y.array;
}

// One that has a gradient of its own: None is no activation here.
Activation read_function(py::handle given, const char* op);

template <class T, class Arrays, class Array, class Run>
py::object run_activation_backward(const Arrays& arrays, py::handle grad_given, const Array& y_given,
                                   Activation activation, const Run& run) {
    const char* op = "activation_backward";
    const Extents extents = extents_of(shape_of(y_given));
    const Input<T> grad_y = arrays.template input<T>(grad_given, extents, {op, "grad_out"});
    const Input<T> y = arrays.template input<T>(y_given, extents, {op, "y"});
    const Made<T> grad_x = arrays.template make<T>(extents);
    {
        const Unlocked unlocked;
        run(ActivationBackward<T>{element_count(extents), activation, grad_y.data, y.data, grad_x.data});
    }
    return grad_x.array;
}

}  // namespace tbptt::python
