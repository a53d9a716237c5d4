// The linear layer and elementwise functions.
#include "../dispatch.h"
#include "layer_arguments.h"

namespace tbptt::python {

namespace {

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
    module.def("linear", [](py::handle x_given, py::handle w_given, py::handle b, py::handle activation) {
        const char* op = "linear";
        const py::array x = to_array(x_given, {op, "x"}), w = to_array(w_given, {op, "w"});
        const DType dtype = float_dtype(x, {op, "x"});
        const LinearShape shape = read_linear(shape_of(x), shape_of(w), op);
        const Activation function = read_activation(activation, op);
        return with_dtype(dtype, [&](auto zero) {
            using T = decltype(zero);
            return run_linear<T>(HostArrays(), shape, x, w, b, function, kernels<T>().linear_forward);
        });
    });
    module.def("linear_backward", [](py::handle grad_out, py::handle x_given, py::handle w_given, py::handle y,
                                     py::handle activation, py::handle needs) {
        const char* op = "linear_backward";
        const py::array x = to_array(x_given, {op, "x"}), w = to_array(w_given, {op, "w"});
        const DType dtype = float_dtype(x, {op, "x"});
        const LinearShape shape = read_linear(shape_of(x), shape_of(w), op);
        const Activation function = read_activation(activation, op);
        const Needs wanted = read_needs(needs, op);
        return with_dtype(dtype, [&](auto zero) {
            using T = decltype(zero);
            return run_linear_backward<T>(HostArrays(), shape, grad_out, x, w, y, function, wanted,
                                          kernels<T>().linear_backward);
        });
    });
    const auto define = [&module](const char* name, auto float_function, auto double_function) {
        module.def(name, [name, float_function, double_function](py::handle given) {
            const Argument argument{name, "x"};
            const py::array x = to_array(given, argument);
            return float_dtype(x, argument) == DType::float32
                       ? run_elementwise<float>(HostArrays(), x, argument, kernels<float>().*float_function)
                       : run_elementwise<double>(HostArrays(), x, argument, kernels<double>().*double_function);
        });
    };
    define("exp", &Kernels<float>::exp, &Kernels<double>::exp);
    define("tanh", &Kernels<float>::tanh, &Kernels<double>::tanh);
    define("sigmoid", &Kernels<float>::sigmoid, &Kernels<double>::sigmoid);
    define("relu", &Kernels<float>::relu, &Kernels<double>::relu);
    module.def("activation_backward", [](py::handle grad_out, py::handle y_given, py::handle activation) {
        const char* op = "activation_backward";
        const py::array y = to_array(y_given, {op, "y"});
        const DType dtype = float_dtype(y, {op, "y"});
        const Activation function = read_function(activation, op);
        return with_dtype(dtype, [&](auto zero) {
            using T = decltype(zero);
            return run_activation_backward<T>(HostArrays(), grad_out, y, function, kernels<T>().activation_backward);
        });
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
