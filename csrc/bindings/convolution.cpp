// Convolutions in one and two dimensions, and the transposed one.
#include "../dispatch.h"
#include "convolution_options.h"

namespace tbptt::python {

namespace {

template <class T>
py::array forward(const char* op, const Convolution& c, const py::array& x_given, const py::array& w_given,
                  py::handle b_given, Activation activation) {
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> b = optional_input<T>(b_given, {c.out_channels}, {op, "b"});
    const Output<T> y({element_count(c.y)});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().convolution_forward({c.shape, activation, x.data, w.data, b.data, y.data});
    }
    return reshaped(y.array, c.y);
}

// The output that an activation's gradient needs.
template <class T>
Input<T> read_output(const char* op, const Convolution& c, py::handle given, Activation activation) {
    if (activation == Activation::none) return {};
    if (given.is_none())
        Argument{op, "y"}.value_error("expected the output of the convolution, which an activation needs, got None");
    return input_of_extents<T>(given, c.y, {op, "y"});
}

template <class T>
py::tuple backward(const char* op, const Convolution& c, py::handle grad_given, const py::array& x_given,
                   const py::array& w_given, py::handle y_given, Activation activation, Needs needs) {
    const Input<T> grad_y = input_of_extents<T>(grad_given, c.y, {op, "grad_out"});
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> y = read_output<T>(op, c, y_given, activation);
    const Output<T> grad_x({needs.x ? element_count(c.x) : 0}), grad_w({needs.w ? element_count(c.w) : 0}),
        grad_b({needs.b ? c.out_channels : 0});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().convolution_backward({c.shape, activation, grad_y.data, x.data, w.data, y.data,
                                           needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                           needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(chosen(needs.x, grad_x.array, c.x), chosen(needs.w, grad_w.array, c.w),
                          chosen(needs.b, grad_b.array));
}

py::array call_forward(const ConvolutionOp& op, py::handle x_given, py::handle w_given, py::handle b,
                       const ConvolutionOptions& options, py::handle activation) {
    const py::array x = to_array(x_given, {op.name, "x"}), w = to_array(w_given, {op.name, "w"});
    const DType dtype = float_dtype(x, {op.name, "x"});
    const Convolution c = read_convolution(op, x, w, options);
    const Activation function = read_activation(activation, op.name);
    return with_dtype(dtype, [&](auto zero) { return forward<decltype(zero)>(op.name, c, x, w, b, function); });
}

py::tuple call_backward(const ConvolutionOp& op, py::handle grad_out, py::handle x_given, py::handle w_given,
                        py::handle y, const ConvolutionOptions& options, py::handle activation, py::handle needs) {
    const py::array x = to_array(x_given, {op.name, "x"}), w = to_array(w_given, {op.name, "w"});
    const DType dtype = float_dtype(x, {op.name, "x"});
    const Convolution c = read_convolution(op, x, w, options);
    const Activation function = read_activation(activation, op.name);
    const Needs wanted = read_needs(needs, op.name);
    return with_dtype(
        dtype, [&](auto zero) { return backward<decltype(zero)>(op.name, c, grad_out, x, w, y, function, wanted); });
}

void define_1d(py::module_& module) {
    module.def("conv1d", [](py::handle x, py::handle w, py::handle b, py::handle stride, py::handle padding,
                            py::handle dilation, py::handle groups, py::handle activation, py::handle layout) {
        return call_forward({"conv1d", 1, false}, x, w, b, {stride, padding, {}, dilation, groups, layout, {}},
                            activation);
    });
    module.def("conv1d_backward",
               [](py::handle grad_out, py::handle x, py::handle w, py::handle y, py::handle stride, py::handle padding,
                  py::handle dilation, py::handle groups, py::handle activation, py::handle layout, py::handle needs) {
                   return call_backward({"conv1d_backward", 1, false}, grad_out, x, w, y,
                                        {stride, padding, {}, dilation, groups, layout, {}}, activation, needs);
               });
}

void define_2d(py::module_& module) {
    module.def("conv2d",
               [](py::handle x, py::handle w, py::handle b, py::handle stride, py::handle padding, py::handle dilation,
                  py::handle groups, py::handle activation, py::handle layout, py::handle algo) {
                   return call_forward({"conv2d", 2, false}, x, w, b,
                                       {stride, padding, {}, dilation, groups, layout, algo}, activation);
               });
    module.def("conv2d_backward", [](py::handle grad_out, py::handle x, py::handle w, py::handle y, py::handle stride,
                                     py::handle padding, py::handle dilation, py::handle groups, py::handle activation,
                                     py::handle layout, py::handle algo, py::handle needs) {
        return call_backward({"conv2d_backward", 2, false}, grad_out, x, w, y,
                             {stride, padding, {}, dilation, groups, layout, algo}, activation, needs);
    });
}

void define_transposed(py::module_& module) {
    module.def("conv_transpose2d", [](py::handle x, py::handle w, py::handle b, py::handle stride, py::handle padding,
                                      py::handle output_padding, py::handle dilation, py::handle groups,
                                      py::handle activation, py::handle layout, py::handle algo) {
        return call_forward({"conv_transpose2d", 2, true}, x, w, b,
                            {stride, padding, output_padding, dilation, groups, layout, algo}, activation);
    });
    module.def("conv_transpose2d_backward", [](py::handle grad_out, py::handle x, py::handle w, py::handle y,
                                               py::handle stride, py::handle padding, py::handle output_padding,
                                               py::handle dilation, py::handle groups, py::handle activation,
                                               py::handle layout, py::handle algo, py::handle needs) {
        return call_backward({"conv_transpose2d_backward", 2, true}, grad_out, x, w, y,
                             {stride, padding, output_padding, dilation, groups, layout, algo}, activation, needs);
    });
}

}  // namespace

void register_convolution(py::module_& module) {
    define_1d(module);
    define_2d(module);
    define_transposed(module);
}

}  // namespace tbptt::python
