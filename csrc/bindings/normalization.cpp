// Batch and layer normalization, and dropout.
#include "../dispatch.h"
#include "arguments.h"

namespace tbptt::python {

namespace {

ChannelShape read_channels(const py::array& x, py::handle layout, const char* op) {
    const bool last = read_channels_last(layout, op);
    if (x.ndim() != 2 && x.ndim() != 4)
        Argument{op, "x"}.value_error("expected 2 or 4 dimensions, got shape " + format_shape(x));
    if (x.ndim() == 2) return {x.shape(0), x.shape(1), 1};
    if (last) return {x.shape(0) * x.shape(1) * x.shape(2), x.shape(3), 1};
    return {x.shape(0), x.shape(1), x.shape(2) * x.shape(3)};
}

// ---------------------------------------------------------------------------------------------
// Batch normalization

struct BatchNormOptions {
    bool training;
    double momentum, eps;
};

void check_statistics(const BatchNormOptions& options, const py::array& x, const ChannelShape& shape, py::handle mean,
                      py::handle var, const char* op) {
    if (!options.training && mean.is_none())
        Argument{op, "running_mean"}.type_error("expected an array, which normalizes unless training, got None");
    if (mean.is_none() != var.is_none())
        Argument{op, mean.is_none() ? "running_mean" : "running_var"}.type_error(
            "expected both running values or neither, got None");
    if (options.training && shape.outer * shape.inner < 2)
        Argument{op, "x"}.value_error("expected at least 2 values per channel when training, got shape " +
                                      format_shape(x));
}

template <class T>
py::tuple batch_norm(const py::array& x_array, const ChannelShape& shape, py::handle weight_given,
                     py::handle bias_given, py::handle running_mean_given, py::handle running_var_given,
                     const BatchNormOptions& options) {
    const char* op = "batch_norm";
    const int64_t channels = shape.channels;
    const Extents extents = extents_of(x_array);
    const Input<T> x = input_of_extents<T>(x_array, extents, {op, "x"});
    const Input<T> weight = optional_input<T>(weight_given, {channels}, {op, "weight"});
    const Input<T> bias = optional_input<T>(bias_given, {channels}, {op, "bias"});
    const Input<T> running_mean = optional_input<T>(running_mean_given, {channels}, {op, "running_mean"});
    const Input<T> running_var = optional_input<T>(running_var_given, {channels}, {op, "running_var"});
    const bool updates = options.training && running_mean.data;
    const Output<T> y({element_count(extents)}), new_mean({updates ? channels : 0}), new_var({updates ? channels : 0});
    const Output<double> mean({channels}), inv_std({channels});
    {
        const Unlocked unlocked;
        kernels<T>().batch_norm_forward({shape, options.training, options.momentum, options.eps, x.data, weight.data,
                                         bias.data, running_mean.data, running_var.data, y.data, mean.data,
                                         inv_std.data, updates ? new_mean.data : nullptr,
                                         updates ? new_var.data : nullptr});
    }
    return py::make_tuple(reshaped(y.array, extents), mean.array, inv_std.array, chosen(updates, new_mean.array),
                          chosen(updates, new_var.array));
}

template <class T>
py::tuple batch_norm_backward(const py::array& x_array, const ChannelShape& shape, py::handle grad_given,
                              py::handle weight_given, py::handle mean_given, py::handle inv_std_given, bool training,
                              Needs needs) {
    const char* op = "batch_norm_backward";
    const int64_t channels = shape.channels;
    const Extents extents = extents_of(x_array);
    const Input<T> grad_y = input_of_extents<T>(grad_given, extents, {op, "grad_out"});
    const Input<T> x = input_of_extents<T>(x_array, extents, {op, "x"});
    const Input<T> weight = optional_input<T>(weight_given, {channels}, {op, "weight"});
    const Input<double> mean = input<double>(mean_given, {channels}, {op, "mean"});
    const Input<double> inv_std = input<double>(inv_std_given, {channels}, {op, "inv_std"});
    const Output<T> grad_x({needs.x ? element_count(extents) : 0}), grad_w({needs.w ? channels : 0}),
        grad_b({needs.b ? channels : 0});
    {
        const Unlocked unlocked;
        kernels<T>().batch_norm_backward({shape, training, grad_y.data, x.data, weight.data, mean.data, inv_std.data,
                                          needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                          needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(needs.x ? py::object(reshaped(grad_x.array, extents)) : py::object(py::none()),
                          chosen(needs.w, grad_w.array), chosen(needs.b, grad_b.array));
}

// ---------------------------------------------------------------------------------------------
// Layer normalization

struct Rows {
    Extents extents, leading;
    int64_t rows, columns;
};

Rows read_rows(const py::array& x, const char* op) {
    const Argument argument{op, "x"};
    const Extents leading = leading_extents(x, 1, argument);
    const int64_t columns = x.shape(x.ndim() - 1);
    if (columns < 1) argument.value_error("expected at least 1 value in a row, got shape " + format_shape(x));
    return {extents_of(x), leading, element_count(leading), columns};
}

template <class T>
py::tuple layer_norm(const py::array& x_array, const Rows& shape, py::handle weight_given, py::handle bias_given,
                     double eps) {
    const char* op = "layer_norm";
    const auto& [extents, leading, rows, columns] = shape;
    const Input<T> x = input_of_extents<T>(x_array, extents, {op, "x"});
    const Input<T> weight = optional_input<T>(weight_given, {columns}, {op, "weight"});
    const Input<T> bias = optional_input<T>(bias_given, {columns}, {op, "bias"});
    const Output<T> y({rows, columns});
    const Output<double> mean({rows}), inv_std({rows});
    {
        const Unlocked unlocked;
        kernels<T>().layer_norm_forward(
            {rows, columns, eps, x.data, weight.data, bias.data, y.data, mean.data, inv_std.data});
    }
    return py::make_tuple(reshaped(y.array, extents), reshaped(mean.array, leading), reshaped(inv_std.array, leading));
}

template <class T>
py::tuple layer_norm_backward(const py::array& x_array, const Rows& shape, py::handle grad_given,
                              py::handle weight_given, py::handle mean_given, py::handle inv_std_given, Needs needs) {
    const char* op = "layer_norm_backward";
    const auto& [extents, leading, rows, columns] = shape;
    const Input<T> grad_y = input_of_extents<T>(grad_given, extents, {op, "grad_out"});
    const Input<T> x = input_of_extents<T>(x_array, extents, {op, "x"});
    const Input<T> weight = optional_input<T>(weight_given, {columns}, {op, "weight"});
    const Input<double> mean = input_of_extents<double>(mean_given, leading, {op, "mean"});
    const Input<double> inv_std = input_of_extents<double>(inv_std_given, leading, {op, "inv_std"});
    const Output<T> grad_x({needs.x ? rows : 0, columns}), grad_w({needs.w ? columns : 0}),
        grad_b({needs.b ? columns : 0});
    {
        const Unlocked unlocked;
        kernels<T>().layer_norm_backward({rows, columns, grad_y.data, x.data, weight.data, mean.data, inv_std.data,
                                          needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                          needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(needs.x ? py::object(reshaped(grad_x.array, extents)) : py::object(py::none()),
                          chosen(needs.w, grad_w.array), chosen(needs.b, grad_b.array));
}

// ---------------------------------------------------------------------------------------------
// Dropout: linear with a fixed mask, so that the backward pass is the forward pass

py::array dropout(py::handle given, py::handle p_given, py::handle key_given, const Argument& argument) {
    const py::array array = to_array(given, argument);
    const DType dtype = float_dtype(array, argument);
    const double p = read_number(p_given, fraction, {argument.op, "p"});
    const auto key = static_cast<std::uint64_t>(read_integer(key_given, 0, {argument.op, "key"}));
    return with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const py::array x = to_contiguous(array);
        const Output<T> y({x.size()});
        {
            const Unlocked unlocked;
            kernels<T>().dropout({x.size(), p, key, static_cast<const T*>(x.data()), y.data});
        }
        return reshaped(y.array, extents_of(array));
    });
}

}  // namespace

void register_normalization(py::module_& module) {
    module.def("batch_norm", [](py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                                py::handle running_var, py::handle training, py::handle momentum, py::handle eps,
                                py::handle layout) {
        const char* op = "batch_norm";
        constexpr Interval share{"a number in [0, 1]", 0, true, 1 + std::numeric_limits<double>::epsilon()};
        const py::array x_array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const ChannelShape shape = read_channels(x_array, layout, op);
        const BatchNormOptions options{read_bool(training, {op, "training"}),
                                       read_number(momentum, share, {op, "momentum"}),
                                       read_number(eps, not_negative, {op, "eps"})};
        check_statistics(options, x_array, shape, running_mean, running_var, op);
        return with_dtype(dtype, [&](auto zero) {
            return batch_norm<decltype(zero)>(x_array, shape, weight, bias, running_mean, running_var, options);
        });
    });
    module.def("batch_norm_backward", [](py::handle grad_out, py::handle x, py::handle weight, py::handle mean,
                                         py::handle inv_std, py::handle training, py::handle layout, py::handle needs) {
        const char* op = "batch_norm_backward";
        const py::array x_array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const ChannelShape shape = read_channels(x_array, layout, op);
        const bool trains = read_bool(training, {op, "training"});
        const Needs wanted = read_needs(needs, op);
        return with_dtype(dtype, [&](auto zero) {
            return batch_norm_backward<decltype(zero)>(x_array, shape, grad_out, weight, mean, inv_std, trains, wanted);
        });
    });
    module.def("layer_norm", [](py::handle x, py::handle weight, py::handle bias, py::handle eps) {
        const char* op = "layer_norm";
        const py::array x_array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const Rows shape = read_rows(x_array, op);
        const double added = read_number(eps, not_negative, {op, "eps"});
        return with_dtype(dtype,
                          [&](auto zero) { return layer_norm<decltype(zero)>(x_array, shape, weight, bias, added); });
    });
    module.def("layer_norm_backward", [](py::handle grad_out, py::handle x, py::handle weight, py::handle mean,
                                         py::handle inv_std, py::handle needs) {
        const char* op = "layer_norm_backward";
        const py::array x_array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const Rows shape = read_rows(x_array, op);
        const Needs wanted = read_needs(needs, op);
        return with_dtype(dtype, [&](auto zero) {
            return layer_norm_backward<decltype(zero)>(x_array, shape, grad_out, weight, mean, inv_std, wanted);
        });
    });
    module.def("dropout",
               [](py::handle x, py::handle p, py::handle key) { return dropout(x, p, key, {"dropout", "x"}); });
    module.def("dropout_backward", [](py::handle grad_out, py::handle p, py::handle key) {
        return dropout(grad_out, p, key, {"dropout_backward", "grad_out"});
    });
}

}  // namespace tbptt::python
