// Batch and layer normalization on a device, and dropout.
#include "../../cuda/api.h"
#include "../normalization_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

constexpr int64_t int_values = std::numeric_limits<std::int32_t>::max();

ChannelShape read_device_channels(const View& x, py::handle layout, const char* op) {
    const ChannelShape shape = read_channels(shape_of(x), layout, op);
    if (shape.inner > int_values)
        Argument{op, "x"}.value_error("expected planes of less than 2**31 values, got shape " +
                                      format_shape(shape_of(x)));
    return shape;
}

py::tuple batch_norm(py::handle place, py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                     py::handle running_var, py::handle training, py::handle momentum, py::handle eps,
                     py::handle layout) {
    const char* op = "batch_norm";
    const DeviceCall c(place, x, {op, "x"});
    const ChannelShape shape = read_device_channels(c.first, layout, op);
    const BatchNormOptions options = read_batch_norm(training, momentum, eps, op);
    check_statistics(options.training, shape_of(c.first), shape, running_mean, running_var, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_batch_norm<T>(c.arrays, c.first, shape, weight, bias, running_mean, running_var, options,
                                 [&](const BatchNormForward<T>& p) { cuda::batch_norm_forward(p, c.call()); });
    });
}

py::tuple batch_norm_backward(py::handle place, py::handle grad_out, py::handle x, py::handle weight, py::handle mean,
                              py::handle inv_std, py::handle training, py::handle layout, py::handle needs) {
    const char* op = "batch_norm_backward";
    const DeviceCall c(place, x, {op, "x"});
    const ChannelShape shape = read_device_channels(c.first, layout, op);
    const bool trains = read_bool(training, {op, "training"});
    const Needs wanted = read_needs(needs, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_batch_norm_backward<T>(
            c.arrays, c.first, shape, grad_out, weight, mean, inv_std, trains, wanted,
            [&](const BatchNormBackward<T>& p) { cuda::batch_norm_backward(p, c.call()); });
    });
}

py::tuple layer_norm(py::handle place, py::handle x, py::handle weight, py::handle bias, py::handle eps) {
    const char* op = "layer_norm";
    const DeviceCall c(place, x, {op, "x"});
    const RowShape shape = read_normalized_rows(shape_of(c.first), op);
    const double added = read_eps(eps, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_layer_norm<T>(c.arrays, c.first, shape, weight, bias, added,
                                 [&](const LayerNormForward<T>& p) { cuda::layer_norm_forward(p, c.call()); });
    });
}

py::tuple layer_norm_backward(py::handle place, py::handle grad_out, py::handle x, py::handle weight, py::handle mean,
                              py::handle inv_std, py::handle needs) {
    const char* op = "layer_norm_backward";
    const DeviceCall c(place, x, {op, "x"});
    const RowShape shape = read_normalized_rows(shape_of(c.first), op);
    const Needs wanted = read_needs(needs, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_layer_norm_backward<T>(
            c.arrays, c.first, shape, grad_out, weight, mean, inv_std, wanted,
            [&](const LayerNormBackward<T>& p) { cuda::layer_norm_backward(p, c.call()); });
    });
}

py::object dropout(py::handle place, py::handle given, py::handle p_given, py::handle key, const Argument& argument) {
    const DeviceCall c(place, given, argument);
    const DropoutOptions options = read_dropout(p_given, key, argument.op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_dropout<T>(c.arrays, c.first, options, argument,
                              [&](const Dropout<T>& p) { cuda::dropout(p, c.call()); });
    });
}

}  // namespace

void register_cuda_normalization(py::module_& module) {
    module.def("batch_norm", &batch_norm);
    module.def("batch_norm_backward", &batch_norm_backward);
    module.def("layer_norm", &layer_norm);
    module.def("layer_norm_backward", &layer_norm_backward);
    module.def("dropout", [](py::handle place, py::handle x, py::handle p, py::handle key) {
        return dropout(place, x, p, key, {"dropout", "x"});
    });
    module.def("dropout_backward", [](py::handle place, py::handle grad_out, py::handle p, py::handle key) {
        return dropout(place, grad_out, p, key, {"dropout_backward", "grad_out"});
    });
}

}  // namespace tbptt::python
