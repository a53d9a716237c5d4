// The checks of pooling_arguments.h.
#include "pooling_arguments.h"

#include <algorithm>

namespace tbptt::python {

Extents image_extents(const Images& s) {
    return s.channels_last ? Extents{s.batch, s.y, s.x, s.channels} : Extents{s.batch, s.channels, s.y, s.x};
}

namespace {

Images as_images(const Extents& extents, bool channels_last, const Argument& argument) {
    const Images images = channels_last ? Images{extents[0], extents[3], extents[1], extents[2], true}
                                        : Images{extents[0], extents[1], extents[2], extents[3], false};
    if (images.y < 1 || images.x < 1)
        argument.value_error("expected a plane of at least 1 value, got shape " + format_shape(extents.data(), 4));
    return images;
}

}  // namespace

Images read_images(Shape shape, bool channels_last, const Argument& argument) {
    check_rank(shape, 4, argument);
    return as_images(extents_of(shape), channels_last, argument);
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

namespace {

// The windows of one axis. Rounded up, the last one may reach behind the padding, but begins before that.
PoolAxis read_axis(const Windows& w, const Sides& pad, bool ceil_mode) {
    const int64_t steps = w.size + pad.before + pad.behind - w.kernel + (ceil_mode ? w.stride - 1 : 0);
    int64_t out = steps < 0 ? 0 : steps / w.stride + 1;
    if (ceil_mode && out > 0 && (out - 1) * w.stride >= w.size + pad.before) --out;
    return {w.size, w.kernel, w.stride, pad.before, pad.behind, out};
}

}  // namespace

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

void check_plane(DType dtype, const Images& images, const Argument& argument) {
    if (dtype != DType::float32 || images.plane() <= std::numeric_limits<std::int32_t>::max()) return;
    argument.value_error("expected planes of less than 2**31 values of float32, got shape " +
                         format_shape(shape_of(image_extents(images))));
}

Images read_windows(Shape grad_out, const Images& images, const char* op) {
    const Argument argument{op, "grad_out"};
    Images windows = read_images(grad_out, images.channels_last, argument);
    windows.batch = images.batch, windows.channels = images.channels;
    check_extents(extents_of(grad_out), image_extents(windows), argument);
    return windows;
}

Pool whole_planes(const Images& images) {
    return {images,
            {images.batch,
             images.channels,
             {images.y, images.y, 1, 0, 0, 1},
             {images.x, images.x, 1, 0, 0, 1},
             images.channels_last}};
}

}  // namespace tbptt::python
