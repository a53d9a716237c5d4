// The recurrent layers: rnn, gru and lstm, forward and backward.
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "arguments.h"
#include "host_recurrent.h"

namespace tbptt::python {

namespace {

int64_t values_of(const RecurrentShape& shape) { return element_count({shape.steps, shape.batch, shape.hidden}); }
int64_t tape_size(const RecurrentShape& shape) { return values_of(shape) * (1 + saved_values(shape.cell)); }

template <class T>
RecurrentTape<T> parts_of(const Tape& tape) {
    auto* h = static_cast<T*>(const_cast<void*>(py::reinterpret_borrow<py::array>(tape.memory).data()));
    return {h, saved_values(tape.shape.cell) ? h + values_of(tape.shape) : nullptr};
}

template <class T>
Tape tape_of(const RecurrentShape& shape, const LayerInputs<T>& in, bool has_b_ih, bool has_b_hh, py::object memory) {
    return {shape,        dtype_of<T>,    in.x.holder,       in.h0.holder,
            in.c0.holder, in.w_ih.holder, in.w_hh.holder,    in.is_init.holder,
            has_b_ih,     has_b_hh,       std::move(memory), static_cast<std::size_t>(tape_size(shape)) * sizeof(T)};
}

template <class T>
py::tuple forward(const RecurrentShape& shape, const GivenLayer<py::array>& given, bool training) {
    const HostArrays arrays;
    const LayerInputs<T> in = read_layer<T>(arrays, shape, given, forward_name(shape.cell));
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const Made<T> out = arrays.make<T>({steps, batch, hidden}), h_n = arrays.make<T>({batch, hidden});
    const Made<T> c_n = shape.cell == Cell::lstm ? arrays.make<T>({batch, hidden}) : Made<T>{};
    RecurrentForward<T> p{};
    p.layer = in.layer(shape);
    p.out = out.data;
    p.c_n = c_n.data;

    py::object tape_object = py::none();
    if (training) {
        Tape tape = tape_of(shape, in, in.b_ih.data != nullptr, in.b_hh.data != nullptr,
                            new_array(dtype_of<T>, {tape_size(shape)}));
        p.tape = parts_of<T>(tape);
        tape_object = py::cast(std::move(tape));
    }
    {
        const Unlocked unlocked;
        run_recurrent_forward(p, h_n.data);
    }
    return py::make_tuple(out.array, state_of(shape.cell, h_n.array, c_n.array), tape_object);
}

py::tuple recurrent_forward(Cell cell, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                            py::handle b_hh, py::handle is_init, py::handle training_given) {
    const char* op = forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const py::array x_array = to_array(x, {op, "x"}), w_hh_array = to_array(w_hh, {op, "w_hh"});
    const DType dtype = float_dtype(x_array, {op, "x"});
    const RecurrentShape shape = read_shape(cell, shape_of(x_array), shape_of(w_hh_array), op);
    const GivenLayer<py::array> given{x_array, unpack_state(hx, cell, {op, "hx"}), w_ih, w_hh_array, b_ih, b_hh,
                                      is_init};
    return with_dtype(dtype, [&](auto zero) { return forward<decltype(zero)>(shape, given, training); });
}

template <class T>
RecurrentBackward<T> backward_of(const Tape& tape) {
    RecurrentBackward<T> p{};
    p.layer = {tape.shape,
               data_of<T>(tape.x),
               data_of<T>(tape.h0),
               data_of<T>(tape.c0),
               data_of<T>(tape.w_ih),
               data_of<T>(tape.w_hh),
               nullptr,
               nullptr,
               data_of<std::uint8_t>(tape.is_init)};
    p.tape = parts_of<T>(tape);
    return p;
}

template <class T>
py::tuple backward(const Tape& tape, py::handle grad_out, const State& grad_state, Truncation truncation,
                   py::handle carry_scale) {
    const HostArrays arrays;
    const RecurrentShape& shape = tape.shape;
    const GradientInputs<T> in =
        read_gradients<T>(arrays, shape, grad_out, grad_state, carry_scale, backward_name(shape.cell));
    const LayerGradients<T> grads(arrays, shape, tape.has_b_ih, tape.has_b_hh);
    RecurrentBackward<T> p = backward_of<T>(tape);
    grads.set(p, in, truncation);
    {
        const Unlocked unlocked;
        run_recurrent_backward(p, truncation);
    }
    return grads.result(shape.cell);
}

const Tape& read_tape(py::handle given, const Argument& argument) {
    if (!py::isinstance<Tape>(given)) argument.type_error("expected a Tape, got " + type_name(given));
    return given.cast<const Tape&>();
}

py::tuple recurrent_backward(Cell cell, py::handle tape_given, py::handle grad_out, py::handle grad_hx,
                             py::handle truncation, py::handle carry_scale) {
    const char* op = backward_name(cell);
    const Argument argument{op, "tape"};
    const Tape& tape = read_tape(tape_given, argument);
    check_tape_of(tape.shape.cell, cell, argument);
    const State state = unpack_state(grad_hx, cell, {op, "grad_hx"});
    if (grad_out.is_none() && state.h.is_none() && state.c.is_none())
        Argument{op, "grad_out"}.value_error("expected an array, or None together with grad_hx");
    const Truncation windows = read_truncation(truncation, tape.shape.steps, {op, "truncation"});
    return with_dtype(tape.dtype,
                      [&](auto zero) { return backward<decltype(zero)>(tape, grad_out, state, windows, carry_scale); });
}

// A loss whose gradient is zero has zeros everywhere, and needs no walk.
template <class T>
std::vector<Segment> with_gradient(std::vector<Segment> segments, const T* grad_out, const RecurrentShape& shape) {
    const auto is_zero = [&](const Segment& segment) {
        const T* row = grad_out + (int64_t{segment.origin} * shape.batch + segment.batch) * shape.hidden;
        return std::all_of(row, row + shape.hidden, [](T value) { return value == T(0); });
    };
    segments.erase(std::remove_if(segments.begin(), segments.end(), is_zero), segments.end());
    return segments;
}

template <class T>
py::tuple lag_norms(const Tape& tape, py::handle grad_out_given, int64_t lags, bool sums) {
    const auto [cell, steps, batch, inputs, hidden] = tape.shape;
    const int64_t row = steps * batch, states = states_of(cell);
    const Input<T> grad_out = input<T>(grad_out_given, {steps, batch, hidden}, {"lag_norms", "grad_out"});
    const Output<T> norms({lags, steps, batch});
    std::optional<Output<double>> totals;
    if (sums) totals.emplace(std::initializer_list<Extent>{lags, states, hidden});
    RecurrentBackward<T> p = backward_of<T>(tape);
    p.overlapping = true;
    p.grad_out = grad_out.data;
    p.lag_norms = norms.data;
    p.lag_sums = totals ? totals->data : nullptr;
    {
        const Unlocked unlocked;
        for (int64_t lag = 0; lag < lags && row > 0; ++lag) {
            T* to = norms.data + lag * row;
            const int64_t before_step_0 = std::min(lag, steps) * batch;
            std::fill(to, to + before_step_0, std::numeric_limits<T>::quiet_NaN());
            std::fill(to + before_step_0, to + row, T(0));
        }
        if (totals) std::fill_n(p.lag_sums, lags * states * hidden, 0.0);
        const std::vector<Segment> segments = with_gradient(
            backward_segments<T>(steps, batch, {1, lags}, p.layer.is_init, nullptr), p.grad_out, tape.shape);
        p.segments = segments.data();
        p.segment_count = static_cast<int64_t>(segments.size());
        if (!segments.empty()) kernels<T>().recurrent_backward(p);
    }
    return py::make_tuple(norms.array, totals ? py::object(totals->array) : py::object(py::none()));
}

// The tape of an earlier forward pass from its arguments and `memory`, which may have been moved meanwhile.
template <class T>
Tape restore(const RecurrentShape& shape, const GivenLayer<py::array>& given, bool has_b_ih, bool has_b_hh,
             py::handle memory) {
    const char* op = "restore_tape";
    const LayerInputs<T> in = read_layer<T>(HostArrays(), shape, given, op);
    return tape_of(shape, in, has_b_ih, has_b_hh, input<T>(memory, {tape_size(shape)}, {op, "memory"}).holder);
}

}  // namespace

void register_recurrent(py::module_& module) {
    py::class_<Tape>(module, "Tape", "What a recurrent forward pass keeps for its backward pass.")
        .def_readonly("nbytes", &Tape::nbytes, "How many bytes of history it holds.")
        .def_readonly("memory", &Tape::memory, "That history, for `restore_tape`.")
        .def("__repr__", [](const Tape& tape) { return describe_tape(tape.shape, tape.dtype, tape.nbytes); });
    module.def("rnn_forward", [](py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                                 py::handle b_hh, py::handle nonlinearity, py::handle is_init, py::handle training) {
        return recurrent_forward(read_nonlinearity(nonlinearity, "rnn_forward"), x, hx, w_ih, w_hh, b_ih, b_hh, is_init,
                                 training);
    });
    module.def("gru_forward", [](py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                                 py::handle b_hh, py::handle is_init, py::handle training) {
        return recurrent_forward(Cell::gru, x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training);
    });
    module.def("lstm_forward", [](py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                                  py::handle b_hh, py::handle is_init, py::handle training) {
        return recurrent_forward(Cell::lstm, x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training);
    });
    module.def("restore_tape", [](py::handle name, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh,
                                  py::handle has_b_ih, py::handle has_b_hh, py::handle is_init, py::handle memory) {
        const char* op = "restore_tape";
        const py::array x_array = to_array(x, {op, "x"}), w_hh_array = to_array(w_hh, {op, "w_hh"});
        const Cell cell = read_cell(name, {op, "cell"});
        const RecurrentShape shape = read_shape(cell, shape_of(x_array), shape_of(w_hh_array), op);
        const GivenLayer<py::array> given{
            x_array, unpack_state(hx, cell, {op, "hx"}), w_ih, w_hh_array, py::none(), py::none(), is_init};
        const bool b_ih = read_bool(has_b_ih, {op, "has_b_ih"}), b_hh = read_bool(has_b_hh, {op, "has_b_hh"});
        return with_dtype(float_dtype(x_array, {op, "x"}),
                          [&](auto zero) { return restore<decltype(zero)>(shape, given, b_ih, b_hh, memory); });
    });
    const auto define_backward = [&module](const char* name, Cell cell) {
        module.def(name, [cell](py::handle tape, py::handle grad_out, py::handle grad_hx, py::handle truncation,
                                py::handle carry_scale) {
            return recurrent_backward(cell, tape, grad_out, grad_hx, truncation, carry_scale);
        });
    };
    module.def("lag_norms", [](py::handle tape_given, py::handle grad_out, py::handle max_lag, py::handle sums_given) {
        const char* op = "lag_norms";
        const Tape& tape = read_tape(tape_given, {op, "tape"});
        const int64_t lags = read_lags(max_lag, {op, "max_lag"});
        const bool sums = read_bool(sums_given, {op, "sums"});
        return with_dtype(tape.dtype, [&](auto zero) { return lag_norms<decltype(zero)>(tape, grad_out, lags, sums); });
    });
    define_backward("rnn_backward", Cell::rnn_tanh);
    define_backward("gru_backward", Cell::gru);
    define_backward("lstm_backward", Cell::lstm);
}

}  // namespace tbptt::python
