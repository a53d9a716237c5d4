// Convolutions in one and two dimensions, and the transposed one.
#include <memory>

#include "../dispatch.h"
#include "../packed_weights.h"
#include "convolution_arguments.h"

namespace tbptt::python {

namespace {

// Weights given once for many calls: a copy that nobody changes, and the forms that kernels made of it.
class PackedConv2d {
   public:
    explicit PackedConv2d(py::array w)
        : w_(std::move(w)), forms_(make_packed_weights(), [](PackedWeights* forms) { destroy_packed_weights(forms); }) {
        w_.attr("flags").attr("writeable") = false;
    }
    const py::array& w() const { return w_; }
    PackedWeights* forms() const { return forms_.get(); }

   private:
    py::array w_;
    std::shared_ptr<PackedWeights> forms_;
};

struct Weights {
    py::array array;
    PackedWeights* forms;  // or null
};

Weights to_weights(py::handle given, const Argument& argument) {
    if (!py::isinstance<PackedConv2d>(given)) return {to_array(given, argument), nullptr};
    const PackedConv2d& packed = given.cast<const PackedConv2d&>();
    return {packed.w(), packed.forms()};
}

PackedConv2d pack(py::handle given) {
    const Argument argument{"pack_conv2d", "w"};
    const py::array w = to_array(given, argument);
    check_rank(w, 4, argument);
    float_dtype(w, argument);
    return PackedConv2d(w.attr("copy")("C"));
}

py::object call_forward(const ConvolutionOp& op, py::handle x_given, py::handle w_given, py::handle b,
                        const ConvolutionOptions& options, py::handle activation) {
    const py::array x = to_array(x_given, {op.name, "x"});
    const Weights w = to_weights(w_given, {op.name, "w"});
    const DType dtype = float_dtype(x, {op.name, "x"});
    const Convolution c = read_convolution(op, shape_of(x), shape_of(w.array), options);
    const Activation function = read_activation(activation, op.name);
    return with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_forward<T>(HostArrays{}, op.name, c, x, w.array, w.forms, b, function,
                              [](const ConvolutionForward<T>& p) { kernels<T>().convolution_forward(p); });
    });
}

py::tuple call_backward(const ConvolutionOp& op, py::handle grad_out, py::handle x_given, py::handle w_given,
                        py::handle y, const ConvolutionOptions& options, py::handle activation, py::handle needs) {
    const py::array x = to_array(x_given, {op.name, "x"});
    const Weights w = to_weights(w_given, {op.name, "w"});
    const DType dtype = float_dtype(x, {op.name, "x"});
    const Convolution c = read_convolution(op, shape_of(x), shape_of(w.array), options);
    const Activation function = read_activation(activation, op.name);
    const Needs wanted = read_needs(needs, op.name);
    return with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_backward<T>(HostArrays{}, op.name, c, grad_out, x, w.array, w.forms, y, function, wanted,
                               [](const ConvolutionBackward<T>& p) { kernels<T>().convolution_backward(p); });
    });
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
    py::class_<PackedConv2d>(module, "PackedConv2d",
                             "Weights of images' convolutions, kept in the forms that kernels take.")
        .def_property_readonly("w", &PackedConv2d::w, "The weights, read-only.")
        .def_property_readonly(
            "nbytes", [](const PackedConv2d& packed) { return size_in_bytes(*packed.forms()); },
            "How many bytes the forms take that calls have asked for so far.");
    module.def("pack_conv2d", &pack);
    define_1d(module);
    define_2d(module);
    define_transposed(module);
}

}  // namespace tbptt::python
