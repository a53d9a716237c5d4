// The recurrent layers on images: convolutional rnn, gru and lstm, forward and backward.
#include "convrecurrent_arguments.h"
#include "host_recurrent.h"

namespace tbptt::python {

namespace {

// Arrays of the layer's own form, before they are checked.
struct Given {
    py::array x, w_ih, w_hh;
    State state;
    py::handle b_ih, b_hh, peephole, is_init;
    ConvRecurrentOptions options;

    GivenConvLayer<py::array> layer() const { return {x, w_ih, w_hh, state, b_ih, b_hh, peephole, is_init}; }
};

Given given_to(const char* op, Cell cell, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh,
               py::handle b_ih, py::handle b_hh, py::handle peephole, py::handle is_init,
               const ConvRecurrentOptions& options) {
    return {to_array(x, {op, "x"}),
            to_array(w_ih, {op, "w_ih"}),
            to_array(w_hh, {op, "w_hh"}),
            unpack_state(hx, cell, {op, "hx"}),
            b_ih,
            b_hh,
            peephole,
            is_init,
            options};
}

// The tape with its arrays but the output and the memory.
template <class T>
ConvTape read_tape(const char* op, Cell cell, const Given& given, bool recompute) {
    const ConvRecurrentShape shape =
        read_conv_shape(cell, shape_of(given.x), shape_of(given.w_ih), shape_of(given.w_hh), given.options, op);
    ConvTape tape = read_conv_layer<T>(HostArrays{}, shape, given.layer(), recompute, op);
    tape.values = kept_values(cell, !recompute);
    return tape;
}

Cell read_plain(py::handle nonlinearity) { return read_nonlinearity(nonlinearity, "convrnn_forward"); }
Cell read_any(py::handle name) { return read_cell(name, {"convrecurrent_forward", "cell"}); }

template <Cell (*read)(py::handle)>
py::tuple convrecurrent_forward(py::handle name, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh,
                                py::handle b_ih, py::handle b_hh, py::handle peephole, py::handle is_init,
                                py::handle dilation, py::handle layout, py::handle algo, py::handle training_given,
                                py::handle recompute_given) {
    const Cell cell = read(name);
    const char* op = conv_forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const bool recompute = read_bool(recompute_given, {op, "recompute"});
    const Given given = given_to(op, cell, x, hx, w_ih, w_hh, b_ih, b_hh, peephole, is_init, {dilation, layout, algo});
    return with_dtype(float_dtype(given.x, {op, "x"}), [&](auto zero) {
        using T = decltype(zero);
        return run_conv_forward<T>(
            HostArrays{}, read_tape<T>(op, cell, given, recompute), training,
            [](const ConvRecurrentForward<T>& p) { kernels<T>().convrecurrent_forward(p); }, &copy_or_zero<T>,
            [](ConvTape&& tape) { return py::cast(std::move(tape)); });
    });
}

py::tuple convrecurrent_backward(py::handle cell_name, py::handle tape_given, py::handle grad_out, py::handle grad_hx,
                                 py::handle truncation, py::handle carry_scale) {
    const Cell cell = read_cell(cell_name, {"convrnn_backward", "cell"});
    if (!py::isinstance<ConvTape>(tape_given))
        Argument{conv_backward_name(cell), "tape"}.type_error("expected a ConvTape, got " + type_name(tape_given));
    const ConvTape& tape = tape_given.cast<const ConvTape&>();
    const GivenConvGradients given = read_given_gradients(tape, cell, grad_out, grad_hx, truncation, carry_scale);
    return with_dtype(tape.dtype, [&](auto zero) {
        using T = decltype(zero);
        return run_conv_backward<T>(
            HostArrays{}, tape, given,
            [&](ConvRecurrentBackward<T>& p) { run_convrecurrent_backward(p, given.truncation); }, &copy_or_zero<T>);
    });
}

ConvTape restore(py::handle cell_name, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                 py::handle b_hh, py::handle peephole, py::handle is_init, py::handle dilation, py::handle layout,
                 py::handle algo, py::handle recompute, py::handle out, py::handle memory) {
    const char* op = "restore_conv_tape";
    const Cell cell = read_cell(cell_name, {op, "cell"});
    const Given given = given_to(op, cell, x, hx, w_ih, w_hh, b_ih, b_hh, peephole, is_init, {dilation, layout, algo});
    return with_dtype(float_dtype(given.x, {op, "x"}), [&](auto zero) {
        using T = decltype(zero);
        ConvTape tape = read_tape<T>(op, cell, given, read_bool(recompute, {op, "recompute"}));
        restore_conv_tape<T>(HostArrays{}, tape, out, memory);
        return tape;
    });
}

}  // namespace

void register_convrecurrent(py::module_& module) {
    py::class_<ConvTape>(module, "ConvTape", "What a recurrent layer on images keeps for its backward pass.")
        .def_readonly("nbytes", &ConvTape::nbytes, "How many bytes of history it holds, beside the output.")
        .def_readonly("memory", &ConvTape::memory, "That history, for `restore_conv_tape`.")
        .def("__repr__", [](const ConvTape& tape) { return describe_tape(tape); });
    module.def("convrnn_forward", &convrecurrent_forward<read_plain>);
    module.def("convrecurrent_forward", &convrecurrent_forward<read_any>);
    module.def("convrecurrent_backward", &convrecurrent_backward);
    module.def("restore_conv_tape", &restore);
}

}  // namespace tbptt::python
