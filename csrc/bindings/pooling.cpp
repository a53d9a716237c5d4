// Pooling over planes.
#include "../dispatch.h"
#include "pooling_arguments.h"

namespace tbptt::python {

namespace {

template <class T>
Output<T> output_of(const Images& s) {
    return s.channels_last ? Output<T>({s.batch, s.y, s.x, s.channels}) : Output<T>({s.batch, s.channels, s.y, s.x});
}

py::array new_indices(const Images& s) {
    // float64 has the width of an index: the allocator and its limits serve both
    return py::array(output_of<double>(s).array.attr("view")(py::dtype::of<int64_t>()));
}

template <class T>
py::tuple max_pool(const Pool& pool, const py::array& given) {
    check_plane(dtype_of<T>, pool.images, {"max_pool2d", "x"});
    const py::array x = to_contiguous(given);
    const Output<T> y = output_of<T>(pool.pooled());
    py::array indices = new_indices(pool.pooled());
    auto* places = static_cast<int64_t*>(indices.mutable_data());
    {
        const Unlocked unlocked;
        kernels<T>().max_pool_forward({pool.shape, static_cast<const T*>(x.data()), y.data, places});
    }
    return py::make_tuple(y.array, indices);
}

template <class T>
py::array max_pool_backward(const Images& windows, const Images& images, const py::array& given, const Ids& indices) {
    const py::array grad_y = to_contiguous(given);
    const Output<T> grad_x = output_of<T>(images);
    bool outside = false;
    {
        const Unlocked unlocked;
        kernels<T>().max_pool_backward({images.batch, images.channels, images.plane(), windows.plane(),
                                        images.channels_last, static_cast<const T*>(grad_y.data()), indices.data,
                                        grad_x.data, &outside});
    }
    if (outside) check_ids(indices, images.plane(), nullptr, {"max_pool2d_backward", "indices"});
    return grad_x.array;
}

template <class T>
py::array avg_pool(const Pool& pool, bool count_padding, const py::array& given) {
    const py::array x = to_contiguous(given);
    const Output<T> y = output_of<T>(pool.pooled());
    {
        const Unlocked unlocked;
        kernels<T>().avg_pool_forward({pool.shape, count_padding, static_cast<const T*>(x.data()), y.data});
    }
    return y.array;
}

template <class T>
py::array avg_pool_backward(const Pool& pool, bool count_padding, const py::array& given) {
    const py::array grad_y = to_contiguous(given);
    const Output<T> grad_x = output_of<T>(pool.images);
    {
        const Unlocked unlocked;
        kernels<T>().avg_pool_backward({pool.shape, count_padding, static_cast<const T*>(grad_y.data()), grad_x.data});
    }
    return grad_x.array;
}

template <class T>
py::array global_avg_pool(const Images& images, const py::array& given) {
    const py::array x = to_contiguous(given);
    const Output<T> y({images.batch, images.channels});
    {
        const Unlocked unlocked;
        kernels<T>().global_avg_pool({images.batch, images.channels, images.plane(), images.channels_last,
                                      static_cast<const T*>(x.data()), y.data});
    }
    return y.array;
}

}  // namespace

void register_pooling(py::module_& module) {
    module.def("max_pool2d", [](py::handle x, py::handle kernel, py::handle stride, py::handle padding,
                                py::handle ceil_mode, py::handle layout) {
        const char* op = "max_pool2d";
        const py::array array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(array, {op, "x"});
        const Images images = read_images(shape_of(array), read_channels_last(layout, op), {op, "x"});
        const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
        return with_dtype(dtype, [&](auto zero) { return max_pool<decltype(zero)>(pool, array); });
    });
    module.def("max_pool2d_backward",
               [](py::handle grad_out, py::handle indices_given, py::handle input_shape, py::handle layout) {
                   const char* op = "max_pool2d_backward";
                   const py::array array = to_array(grad_out, {op, "grad_out"});
                   const DType dtype = float_dtype(array, {op, "grad_out"});
                   const bool channels_last = read_channels_last(layout, op);
                   const Images images = read_input_shape(input_shape, channels_last, op);
                   const Images windows = read_windows(shape_of(array), images, op);
                   const Ids indices = read_ids(indices_given, {op, "indices"});
                   check_extents(indices.extents, extents_of(array), {op, "indices"});
                   return with_dtype(dtype, [&](auto zero) {
                       return max_pool_backward<decltype(zero)>(windows, images, array, indices);
                   });
               });
    module.def("avg_pool2d", [](py::handle x, py::handle kernel, py::handle stride, py::handle padding,
                                py::handle ceil_mode, py::handle count_include_pad, py::handle layout) {
        const char* op = "avg_pool2d";
        const py::array array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(array, {op, "x"});
        const Images images = read_images(shape_of(array), read_channels_last(layout, op), {op, "x"});
        const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
        const bool count = read_bool(count_include_pad, {op, "count_include_pad"});
        return with_dtype(dtype, [&](auto zero) { return avg_pool<decltype(zero)>(pool, count, array); });
    });
    module.def("avg_pool2d_backward", [](py::handle grad_out, py::handle input_shape, py::handle kernel,
                                         py::handle stride, py::handle padding, py::handle ceil_mode,
                                         py::handle count_include_pad, py::handle layout) {
        const char* op = "avg_pool2d_backward";
        const py::array array = to_array(grad_out, {op, "grad_out"});
        const DType dtype = float_dtype(array, {op, "grad_out"});
        const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
        const Pool pool = read_pool(images, {kernel, stride, padding, ceil_mode}, op);
        const bool count = read_bool(count_include_pad, {op, "count_include_pad"});
        check_extents(extents_of(array), image_extents(pool.pooled()), {op, "grad_out"});
        return with_dtype(dtype, [&](auto zero) { return avg_pool_backward<decltype(zero)>(pool, count, array); });
    });
    module.def("global_avg_pool2d", [](py::handle x, py::handle layout) {
        const char* op = "global_avg_pool2d";
        const py::array array = to_array(x, {op, "x"});
        const DType dtype = float_dtype(array, {op, "x"});
        const Images images = read_images(shape_of(array), read_channels_last(layout, op), {op, "x"});
        return with_dtype(dtype, [&](auto zero) { return global_avg_pool<decltype(zero)>(images, array); });
    });
    module.def("global_avg_pool2d_backward", [](py::handle grad_out, py::handle input_shape, py::handle layout) {
        const char* op = "global_avg_pool2d_backward";
        const py::array array = to_array(grad_out, {op, "grad_out"});
        const DType dtype = float_dtype(array, {op, "grad_out"});
        const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
        check_extents(extents_of(array), {images.batch, images.channels}, {op, "grad_out"});
        return with_dtype(
            dtype, [&](auto zero) { return avg_pool_backward<decltype(zero)>(whole_planes(images), true, array); });
    });
}

}  // namespace tbptt::python
