// Convolutions on a device, and the transposed one.
#include "../../cuda/api.h"
#include "../convolution_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

// What every call is given first.
struct Given {
    py::handle place, precision, x, w;
};

// Winograd's filtering is the CPU's alone.
void check_algorithm(const ConvolutionOp& op, const ConvolutionOptions& options, Algorithm algorithm) {
    if (algorithm != Algorithm::automatic && algorithm != Algorithm::direct)
        Argument{op.name, "algo"}.value_error("expected 'auto' or 'direct' on cuda, got '" +
                                              std::string(py::str(options.algo)) + "'");
}

// A call's arrays, where they lie, and what is asked of them. body(zero, arrays, call, convolution, x, w) does it.
template <class Body>
auto read_call(const ConvolutionOp& op, const Given& given, const ConvolutionOptions& options, const Body& body) {
    const Place place = read_place(given.place);
    const cuda::Call call{place.stream, read_exact(given.precision, op.name)};
    DeviceArrays arrays(place);
    const View x = arrays.read(given.x, {op.name, "x"}), w = arrays.read(given.w, {op.name, "w"});
    const DType dtype = float_or_bfloat16(x, {op.name, "x"});
    const Convolution c = read_convolution(op, shape_of(x), shape_of(w), options);
    check_algorithm(op, options, c.shape.algorithm);
    const int device = x.device >= 0 ? x.device : w.device;  // an empty batch may be nowhere
    arrays.stay_on(device);
    const cuda::OnDevice here(device);
    try {
        return with_device_dtype(dtype, [&](auto zero) { return body(zero, arrays, call, c, x, w); });
    } catch (const std::length_error& error) {
        Argument{op.name, "x"}.value_error(error.what());
    }
}

py::object call_forward(const ConvolutionOp& op, const Given& given, py::handle b, const ConvolutionOptions& options,
                        py::handle activation) {
    const Activation function = read_activation(activation, op.name);
    return read_call(op, given, options,
                     [&](auto zero, const DeviceArrays& arrays, const cuda::Call& call, const Convolution& c,
                         const View& x, const View& w) {
                         using T = decltype(zero);
                         return run_forward<T>(
                             arrays, op.name, c, x, w, nullptr, b, function,
                             [&](const ConvolutionForward<T>& p) { cuda::convolution_forward(p, call); });
                     });
}

py::tuple call_backward(const ConvolutionOp& op, const Given& given, py::handle grad_out, py::handle y,
                        const ConvolutionOptions& options, py::handle activation, py::handle needs) {
    const Activation function = read_activation(activation, op.name);
    const Needs wanted = read_needs(needs, op.name);
    return read_call(op, given, options,
                     [&](auto zero, const DeviceArrays& arrays, const cuda::Call& call, const Convolution& c,
                         const View& x, const View& w) {
                         using T = decltype(zero);
                         return run_backward<T>(
                             arrays, op.name, c, grad_out, x, w, nullptr, y, function, wanted,
                             [&](const ConvolutionBackward<T>& p) { cuda::convolution_backward(p, call); });
                     });
}

void define_1d(py::module_& module) {
    module.def("conv1d", [](py::handle place, py::handle precision, py::handle x, py::handle w, py::handle b,
                            py::handle stride, py::handle padding, py::handle dilation, py::handle groups,
                            py::handle activation, py::handle layout) {
        return call_forward({"conv1d", 1, false}, {place, precision, x, w}, b,
                            {stride, padding, {}, dilation, groups, layout, {}}, activation);
    });
    module.def("conv1d_backward",
               [](py::handle place, py::handle precision, py::handle grad_out, py::handle x, py::handle w, py::handle y,
                  py::handle stride, py::handle padding, py::handle dilation, py::handle groups, py::handle activation,
                  py::handle layout, py::handle needs) {
                   return call_backward({"conv1d_backward", 1, false}, {place, precision, x, w}, grad_out, y,
                                        {stride, padding, {}, dilation, groups, layout, {}}, activation, needs);
               });
}

void define_2d(py::module_& module) {
    module.def("conv2d", [](py::handle place, py::handle precision, py::handle x, py::handle w, py::handle b,
                            py::handle stride, py::handle padding, py::handle dilation, py::handle groups,
                            py::handle activation, py::handle layout, py::handle algo) {
        return call_forward({"conv2d", 2, false}, {place, precision, x, w}, b,
                            {stride, padding, {}, dilation, groups, layout, algo}, activation);
    });
    module.def("conv2d_backward",
               [](py::handle place, py::handle precision, py::handle grad_out, py::handle x, py::handle w, py::handle y,
                  py::handle stride, py::handle padding, py::handle dilation, py::handle groups, py::handle activation,
                  py::handle layout, py::handle algo, py::handle needs) {
                   return call_backward({"conv2d_backward", 2, false}, {place, precision, x, w}, grad_out, y,
                                        {stride, padding, {}, dilation, groups, layout, algo}, activation, needs);
               });
}

void define_transposed(py::module_& module) {
    module.def("conv_transpose2d",
               [](py::handle place, py::handle precision, py::handle x, py::handle w, py::handle b, py::handle stride,
                  py::handle padding, py::handle output_padding, py::handle dilation, py::handle groups,
                  py::handle activation, py::handle layout, py::handle algo) {
                   return call_forward({"conv_transpose2d", 2, true}, {place, precision, x, w}, b,
                                       {stride, padding, output_padding, dilation, groups, layout, algo}, activation);
               });
    module.def("conv_transpose2d_backward",
               [](py::handle place, py::handle precision, py::handle grad_out, py::handle x, py::handle w, py::handle y,
                  py::handle stride, py::handle padding, py::handle output_padding, py::handle dilation,
                  py::handle groups, py::handle activation, py::handle layout, py::handle algo, py::handle needs) {
                   return call_backward({"conv_transpose2d_backward", 2, true}, {place, precision, x, w}, grad_out, y,
                                        {stride, padding, output_padding, dilation, groups, layout, algo}, activation,
                                        needs);
               });
}

}  // namespace

void register_cuda_convolution(py::module_& module) {
    define_1d(module);
    define_2d(module);
    define_transposed(module);
}

}  // namespace tbptt::python
