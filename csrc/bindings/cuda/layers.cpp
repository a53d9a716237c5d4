// Softmax and the embedding on a device.
#include "../../cuda/api.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

constexpr int64_t int_values = std::numeric_limits<std::int32_t>::max();

py::object softmax(py::handle place, py::handle x_given) {
    const Argument argument{"softmax", "x"};
    const DeviceCall c(place, x_given, argument);
    const RowShape shape = read_rows(shape_of(c.first), argument);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> x = c.arrays.input<T>(c.first, shape_of(shape.extents), argument);
        const Made<T> y = c.arrays.make<T>(shape.extents);
        {
            const Unlocked unlocked;
            if (shape.columns > 0) cuda::softmax_forward<T>({shape.rows, shape.columns, x.data, y.data}, c.call());
        }
        return y.array;
    });
}

py::object softmax_backward(py::handle place, py::handle grad_out, py::handle y_given) {
    const char* op = "softmax_backward";
    const DeviceCall c(place, y_given, {op, "y"});
    const RowShape shape = read_rows(shape_of(c.first), {op, "y"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> grad_y = c.arrays.input<T>(grad_out, shape.extents, {op, "grad_out"});
        const Input<T> y = c.arrays.input<T>(c.first, shape_of(shape.extents), {op, "y"});
        const Made<T> grad_x = c.arrays.make<T>(shape.extents);
        {
            const Unlocked unlocked;
            if (shape.columns > 0)
                cuda::softmax_backward<T>({shape.rows, shape.columns, grad_y.data, y.data, grad_x.data}, c.call());
        }
        return grad_x.array;
    });
}

py::object embedding(py::handle place, py::handle ids_given, py::handle w_given) {
    const char* op = "embedding";
    const DeviceCall c(place, w_given, {op, "w"});
    check_rank(shape_of(c.first), 2, {op, "w"});
    const int64_t embeddings = c.first.extents[0], width = c.first.extents[1];
    if (width > int_values)
        Argument{op, "w"}.value_error("expected rows of less than 2**31 values, got shape " +
                                      format_shape(shape_of(c.first)));
    const DeviceIds ids(c.arrays, ids_given, {op, "ids"}, c.place.stream);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> w = c.arrays.input<T>(c.first, shape_of(c.first), {op, "w"});
        const Made<T> y = c.arrays.make<T>(with_last(ids.extents(), width));
        {
            const Unlocked unlocked;
            cuda::embedding_forward<T>({ids.count(), width, ids.data(), w.data, y.data}, embeddings, c.call());
        }
        return y.array;
    });
}

py::object embedding_backward(py::handle place, py::handle grad_out, py::handle ids_given, py::handle num_embeddings) {
    const char* op = "embedding_backward";
    const DeviceCall c(place, grad_out, {op, "grad_out"});
    const int64_t embeddings = read_integer(num_embeddings, 0, {op, "num_embeddings"});
    const DeviceIds ids(c.arrays, ids_given, {op, "ids"}, c.place.stream);
    const RowShape shape = read_rows(shape_of(c.first), {op, "grad_out"});
    check_extents(ids.extents(), shape.leading, {op, "ids"});
    if (ids.count() > int_values - 4095)
        Argument{op, "ids"}.value_error("expected at most 2**31 - 4096 ids, got shape " +
                                        format_shape(shape_of(ids.extents())));
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> grad_y = c.arrays.input<T>(c.first, shape_of(shape.extents), {op, "grad_out"});
        const Made<T> grad_w = c.arrays.make<T>({embeddings, shape.columns});
        {
            const Unlocked unlocked;
            cuda::embedding_backward<T>({ids.count(), embeddings, shape.columns, ids.data(), grad_y.data, grad_w.data},
                                        c.call());
        }
        return grad_w.array;
    });
}

}  // namespace

void register_cuda_layers(py::module_& module) {
    module.def("softmax", &softmax);
    module.def("softmax_backward", &softmax_backward);
    module.def("embedding", &embedding);
    module.def("embedding_backward", &embedding_backward);
}

}  // namespace tbptt::python
