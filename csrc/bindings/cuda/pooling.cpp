// Pooling over planes on a device.
#include "../../cuda/api.h"
#include "../pooling_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

constexpr int64_t int_values = std::numeric_limits<std::int32_t>::max();

// What the kernels count by ints.
void check_sizes(const Images& images, const Argument& argument) {
    const bool last = images.channels_last;
    if (element_count({images.y, images.x, last ? images.channels : 1}) > int_values)
        argument.value_error(std::string("expected ") + (last ? "images" : "planes") +
                             " of less than 2**31 values, got shape " + format_shape(shape_of(image_extents(images))));
}

py::tuple max_pool(py::handle place, py::handle x_given, py::handle kernel, py::handle stride, py::handle padding,
                   py::handle ceil_mode, py::handle layout) {
    const char* op = "max_pool2d";
    const Argument argument{op, "x"};
    const DeviceCall c(place, x_given, argument);
    const Images images = read_images(shape_of(c.first), read_channels_last(layout, op), argument);
    const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
    check_plane(c.dtype, images, argument);
    check_sizes(images, argument);
    check_sizes(pool.pooled(), argument);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> x = c.arrays.input<T>(c.first, shape_of(c.first), argument);
        const Extents windows = image_extents(pool.pooled());
        const Made<T> y = c.arrays.make<T>(windows);
        const Made<int64_t> indices = c.arrays.make_other<int64_t>(windows);
        {
            const Unlocked unlocked;
            cuda::max_pool_forward<T>({pool.shape, x.data, y.data, indices.data}, c.call());
        }
        return py::make_tuple(y.array, indices.array);
    });
}

py::object max_pool_backward(py::handle place, py::handle grad_out, py::handle indices_given, py::handle input_shape,
                             py::handle layout) {
    const char* op = "max_pool2d_backward";
    const Argument argument{op, "grad_out"};
    const DeviceCall c(place, grad_out, argument);
    const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
    const Images windows = read_windows(shape_of(c.first), images, op);
    const DeviceIds indices(c.arrays, indices_given, {op, "indices"}, c.place.stream);
    check_extents(indices.extents(), c.first.extents, {op, "indices"});
    check_sizes(images, {op, "input_shape"});
    check_sizes(windows, argument);
    const cuda::Scratch<bool> outside(1, c.place.stream);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> grad_y = c.arrays.input<T>(c.first, shape_of(c.first), argument);
        const Made<T> grad_x = c.arrays.make<T>(image_extents(images));
        {
            const Unlocked unlocked;
            cuda::max_pool_backward<T>({images.batch, images.channels, images.plane(), windows.plane(),
                                        images.channels_last, grad_y.data, indices.data(), grad_x.data, outside},
                                       images.x, windows.x, c.call());
        }
        return grad_x.array;
    });
}

py::object avg_pool(py::handle place, py::handle x_given, py::handle kernel, py::handle stride, py::handle padding,
                    py::handle ceil_mode, py::handle count_include_pad, py::handle layout) {
    const char* op = "avg_pool2d";
    const Argument argument{op, "x"};
    const DeviceCall c(place, x_given, argument);
    const Images images = read_images(shape_of(c.first), read_channels_last(layout, op), argument);
    const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
    const bool count = read_bool(count_include_pad, {op, "count_include_pad"});
    check_sizes(images, argument);
    check_sizes(pool.pooled(), argument);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> x = c.arrays.input<T>(c.first, shape_of(c.first), argument);
        const Made<T> y = c.arrays.make<T>(image_extents(pool.pooled()));
        {
            const Unlocked unlocked;
            cuda::avg_pool_forward<T>({pool.shape, count, x.data, y.data}, c.call());
        }
        return y.array;
    });
}

// The gradient of averages over the windows of `pool`.
py::object spread(const DeviceCall& c, const Pool& pool, bool count_padding, const char* op) {
    check_sizes(pool.images, {op, "input_shape"});
    check_sizes(pool.pooled(), {op, "grad_out"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> grad_y = c.arrays.input<T>(c.first, shape_of(c.first), {op, "grad_out"});
        const Made<T> grad_x = c.arrays.make<T>(image_extents(pool.images));
        {
            const Unlocked unlocked;
            cuda::avg_pool_backward<T>({pool.shape, count_padding, grad_y.data, grad_x.data}, c.call());
        }
        return grad_x.array;
    });
}

py::object avg_pool_backward(py::handle place, py::handle grad_out, py::handle input_shape, py::handle kernel,
                             py::handle stride, py::handle padding, py::handle ceil_mode, py::handle count_include_pad,
                             py::handle layout) {
    const char* op = "avg_pool2d_backward";
    const DeviceCall c(place, grad_out, {op, "grad_out"});
    const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
    const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
    const bool count = read_bool(count_include_pad, {op, "count_include_pad"});
    check_extents(c.first.extents, image_extents(pool.pooled()), {op, "grad_out"});
    return spread(c, pool, count, op);
}

py::object global_avg_pool(py::handle place, py::handle x_given, py::handle layout) {
    const char* op = "global_avg_pool2d";
    const Argument argument{op, "x"};
    const DeviceCall c(place, x_given, argument);
    const Images images = read_images(shape_of(c.first), read_channels_last(layout, op), argument);
    if (element_count({images.batch, images.channels}) > int_values)  // a block for each
        argument.value_error("expected less than 2**31 planes, got shape " + format_shape(shape_of(c.first)));
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> x = c.arrays.input<T>(c.first, shape_of(c.first), argument);
        const Made<T> y = c.arrays.make<T>({images.batch, images.channels});
        {
            const Unlocked unlocked;
            cuda::global_avg_pool<T>(
                {images.batch, images.channels, images.plane(), images.channels_last, x.data, y.data}, c.call());
        }
        return y.array;
    });
}

py::object global_avg_pool_backward(py::handle place, py::handle grad_out, py::handle input_shape, py::handle layout) {
    const char* op = "global_avg_pool2d_backward";
    const DeviceCall c(place, grad_out, {op, "grad_out"});
    const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
    check_extents(c.first.extents, {images.batch, images.channels}, {op, "grad_out"});
    return spread(c, whole_planes(images), true, op);
}

}  // namespace

void register_cuda_pooling(py::module_& module) {
    module.def("max_pool2d", &max_pool);
    module.def("max_pool2d_backward", &max_pool_backward);
    module.def("avg_pool2d", &avg_pool);
    module.def("avg_pool2d_backward", &avg_pool_backward);
    module.def("global_avg_pool2d", &global_avg_pool);
    module.def("global_avg_pool2d_backward", &global_avg_pool_backward);
}

}  // namespace tbptt::python
