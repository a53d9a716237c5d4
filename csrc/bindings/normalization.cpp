// Batch and layer normalization, and dropout.
#include "../dispatch.h"
#include "normalization_arguments.h"

namespace tbptt::python {

namespace {

// body(zero, kernels) for the array's dtype.
template <class Body>
auto with_kernels(DType dtype, const Body& body) {
    return with_dtype(dtype, [&](auto zero) { return body(zero, kernels<decltype(zero)>()); });
}

py::object dropout(py::handle given, py::handle p, py::handle key, const Argument& argument) {
    const py::array x = to_array(given, argument);
    const DType dtype = float_dtype(x, argument);
    const DropoutOptions options = read_dropout(p, key, argument.op);
    return with_kernels(dtype, [&](auto zero, const auto& kernel) {
        return run_dropout<decltype(zero)>(HostArrays(), x, options, argument, kernel.dropout);
    });
}

}  // namespace

void register_normalization(py::module_& module) {
    module.def("batch_norm",
               [](py::handle x_given, py::handle weight, py::handle bias, py::handle running_mean,
                  py::handle running_var, py::handle training, py::handle momentum, py::handle eps, py::handle layout) {
                   const char* op = "batch_norm";
                   const py::array x = to_array(x_given, {op, "x"});
                   const DType dtype = float_dtype(x, {op, "x"});
                   const ChannelShape shape = read_channels(shape_of(x), layout, op);
                   const BatchNormOptions options = read_batch_norm(training, momentum, eps, op);
                   check_statistics(options.training, shape_of(x), shape, running_mean, running_var, op);
                   return with_kernels(dtype, [&](auto zero, const auto& kernel) {
                       return run_batch_norm<decltype(zero)>(HostArrays(), x, shape, weight, bias, running_mean,
                                                             running_var, options, kernel.batch_norm_forward);
                   });
               });
    module.def("batch_norm_backward", [](py::handle grad_out, py::handle x_given, py::handle weight, py::handle mean,
                                         py::handle inv_std, py::handle training, py::handle layout, py::handle needs) {
        const char* op = "batch_norm_backward";
        const py::array x = to_array(x_given, {op, "x"});
        const DType dtype = float_dtype(x, {op, "x"});
        const ChannelShape shape = read_channels(shape_of(x), layout, op);
        const bool trains = read_bool(training, {op, "training"});
        const Needs wanted = read_needs(needs, op);
        return with_kernels(dtype, [&](auto zero, const auto& kernel) {
            return run_batch_norm_backward<decltype(zero)>(HostArrays(), x, shape, grad_out, weight, mean, inv_std,
                                                           trains, wanted, kernel.batch_norm_backward);
        });
    });
    module.def("layer_norm", [](py::handle x_given, py::handle weight, py::handle bias, py::handle eps) {
        const char* op = "layer_norm";
        const py::array x = to_array(x_given, {op, "x"});
        const DType dtype = float_dtype(x, {op, "x"});
        const RowShape shape = read_normalized_rows(shape_of(x), op);
        const double added = read_eps(eps, op);
        return with_kernels(dtype, [&](auto zero, const auto& kernel) {
            return run_layer_norm<decltype(zero)>(HostArrays(), x, shape, weight, bias, added,
                                                  kernel.layer_norm_forward);
        });
    });
    module.def("layer_norm_backward", [](py::handle grad_out, py::handle x_given, py::handle weight, py::handle mean,
                                         py::handle inv_std, py::handle needs) {
        const char* op = "layer_norm_backward";
        const py::array x = to_array(x_given, {op, "x"});
        const DType dtype = float_dtype(x, {op, "x"});
        const RowShape shape = read_normalized_rows(shape_of(x), op);
        const Needs wanted = read_needs(needs, op);
        return with_kernels(dtype, [&](auto zero, const auto& kernel) {
            return run_layer_norm_backward<decltype(zero)>(HostArrays(), x, shape, grad_out, weight, mean, inv_std,
                                                           wanted, kernel.layer_norm_backward);
        });
    });
    module.def("dropout",
               [](py::handle x, py::handle p, py::handle key) { return dropout(x, p, key, {"dropout", "x"}); });
    module.def("dropout_backward", [](py::handle grad_out, py::handle p, py::handle key) {
        return dropout(grad_out, p, key, {"dropout_backward", "grad_out"});
    });
}

}  // namespace tbptt::python
