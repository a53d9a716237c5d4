// Pooling over planes.
#include <algorithm>

#include "../dispatch.h"
#include "windows.h"

namespace tbptt::python {

namespace {

// Batches of images: [N, C, Y, X] or [N, Y, X, C].
struct Images {
    int64_t batch, channels, y, x;
    bool channels_last;

    // The values of a plane.
    int64_t plane() const { return element_count({y, x}); }
};

Extents image_extents(const Images& s) {
    return s.channels_last ? Extents{s.batch, s.y, s.x, s.channels} : Extents{s.batch, s.channels, s.y, s.x};
}

Images as_images(const Extents& extents, bool channels_last, const Argument& argument) {
    const Images images = channels_last ? Images{extents[0], extents[3], extents[1], extents[2], true}
                                        : Images{extents[0], extents[1], extents[2], extents[3], false};
    if (images.y < 1 || images.x < 1)
        argument.value_error("expected a plane of at least 1 value, got shape " + format_shape(extents.data(), 4));
    return images;
}

Images read_images(const py::array& array, bool channels_last, const Argument& argument) {
    check_rank(array, 4, argument);
    return as_images(extents_of(array), channels_last, argument);
}

Images read_input_shape(py::handle given, bool channels_last, const char* op) {
    const Argument argument{op, "input_shape"};
    if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given))
        argument.type_error("expected a tuple of 4 integers, got " + type_name(given));
    const auto items = py::reinterpret_borrow<py::sequence>(given);
    if (items.size() != 4)
        argument.value_error("expected a tuple of 4 integers, got " + std::to_string(items.size()) + " items");
    Extents extents;
    for (std::size_t i = 0; i < 4; ++i) extents.push_back(read_integer(py::object(items[i]), 0, argument));
    element_count(extents);  // MemoryError rather than an overflow later
    return as_images(extents, channels_last, argument);
}

template <class T>
Output<T> output_of(const Images& s) {
    return s.channels_last ? Output<T>({s.batch, s.y, s.x, s.channels}) : Output<T>({s.batch, s.channels, s.y, s.x});
}

struct Pool {
    Images images;
    PoolShape shape;

    Images pooled() const { return {shape.batch, shape.channels, shape.y.out, shape.x.out, shape.channels_last}; }
};

struct PoolOptions {
    py::handle kernel, stride, padding, ceil_mode;
};

// The windows of one axis. Rounded up, the last one may reach behind the padding, but begins before that.
PoolAxis read_axis(const Windows& w, const Sides& pad, bool ceil_mode) {
    const int64_t steps = w.size + pad.before + pad.behind - w.kernel + (ceil_mode ? w.stride - 1 : 0);
    int64_t out = steps < 0 ? 0 : steps / w.stride + 1;
    if (ceil_mode && out > 0 && (out - 1) * w.stride >= w.size + pad.before) --out;
    return {w.size, w.kernel, w.stride, pad.before, pad.behind, out};
}

Pool read_pool(const Images& images, const PoolOptions& options, const char* op) {
    const Pair kernel = read_pair(options.kernel, 2, 1, {op, "kernel"});
    const Pair stride = options.stride.is_none() ? kernel : read_pair(options.stride, 2, 1, {op, "stride"});
    const std::array<Windows, 2> windows{{{images.y, kernel[0], stride[0], 1}, {images.x, kernel[1], stride[1], 1}}};
    const bool ceil_mode = read_bool(options.ceil_mode, {op, "ceil_mode"});
    for (const int64_t value : {kernel[0], kernel[1], stride[0], stride[1], images.y, images.x})
        if (value > std::numeric_limits<std::int32_t>::max())  // sums and products stay in range
            Argument{op, "kernel"}.value_error("expected sizes and strides below 2**31, got " + std::to_string(value));
    const std::array<Sides, 2> pads = read_sides(options.padding, 2, windows, {op, "padding"});
    const Pair before{pads[0].before, pads[1].before}, behind{pads[0].behind, pads[1].behind};
    for (int i = 0; i < 2; ++i)
        if (std::max(before[i], behind[i]) >= kernel[i])
            Argument{op, "padding"}.value_error("expected less than the kernel, " + format_pair(kernel) + ", got " +
                                                format_pair(before) + " before and " + format_pair(behind) + " behind");
    const PoolAxis y = read_axis(windows[0], pads[0], ceil_mode), x = read_axis(windows[1], pads[1], ceil_mode);
    if (y.out < 1 || x.out < 1)
        Argument{op, "kernel"}.value_error(
            "expected at most the plane with its padding, " +
            format_pair({images.y + before[0] + behind[0], images.x + before[1] + behind[1]}) + ", got " +
            format_pair(kernel));
    return {images, {images.batch, images.channels, y, x, images.channels_last}};
}

py::array new_indices(const Images& s) {
    // float64 has the width of an index: the allocator and its limits serve both
    return py::array(output_of<double>(s).array.attr("view")(py::dtype::of<int64_t>()));
}

template <class T>
py::tuple max_pool(const Pool& pool, const py::array& given) {
    const Argument argument{"max_pool2d", "x"};
    if (sizeof(T) == sizeof(std::int32_t) && pool.images.plane() > std::numeric_limits<std::int32_t>::max())
        argument.value_error("expected planes of less than 2**31 values of float32, got shape " + format_shape(given));
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
        const Images images = read_images(array, read_channels_last(layout, op), {op, "x"});
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
                   Images windows = read_images(array, channels_last, {op, "grad_out"});
                   windows.batch = images.batch, windows.channels = images.channels;
                   check_extents(extents_of(array), image_extents(windows), {op, "grad_out"});
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
        const Images images = read_images(array, read_channels_last(layout, op), {op, "x"});
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
        const Images images = read_images(array, read_channels_last(layout, op), {op, "x"});
        return with_dtype(dtype, [&](auto zero) { return global_avg_pool<decltype(zero)>(images, array); });
    });
    module.def("global_avg_pool2d_backward", [](py::handle grad_out, py::handle input_shape, py::handle layout) {
        const char* op = "global_avg_pool2d_backward";
        const py::array array = to_array(grad_out, {op, "grad_out"});
        const DType dtype = float_dtype(array, {op, "grad_out"});
        const Images images = read_input_shape(input_shape, read_channels_last(layout, op), op);
        check_extents(extents_of(array), {images.batch, images.channels}, {op, "grad_out"});
        // One window over everything: [N, C] is then [N, C, 1, 1] and [N, 1, 1, C] alike.
        const Pool pool{images,
                        {images.batch,
                         images.channels,
                         {images.y, images.y, 1, 0, 0, 1},
                         {images.x, images.x, 1, 0, 0, 1},
                         images.channels_last}};
        return with_dtype(dtype, [&](auto zero) { return avg_pool_backward<decltype(zero)>(pool, true, array); });
    });
}

}  // namespace tbptt::python
