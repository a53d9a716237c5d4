// The recurrent layers on images on a device: convolutional rnn, gru and lstm, forward and backward.
#include "../../cuda/api.h"
#include "../convrecurrent_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

struct DeviceConvTape : ConvTape {
    DeviceConvTape(ConvTape tape, int device_given, Stream stream_given)
        : ConvTape(std::move(tape)), device(device_given), stream(stream_given) {}
    int device;
    Stream stream;
};

// Arrays of the layer's own form, before they are checked.
struct Given {
    py::handle x, hx, w_ih, w_hh, b_ih, b_hh, peephole, is_init;
    ConvRecurrentOptions options;
};

template <class T>
auto copy_or_zero_on(Stream stream) {
    return [stream](const T* from, T* to, int64_t count) { copy_or_zero(from, to, count, stream); };
}

// Kernels tell sizes that are too large for their indices.
template <class Body>
auto with_limits(const char* op, const Body& body) {
    try {
        return body();
    } catch (const std::length_error& error) {
        Argument{op, "x"}.value_error(error.what());
    }
}

// body(zero, arrays, tape): the tape has its arrays but the output and the memory.
template <class Body>
auto read_layer(const char* op, Cell cell, const Place& place, const Given& given, bool recompute, const Body& body) {
    DeviceArrays arrays(place);
    const View x = arrays.read(given.x, {op, "x"}), w_ih = arrays.read(given.w_ih, {op, "w_ih"}),
               w_hh = arrays.read(given.w_hh, {op, "w_hh"});
    const DType dtype = float_or_bfloat16(x, {op, "x"});
    const ConvRecurrentShape shape =
        read_conv_shape(cell, shape_of(x), shape_of(w_ih), shape_of(w_hh), given.options, op);
    const int device = x.device >= 0 ? x.device : w_hh.device;  // an empty batch may be nowhere
    arrays.stay_on(device);
    const cuda::OnDevice here(device);
    const GivenConvLayer<View> layer{x,          w_ih,       w_hh,           unpack_state(given.hx, cell, {op, "hx"}),
                                     given.b_ih, given.b_hh, given.peephole, given.is_init};
    return with_device_dtype(dtype, [&](auto zero) {
        ConvTape tape = read_conv_layer<decltype(zero)>(arrays, shape, layer, recompute, op);
        // a plain cell's h is the output
        tape.values = kept_values(cell, !recompute && gates(cell) > 1);
        return body(zero, arrays, std::move(tape));
    });
}

py::tuple convrecurrent_forward(Cell cell, py::handle place_given, py::handle precision, const Given& given,
                                py::handle training_given, py::handle recompute_given) {
    const char* op = conv_forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const bool recompute = read_bool(recompute_given, {op, "recompute"});
    const Place place = read_place(place_given);
    const cuda::Call call{place.stream, read_exact(precision, op)};
    return read_layer(op, cell, place, given, recompute, [&](auto zero, const DeviceArrays& arrays, ConvTape tape) {
        using T = decltype(zero);
        return with_limits(op, [&] {
            return run_conv_forward<T>(
                arrays, std::move(tape), training,
                [&](const ConvRecurrentForward<T>& p) { cuda::convrecurrent_forward(p, call); },
                copy_or_zero_on<T>(call.stream),
                [&](ConvTape&& whole) {
                    return py::cast(DeviceConvTape(std::move(whole), arrays.device(), call.stream));
                });
        });
    });
}

py::tuple convrecurrent_backward(py::handle place_given, py::handle precision, py::handle cell_name,
                                 py::handle tape_given, py::handle grad_out, py::handle grad_hx, py::handle truncation,
                                 py::handle carry_scale) {
    const Cell cell = read_cell(cell_name, {"convrnn_backward", "cell"});
    const char* op = conv_backward_name(cell);
    if (!py::isinstance<DeviceConvTape>(tape_given))
        Argument{op, "tape"}.type_error("expected a ConvTape, got " + type_name(tape_given));
    const auto& tape = tape_given.cast<const DeviceConvTape&>();
    const GivenConvGradients given = read_given_gradients(tape, cell, grad_out, grad_hx, truncation, carry_scale);
    const Place place = read_place(place_given);
    const cuda::Call call{place.stream, read_exact(precision, op)};
    DeviceArrays arrays(place);
    arrays.stay_on(tape.device);
    const cuda::OnDevice here(tape.device);
    return with_device_dtype(tape.dtype, [&](auto zero) {
        using T = decltype(zero);
        return with_limits(op, [&] {
            return run_conv_backward<T>(
                arrays, tape, given,
                [&](const ConvRecurrentBackward<T>& p) { cuda::convrecurrent_backward(p, given.truncation, call); },
                copy_or_zero_on<T>(call.stream));
        });
    });
}

DeviceConvTape restore(py::handle place_given, py::handle cell_name, py::handle x, py::handle hx, py::handle w_ih,
                       py::handle w_hh, py::handle b_ih, py::handle b_hh, py::handle peephole, py::handle is_init,
                       py::handle dilation, py::handle layout, py::handle algo, py::handle recompute_given,
                       py::handle out, py::handle memory) {
    const char* op = "restore_conv_tape";
    const Cell cell = read_cell(cell_name, {op, "cell"});
    const bool recompute = read_bool(recompute_given, {op, "recompute"});
    const Place place = read_place(place_given);
    const Given given{x, hx, w_ih, w_hh, b_ih, b_hh, peephole, is_init, {dilation, layout, algo}};
    return read_layer(op, cell, place, given, recompute, [&](auto zero, const DeviceArrays& arrays, ConvTape tape) {
        restore_conv_tape<decltype(zero)>(arrays, tape, out, memory);
        return DeviceConvTape(std::move(tape), arrays.device(), place.stream);
    });
}

}  // namespace

void register_cuda_convrecurrent(py::module_& module) {
    py::class_<DeviceConvTape>(module, "ConvTape", py::module_local(),
                               "What a recurrent layer on images on a device keeps for its backward pass.")
        .def_property_readonly(
            "nbytes", [](const DeviceConvTape& tape) { return tape.nbytes; },
            "How many bytes of history it holds beside the output.")
        .def_property_readonly(
            "memory", [](const DeviceConvTape& tape) { return tape.memory; }, "That history, for `restore_conv_tape`.")
        .def_property_readonly(
            "x", [](const DeviceConvTape& tape) { return tape.x.holder; }, "The inputs.")
        .def_property_readonly(
            "stream", [](const DeviceConvTape& tape) { return reinterpret_cast<std::uintptr_t>(tape.stream); },
            "The stream of the forward pass.")
        .def("__repr__", [](const DeviceConvTape& tape) { return describe_tape(tape); });
    const auto define_forward = [&module](const char* name, Cell (*read)(py::handle)) {
        module.def(name, [read](py::handle place, py::handle precision, py::handle cell, py::handle x, py::handle hx,
                                py::handle w_ih, py::handle w_hh, py::handle b_ih, py::handle b_hh, py::handle peephole,
                                py::handle is_init, py::handle dilation, py::handle layout, py::handle algo,
                                py::handle training, py::handle recompute) {
            const Given given{x, hx, w_ih, w_hh, b_ih, b_hh, peephole, is_init, {dilation, layout, algo}};
            return convrecurrent_forward(read(cell), place, precision, given, training, recompute);
        });
    };
    define_forward("convrnn_forward", [](py::handle name) { return read_nonlinearity(name, "convrnn_forward"); });
    define_forward("convrecurrent_forward",
                   [](py::handle name) { return read_cell(name, {"convrecurrent_forward", "cell"}); });
    module.def("convrecurrent_backward", &convrecurrent_backward);
    module.def("restore_conv_tape", &restore);
}

}  // namespace tbptt::python
