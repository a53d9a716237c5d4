// The recurrent layers on a device: rnn, gru and lstm, forward and backward.
#include "device_recurrent.h"

namespace tbptt::python {

namespace {

// What a forward pass keeps for its backward pass. The output is part of it, as h of all steps.
struct DeviceTape {
    RecurrentShape shape;
    DType dtype;
    int device;
    Stream stream;
    Borrowed x, h0, c0, w_ih, w_hh, is_init, out;
    bool has_b_ih, has_b_hh;
    py::object memory;  // an array of x's library: what else is kept
    void* saved;
    std::size_t nbytes;
};

int64_t saved_size(const RecurrentShape& shape) {
    return element_count({shape.steps, shape.batch, shape.hidden, cuda::tape_values(shape.cell)});
}

template <class T>
DeviceTape tape_of(const RecurrentShape& shape, int device, Stream stream, const LayerInputs<T>& in, bool has_b_ih,
                   bool has_b_hh, Borrowed out, const Made<T>& saved) {
    return {shape,
            dtype_of<T>,
            device,
            stream,
            borrowed(in.x),
            borrowed(in.h0),
            borrowed(in.c0),
            borrowed(in.w_ih),
            borrowed(in.w_hh),
            borrowed(in.is_init),
            std::move(out),
            has_b_ih,
            has_b_hh,
            saved.array,
            saved.data,
            static_cast<std::size_t>(saved_size(shape)) * sizeof(T)};
}

template <class T>
py::tuple forward(const DeviceArrays& arrays, const cuda::Call& call, const RecurrentShape& shape,
                  const GivenLayer<View>& given, bool training) {
    const LayerInputs<T> in = read_layer<T>(arrays, shape, given, forward_name(shape.cell));
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const Made<T> out = arrays.make<T>({steps, batch, hidden}), h_n = arrays.make<T>({batch, hidden});
    const Made<T> c_n = shape.cell == Cell::lstm ? arrays.make<T>({batch, hidden}) : Made<T>{};
    RecurrentForward<T> p{};
    p.layer = in.layer(shape);
    p.out = out.data;
    p.c_n = c_n.data;

    py::object tape = py::none();
    if (training) {
        const Made<T> saved = arrays.make<T>({saved_size(shape)});
        p.tape = {out.data, saved.data};
        tape = py::cast(tape_of(shape, given.x.device, call.stream, in, in.b_ih.data != nullptr,
                                in.b_hh.data != nullptr, {out.array, out.data}, saved));
    }
    {
        const Unlocked unlocked;
        run_recurrent_forward(p, h_n.data, call);
    }
    return py::make_tuple(out.array, state_of(shape.cell, h_n.array, c_n.array), tape);
}

py::tuple recurrent_forward(Cell cell, py::handle place_given, py::handle precision, py::handle x_given, py::handle hx,
                            py::handle w_ih, py::handle w_hh_given, py::handle b_ih, py::handle b_hh,
                            py::handle is_init, py::handle training_given) {
    const char* op = forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const Place place = read_place(place_given);
    const cuda::Call call{place.stream, read_exact(precision, op)};
    DeviceArrays arrays(place);
    const View x = arrays.read(x_given, {op, "x"}), w_hh = arrays.read(w_hh_given, {op, "w_hh"});
    const DType dtype = float_or_bfloat16(x, {op, "x"});
    const RecurrentShape shape = read_shape(cell, shape_of(x), shape_of(w_hh), op);
    arrays.stay_on(x.device);
    const cuda::OnDevice here(x.device);
    const GivenLayer<View> given{x, unpack_state(hx, cell, {op, "hx"}), w_ih, w_hh, b_ih, b_hh, is_init};
    return with_device_dtype(dtype,
                             [&](auto zero) { return forward<decltype(zero)>(arrays, call, shape, given, training); });
}

template <class T>
RecurrentBackward<T> backward_of(const DeviceTape& tape) {
    RecurrentBackward<T> p{};
    p.layer = {tape.shape,      tape.x.as<T>(),    tape.h0.as<T>(),
               tape.c0.as<T>(), tape.w_ih.as<T>(), tape.w_hh.as<T>(),
               nullptr,         nullptr,           tape.is_init.as<std::uint8_t>()};
    p.tape = {const_cast<T*>(tape.out.as<T>()), static_cast<T*>(tape.saved)};
    return p;
}

const DeviceTape& read_tape(py::handle given, const Argument& argument) {
    if (!py::isinstance<DeviceTape>(given)) argument.type_error("expected a Tape, got " + type_name(given));
    return given.cast<const DeviceTape&>();
}

template <class T>
py::tuple backward(const DeviceArrays& arrays, const cuda::Call& call, const DeviceTape& tape, py::handle grad_out,
                   const State& grad_state, Truncation truncation, py::handle carry_scale) {
    const RecurrentShape& shape = tape.shape;
    const GradientInputs<T> in =
        read_gradients<T>(arrays, shape, grad_out, grad_state, carry_scale, backward_name(shape.cell));
    const LayerGradients<T> grads(arrays, shape, tape.has_b_ih, tape.has_b_hh);
    RecurrentBackward<T> p = backward_of<T>(tape);
    grads.set(p, in, truncation);
    {
        const Unlocked unlocked;
        run_recurrent_backward(p, truncation, call);
    }
    return grads.result(shape.cell);
}

py::tuple recurrent_backward(Cell cell, py::handle place_given, py::handle precision, py::handle tape_given,
                             py::handle grad_out, py::handle grad_hx, py::handle truncation, py::handle carry_scale) {
    const char* op = backward_name(cell);
    const Argument argument{op, "tape"};
    const DeviceTape& tape = read_tape(tape_given, argument);
    check_tape_of(tape.shape.cell, cell, argument);
    const State state = unpack_state(grad_hx, cell, {op, "grad_hx"});
    if (grad_out.is_none() && state.h.is_none() && state.c.is_none())
        Argument{op, "grad_out"}.value_error("expected an array, or None together with grad_hx");
    const Truncation windows = read_truncation(truncation, tape.shape.steps, {op, "truncation"});
    const Place place = read_place(place_given);
    const cuda::Call call{place.stream, read_exact(precision, op)};
    DeviceArrays arrays(place);
    arrays.stay_on(tape.device);
    const cuda::OnDevice here(tape.device);
    return with_device_dtype(tape.dtype, [&](auto zero) {
        return backward<decltype(zero)>(arrays, call, tape, grad_out, state, windows, carry_scale);
    });
}

template <class T>
py::tuple lag_norms(const DeviceArrays& arrays, const cuda::Call& call, const DeviceTape& tape,
                    py::handle grad_out_given, int64_t lags, bool sums) {
    const auto [cell, steps, batch, inputs, hidden] = tape.shape;
    const Input<T> grad_out = arrays.input<T>(grad_out_given, {steps, batch, hidden}, {"lag_norms", "grad_out"});
    const Made<T> norms = arrays.make<T>({lags, steps, batch});
    const Made<double> totals =
        sums ? arrays.make_other<double>(Extents{lags, states_of(cell), hidden}) : Made<double>{};
    RecurrentBackward<T> p = backward_of<T>(tape);
    p.grad_out = grad_out.data;
    p.lag_norms = norms.data;
    p.lag_sums = totals.data;
    {
        const Unlocked unlocked;
        cuda::lag_norms(p, lags, call);
    }
    return py::make_tuple(norms.array, totals.array);
}

py::tuple lag_norms_of(py::handle place_given, py::handle precision, py::handle tape_given, py::handle grad_out,
                       py::handle max_lag, py::handle sums_given) {
    const char* op = "lag_norms";
    const DeviceTape& tape = read_tape(tape_given, {op, "tape"});
    const int64_t lags = read_lags(max_lag, {op, "max_lag"});
    const bool sums = read_bool(sums_given, {op, "sums"});
    const Place place = read_place(place_given);
    const cuda::Call call{place.stream, read_exact(precision, op)};
    DeviceArrays arrays(place);
    arrays.stay_on(tape.device);
    const cuda::OnDevice here(tape.device);
    return with_device_dtype(
        tape.dtype, [&](auto zero) { return lag_norms<decltype(zero)>(arrays, call, tape, grad_out, lags, sums); });
}

// The tape of an earlier forward pass from its arguments, its output and `memory`, which may have been moved meanwhile.
template <class T>
DeviceTape restore(const DeviceArrays& arrays, Stream stream, const RecurrentShape& shape,
                   const GivenLayer<View>& given, bool has_b_ih, bool has_b_hh, py::handle out_given,
                   py::handle memory_given) {
    const char* op = "restore_tape";
    const LayerInputs<T> in = read_layer<T>(arrays, shape, given, op);
    const Input<T> out = arrays.input<T>(out_given, {shape.steps, shape.batch, shape.hidden}, {op, "out"});
    const Input<T> memory = arrays.input<T>(memory_given, {saved_size(shape)}, {op, "memory"});
    return tape_of(shape, given.x.device, stream, in, has_b_ih, has_b_hh, borrowed(out),
                   Made<T>{memory.holder, const_cast<T*>(memory.data)});
}

DeviceTape restore_tape(py::handle place_given, py::handle name, py::handle x_given, py::handle hx, py::handle w_ih,
                        py::handle w_hh_given, py::handle has_b_ih, py::handle has_b_hh, py::handle is_init,
                        py::handle out, py::handle memory) {
    const char* op = "restore_tape";
    const Place place = read_place(place_given);
    DeviceArrays arrays(place);
    const View x = arrays.read(x_given, {op, "x"}), w_hh = arrays.read(w_hh_given, {op, "w_hh"});
    const Cell cell = read_cell(name, {op, "cell"});
    const RecurrentShape shape = read_shape(cell, shape_of(x), shape_of(w_hh), op);
    arrays.stay_on(x.device);
    const GivenLayer<View> given{x, unpack_state(hx, cell, {op, "hx"}), w_ih, w_hh, py::none(), py::none(), is_init};
    const bool b_ih = read_bool(has_b_ih, {op, "has_b_ih"}), b_hh = read_bool(has_b_hh, {op, "has_b_hh"});
    return with_device_dtype(float_or_bfloat16(x, {op, "x"}), [&](auto zero) {
        return restore<decltype(zero)>(arrays, place.stream, shape, given, b_ih, b_hh, out, memory);
    });
}

}  // namespace

void register_cuda_recurrent(py::module_& module) {
    py::class_<DeviceTape>(module, "Tape", py::module_local(),
                           "What a recurrent forward pass on a device keeps for its backward pass.")
        .def_readonly("nbytes", &DeviceTape::nbytes, "How many bytes of history it holds beside the output.")
        .def_readonly("memory", &DeviceTape::memory, "That history, for `restore_tape`.")
        .def_property_readonly(
            "x", [](const DeviceTape& tape) { return tape.x.holder; }, "The inputs.")
        .def_property_readonly(
            "stream", [](const DeviceTape& tape) { return reinterpret_cast<std::uintptr_t>(tape.stream); },
            "The stream of the forward pass.")
        .def("__repr__", [](const DeviceTape& tape) { return describe_tape(tape.shape, tape.dtype, tape.nbytes); });
    module.def("tape_values",
               [](py::handle cell) { return cuda::tape_values(read_cell(cell, {"tape_values", "cell"})); });
    module.def("rnn_forward",
               [](py::handle place, py::handle precision, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh,
                  py::handle b_ih, py::handle b_hh, py::handle nonlinearity, py::handle is_init, py::handle training) {
                   return recurrent_forward(read_nonlinearity(nonlinearity, "rnn_forward"), place, precision, x, hx,
                                            w_ih, w_hh, b_ih, b_hh, is_init, training);
               });
    const auto define_forward = [&module](const char* name, Cell cell) {
        module.def(
            name, [cell](py::handle place, py::handle precision, py::handle x, py::handle hx, py::handle w_ih,
                         py::handle w_hh, py::handle b_ih, py::handle b_hh, py::handle is_init, py::handle training) {
                return recurrent_forward(cell, place, precision, x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training);
            });
    };
    const auto define_backward = [&module](const char* name, Cell cell) {
        module.def(name, [cell](py::handle place, py::handle precision, py::handle tape, py::handle grad_out,
                                py::handle grad_hx, py::handle truncation, py::handle carry_scale) {
            return recurrent_backward(cell, place, precision, tape, grad_out, grad_hx, truncation, carry_scale);
        });
    };
    define_forward("gru_forward", Cell::gru);
    define_forward("lstm_forward", Cell::lstm);
    define_backward("rnn_backward", Cell::rnn_tanh);
    define_backward("gru_backward", Cell::gru);
    define_backward("lstm_backward", Cell::lstm);
    module.def("lag_norms", &lag_norms_of);
    module.def("restore_tape", &restore_tape);
}

}  // namespace tbptt::python
