// The linear layer, elementwise functions, softmax and the embedding on a device.
#include "../../cuda/api.h"
#include "../layer_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

constexpr int64_t int_values = std::numeric_limits<std::int32_t>::max();

// Sizes that the kernels count by ints, and a grid of tiles.
LinearShape read_device_linear(const DeviceCall& c, const View& w, const char* op) {
    constexpr int64_t most = int64_t{1} << 20;
    const LinearShape shape = read_linear(shape_of(c.first), shape_of(w), op);
    if (shape.inputs > most || shape.outputs > most)
        Argument{op, "w"}.value_error("expected at most 2**20 inputs and outputs, got shape " +
                                      format_shape(shape_of(w)));
    if (shape.rows > int_values)
        Argument{op, "x"}.value_error("expected less than 2**31 rows, got shape " + format_shape(shape_of(c.first)));
    return shape;
}

py::object linear(py::handle place, py::handle precision, py::handle x, py::handle w_given, py::handle b,
                  py::handle activation) {
    const char* op = "linear";
    const DeviceCall c(place, x, {op, "x"});
    const cuda::Call call{c.place.stream, read_exact(precision, op)};
    const View w = c.arrays.read(w_given, {op, "w"});
    const LinearShape shape = read_device_linear(c, w, op);
    const Activation function = read_activation(activation, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_linear<T>(c.arrays, shape, c.first, w, b, function,
                             [&](const LinearForward<T>& p) { cuda::linear_forward(p, call); });
    });
}

py::tuple linear_backward(py::handle place, py::handle precision, py::handle grad_out, py::handle x, py::handle w_given,
                          py::handle y, py::handle activation, py::handle needs) {
    const char* op = "linear_backward";
    const DeviceCall c(place, x, {op, "x"});
    const cuda::Call call{c.place.stream, read_exact(precision, op)};
    const View w = c.arrays.read(w_given, {op, "w"});
    const LinearShape shape = read_device_linear(c, w, op);
    const Activation function = read_activation(activation, op);
    const Needs wanted = read_needs(needs, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_linear_backward<T>(c.arrays, shape, grad_out, c.first, w, y, function, wanted,
                                      [&](const LinearBackward<T>& p) { cuda::linear_backward(p, call); });
    });
}

// run(count, from, to, call)
template <class Run>
py::object elementwise(py::handle place, py::handle x, const Argument& argument, const Run& run) {
    const DeviceCall c(place, x, argument);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_elementwise<T>(c.arrays, c.first, argument,
                                  [&](int64_t count, const T* from, T* to) { run(count, from, to, c.call()); });
    });
}

py::object activation_backward(py::handle place, py::handle grad_out, py::handle y, py::handle activation) {
    const char* op = "activation_backward";
    const DeviceCall c(place, y, {op, "y"});
    const Activation function = read_function(activation, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_activation_backward<T>(c.arrays, grad_out, c.first, function, [&](const ActivationBackward<T>& p) {
            cuda::activation_backward(p, c.call());
        });
    });
}

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
    module.def("linear", &linear);
    module.def("linear_backward", &linear_backward);
    module.def("exp", [](py::handle place, py::handle x) {
        return elementwise(place, x, {"exp", "x"}, [](int64_t count, auto* from, auto* to, const cuda::Call& call) {
            cuda::exponentials(count, from, to, call);
        });
    });
    constexpr std::pair<const char*, Activation> functions[] = {
        {"relu", Activation::relu}, {"tanh", Activation::tanh}, {"sigmoid", Activation::sigmoid}};
    for (const auto& [name, function] : functions)
        module.def(name, [name = name, function = function](py::handle place, py::handle x) {
            return elementwise(place, x, {name, "x"},
                               [function](int64_t count, auto* from, auto* to, const cuda::Call& call) {
                                   cuda::activations(function, count, from, to, call);
                               });
        });
    module.def("activation_backward", &activation_backward);
    module.def("softmax", &softmax);
    module.def("softmax_backward", &softmax_backward);
    module.def("embedding", &embedding);
    module.def("embedding_backward", &embedding_backward);
}

}  // namespace tbptt::python
