// Normalization and dropout, read in one way for every place where arrays may lie. `Arrays` knows that place, see
// convolution_arguments.h; an `Array` has told its shape already, and run(parameters) is the kernel.
#pragma once

#include "host_arrays.h"

namespace tbptt::python {

struct BatchNormOptions {
    bool training;
    double momentum, eps;
};

ChannelShape read_channels(Shape x, py::handle layout, const char* op);
BatchNormOptions read_batch_norm(py::handle training, py::handle momentum, py::handle eps, const char* op);
// Whether there is what normalizes: running values, or enough of x.
void check_statistics(bool training, Shape x, const ChannelShape& shape, py::handle mean, py::handle var,
                      const char* op);

template <class T, class Arrays, class Array, class Run>
py::tuple run_batch_norm(const Arrays& arrays, const Array& x_given, const ChannelShape& shape, py::handle weight_given,
                         py::handle bias_given, py::handle running_mean_given, py::handle running_var_given,
                         const BatchNormOptions& options, const Run& run) {
    const char* op = "batch_norm";
    const int64_t channels = shape.channels;
    const Extents extents = extents_of(shape_of(x_given));
    const Input<T> x = arrays.template input<T>(x_given, extents, {op, "x"});
    const Input<T> weight = arrays.template optional_input<T>(weight_given, {channels}, {op, "weight"});
    const Input<T> bias = arrays.template optional_input<T>(bias_given, {channels}, {op, "bias"});
    const Input<T> mean = arrays.template optional_input<T>(running_mean_given, {channels}, {op, "running_mean"});
    const Input<T> var = arrays.template optional_input<T>(running_var_given, {channels}, {op, "running_var"});
    const bool updates = options.training && mean.data;
    const Made<T> y = arrays.template make<T>(extents);
    const Made<double> of_x = arrays.template make_other<double>(Extents{channels});
    const Made<double> inv_std = arrays.template make_other<double>(Extents{channels});
    const Made<T> new_mean = updates ? arrays.template make<T>({channels}) : Made<T>{};
    const Made<T> new_var = updates ? arrays.template make<T>({channels}) : Made<T>{};
    {
        const Unlocked unlocked;
        run(BatchNormForward<T>{shape, options.training, options.momentum, options.eps, x.data, weight.data, bias.data,
                                mean.data, var.data, y.data, of_x.data, inv_std.data, new_mean.data, new_var.data});
    }
    return py::make_tuple(y.array, of_x.array, inv_std.array, new_mean.array, new_var.array);
}

template <class T, class Arrays, class Array, class Run>
py::tuple run_batch_norm_backward(const Arrays& arrays, const Array& x_given, const ChannelShape& shape,
                                  py::handle grad_given, py::handle weight_given, py::handle mean_given,
                                  py::handle inv_std_given, bool training, Needs needs, const Run& run) {
    const char* op = "batch_norm_backward";
    const int64_t channels = shape.channels;
    const Extents extents = extents_of(shape_of(x_given));
    const Input<T> grad_y = arrays.template input<T>(grad_given, extents, {op, "grad_out"});
    const Input<T> x = arrays.template input<T>(x_given, extents, {op, "x"});
    const Input<T> weight = arrays.template optional_input<T>(weight_given, {channels}, {op, "weight"});
    const Input<double> mean = arrays.template input<double>(mean_given, {channels}, {op, "mean"});
    const Input<double> inv_std = arrays.template input<double>(inv_std_given, {channels}, {op, "inv_std"});
    const Made<T> grad_x = needs.x ? arrays.template make<T>(extents) : Made<T>{};
    const Made<T> grad_w = needs.w ? arrays.template make<T>({channels}) : Made<T>{};
    const Made<T> grad_b = needs.b ? arrays.template make<T>({channels}) : Made<T>{};
    {
        const Unlocked unlocked;
        run(BatchNormBackward<T>{shape, training, grad_y.data, x.data, weight.data, mean.data, inv_std.data,
                                 grad_x.data, grad_w.data, grad_b.data});
    }
    return py::make_tuple(grad_x.array, grad_w.array, grad_b.array);
}

// Rows of at least one value.
RowShape read_normalized_rows(Shape x, const char* op);
double read_eps(py::handle eps, const char* op);

template <class T, class Arrays, class Array, class Run>
py::tuple run_layer_norm(const Arrays& arrays, const Array& x_given, const RowShape& shape, py::handle weight_given,
                         py::handle bias_given, double eps, const Run& run) {
    const char* op = "layer_norm";
    const int64_t columns = shape.columns;
    const Input<T> x = arrays.template input<T>(x_given, shape.extents, {op, "x"});
    const Input<T> weight = arrays.template optional_input<T>(weight_given, {columns}, {op, "weight"});
    const Input<T> bias = arrays.template optional_input<T>(bias_given, {columns}, {op, "bias"});
    const Made<T> y = arrays.template make<T>(shape.extents);
    const Made<double> mean = arrays.template make_other<double>(shape.leading);
    const Made<double> inv_std = arrays.template make_other<double>(shape.leading);
    {
        const Unlocked unlocked;
        run(LayerNormForward<T>{shape.rows, columns, eps, x.data, weight.data, bias.data, y.data, mean.data,
                                inv_std.data});
    }
    return py::make_tuple(y.array, mean.array, inv_std.array);
}

template <class T, class Arrays, class Array, class Run>
py::tuple run_layer_norm_backward(const Arrays& arrays, const Array& x_given, const RowShape& shape,
                                  py::handle grad_given, py::handle weight_given, py::handle mean_given,
                                  py::handle inv_std_given, Needs needs, const Run& run) {
    const char* op = "layer_norm_backward";
    const int64_t columns = shape.columns;
    const Input<T> grad_y = arrays.template input<T>(grad_given, shape.extents, {op, "grad_out"});
    const Input<T> x = arrays.template input<T>(x_given, shape.extents, {op, "x"});
    const Input<T> weight = arrays.template optional_input<T>(weight_given, {columns}, {op, "weight"});
    const Input<double> mean = arrays.template input<double>(mean_given, shape.leading, {op, "mean"});
    const Input<double> inv_std = arrays.template input<double>(inv_std_given, shape.leading, {op, "inv_std"});
    const Made<T> grad_x = needs.x ? arrays.template make<T>(shape.extents) : Made<T>{};
    const Made<T> grad_w = needs.w ? arrays.template make<T>({columns}) : Made<T>{};
    const Made<T> grad_b = needs.b ? arrays.template make<T>({columns}) : Made<T>{};
    {
        const Unlocked unlocked;
        run(LayerNormBackward<T>{shape.rows, columns, grad_y.data, x.data, weight.data, mean.data, inv_std.data,
                                 grad_x.data, grad_w.data, grad_b.data});
    }
    return py::make_tuple(grad_x.array, grad_w.array, grad_b.array);
}

struct DropoutOptions {
    double p;
    std::uint64_t key;
};

DropoutOptions read_dropout(py::handle p, py::handle key, const char* op);

// Linear with a fixed mask, so that the backward pass is the forward pass.
template <class T, class Arrays, class Array, class Run>
py::object run_dropout(const Arrays& arrays, const Array& x_given, const DropoutOptions& options,
                       const Argument& argument, const Run& run) {
    const Extents extents = extents_of(shape_of(x_given));
    const Input<T> x = arrays.template input<T>(x_given, extents, argument);
    const Made<T> y = arrays.template make<T>(extents);
    {
        const Unlocked unlocked;
        run(Dropout<T>{element_count(extents), options.p, options.key, x.data, y.data});
    }
    return y.array;
}

}  // namespace tbptt::python
