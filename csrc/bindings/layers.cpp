// The linear layer and elementwise functions.
#include "../dispatch.h"
#include "arguments.h"

namespace tbptt::python {

namespace {

struct LinearShape {
    Extents leading;
    int64_t rows, inputs, outputs;
};

LinearShape read_linear(const py::array& x, const py::array& w, const char* op) {
    check_rank(w, 2, {op, "w"});
    const Extents leading = leading_extents(x, 1, {op, "x"});
    const LinearShape shape{leading, element_count(leading), w.shape(1), w.shape(0)};
    if (x.shape(x.ndim() - 1) != shape.inputs)
        Argument{op, "x"}.value_error("expected last dimension " + std::to_string(shape.inputs) + ", got shape " +
                                      format_shape(x));
    return shape;
}

// The kernels see the leading dimensions folded into rows.
template <class T>
Input<T> input_rows(py::handle given, const LinearShape& shape, int64_t columns, const Argument& argument) {
    return input_of_extents<T>(given, with_last(shape.leading, columns), argument);
}

template <class T>
py::array linear(const LinearShape& shape, py::handle x_given, py::handle w_given, py::handle b_given,
                 Activation activation) {
    const char* op = "linear";
    const auto& [leading, rows, inputs, outputs] = shape;
    const Input<T> x = input_rows<T>(x_given, shape, inputs, {op, "x"});
    const Input<T> w = input<T>(w_given, {outputs, inputs}, {op, "w"});
    const Input<T> b = optional_input<T>(b_given, {outputs}, {op, "b"});
    const Output<T> y({rows, outputs});
    if (rows > 0 && outputs > 0) {
        const Unlocked unlocked;
        kernels<T>().linear_forward({rows, inputs, outputs, activation, x.data, w.data, b.data, y.data});
    }
    return reshaped(y.array, with_last(shape.leading, outputs));
}

template <class T>
py::tuple linear_backward(const LinearShape& shape, py::handle grad_given, py::handle x_given, py::handle w_given,
                          py::handle y_given, Activation activation, Needs needs) {
    const char* op = "linear_backward";
    const auto& [leading, rows, inputs, outputs] = shape;
    const Input<T> grad_y = input_rows<T>(grad_given, shape, outputs, {op, "grad_out"});
    const Input<T> x = input_rows<T>(x_given, shape, inputs, {op, "x"});
    const Input<T> w = input<T>(w_given, {outputs, inputs}, {op, "w"});
    Input<T> y;
    if (activation != Activation::none) {
        if (y_given.is_none())
            Argument{op, "y"}.value_error("expected the output of linear, which an activation needs, got None");
        y = input_rows<T>(y_given, shape, outputs, {op, "y"});
    }
    const Output<T> grad_x({needs.x ? rows : 0, inputs}), grad_w({needs.w ? outputs : 0, inputs}),
        grad_b({needs.b ? outputs : 0});
    {
        const Unlocked unlocked;
        kernels<T>().linear_backward({rows, inputs, outputs, activation, grad_y.data, x.data, w.data, y.data,
                                      needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                      needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(chosen(needs.x, grad_x.array, with_last(shape.leading, inputs)),
                          chosen(needs.w, grad_w.array), chosen(needs.b, grad_b.array));
}

template <class T>
py::array elementwise(const py::array& array, void (*Kernels<T>::*function)(int64_t, const T*, T*)) {
    const py::array from = to_contiguous(array);
    const Output<T> to({from.size()});
    {
        const Unlocked unlocked;
        (kernels<T>().*function)(from.size(), static_cast<const T*>(from.data()), to.data);
    }
    return reshaped(to.array, extents_of(from));
}

template <class T>
py::array activation_backward(py::handle grad_given, const py::array& y_array, Activation activation) {
    const Input<T> grad_y = input_of_extents<T>(grad_given, extents_of(y_array), {"activation_backward", "grad_out"});
    const py::array y = to_contiguous(y_array);
    const Output<T> grad_x({y.size()});
    {
        const Unlocked unlocked;
        kernels<T>().activation_backward(
            {y.size(), activation, grad_y.data, static_cast<const T*>(y.data()), grad_x.data});
    }
    return reshaped(grad_x.array, extents_of(y));
}

template <class T>
py::array softmax(const RowShape& shape, const py::array& x_array) {
    const py::array x = to_contiguous(x_array);
    const Output<T> y({shape.rows, shape.columns});
    if (shape.columns > 0) {
        const Unlocked unlocked;
        kernels<T>().softmax_forward({shape.rows, shape.columns, static_cast<const T*>(x.data()), y.data});
    }
    return reshaped(y.array, shape.extents);
}

template <class T>
py::array softmax_backward(const RowShape& shape, py::handle grad_given, const py::array& y_array) {
    const Input<T> grad_y = input_of_extents<T>(grad_given, shape.extents, {"softmax_backward", "grad_out"});
    const py::array y = to_contiguous(y_array);
    const Output<T> grad_x({shape.rows, shape.columns});
    if (shape.columns > 0) {
        const Unlocked unlocked;
        kernels<T>().softmax_backward(
            {shape.rows, shape.columns, grad_y.data, static_cast<const T*>(y.data()), grad_x.data});
    }
    return reshaped(grad_x.array, shape.extents);
}

}  // namespace

void register_layers(py::module_& module) {
    module.def("linear", [](py::handle x, py::handle w, py::handle b, py::handle activation) {
        const char* op = "linear";
        const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const LinearShape shape = read_linear(x_array, w_array, op);
        const Activation function = read_activation(activation, op);
        return with_dtype(dtype,
                          [&](auto zero) { return linear<decltype(zero)>(shape, x_array, w_array, b, function); });
    });
    module.def("linear_backward", [](py::handle grad_out, py::handle x, py::handle w, py::handle y,
                                     py::handle activation, py::handle needs) {
        const char* op = "linear_backward";
        const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const LinearShape shape = read_linear(x_array, w_array, op);
        const Activation function = read_activation(activation, op);
        const Needs wanted = read_needs(needs, op);
        return with_dtype(dtype, [&](auto zero) {
            return linear_backward<decltype(zero)>(shape, grad_out, x_array, w_array, y, function, wanted);
        });
    });
    const auto define = [&module](const char* name, auto float_function, auto double_function) {
        module.def(name, [name, float_function, double_function](py::handle x) {
            const Argument argument{name, "x"};
            const py::array array = to_array(x, argument);
            return float_dtype(array, argument) == DType::float32 ? elementwise<float>(array, float_function)
                                                                  : elementwise<double>(array, double_function);
        });
    };
    define("exp", &Kernels<float>::exp, &Kernels<double>::exp);
    define("tanh", &Kernels<float>::tanh, &Kernels<double>::tanh);
    define("sigmoid", &Kernels<float>::sigmoid, &Kernels<double>::sigmoid);
    define("relu", &Kernels<float>::relu, &Kernels<double>::relu);
    module.def("activation_backward", [](py::handle grad_out, py::handle y, py::handle activation) {
        const char* op = "activation_backward";
        const py::array array = to_array(y, {op, "y"});
        const DType dtype = float_dtype(array, {op, "y"});
        const Activation function = read_activation(activation, op);
        if (function == Activation::none) Argument{op, "activation"}.type_error("expected a string, got NoneType");
        return with_dtype(dtype,
                          [&](auto zero) { return activation_backward<decltype(zero)>(grad_out, array, function); });
    });
    module.def("softmax", [](py::handle x) {
        const Argument argument{"softmax", "x"};
        const py::array array = to_array(x, argument);
        const DType dtype = float_dtype(array, argument);
        const RowShape shape = read_rows(shape_of(array), argument);
        return with_dtype(dtype, [&](auto zero) { return softmax<decltype(zero)>(shape, array); });
    });
    module.def("softmax_backward", [](py::handle grad_out, py::handle y) {
        const Argument argument{"softmax_backward", "y"};
        const py::array array = to_array(y, argument);
        const DType dtype = float_dtype(array, argument);
        const RowShape shape = read_rows(shape_of(array), argument);
        return with_dtype(dtype, [&](auto zero) { return softmax_backward<decltype(zero)>(shape, grad_out, array); });
    });
}

}  // namespace tbptt::python
