// The recurrent layers: rnn, gru and lstm, forward and backward.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "../dispatch.h"
#include "arguments.h"
#include "tape.h"

namespace tbptt::python {

const char* family(Cell cell) {
    switch (cell) {
        case Cell::gru: return "gru";
        case Cell::lstm: return "lstm";
        default: return "rnn";
    }
}

int64_t gates(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

State unpack_state(py::handle given, Cell cell, const Argument& argument) {
    if (given.is_none()) return {};
    if (cell != Cell::lstm) return {py::reinterpret_borrow<py::object>(given), py::none()};
    if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given))
        argument.type_error("expected a pair (h, c), got " + type_name(given));
    const auto pair = py::reinterpret_borrow<py::sequence>(given);
    if (pair.size() != 2) argument.value_error("expected a pair (h, c), got " + std::to_string(pair.size()) + " items");
    return {pair[0], pair[1]};
}

py::object state_of(Cell cell, const py::object& h, const py::object& c) {
    return cell == Cell::lstm ? py::object(py::make_tuple(h, c)) : h;
}

namespace {

int64_t read_window(py::handle value, const Argument& argument) {
    const py::object number = to_index(value);
    if (!number) argument.type_error("expected None, an integer K or a pair (k1, k2), got " + type_name(value));
    int overflow = 0;
    const long long result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    constexpr long long most = 1LL << 40;  // longer than any sequence; sums of two stay exact
    if (overflow > 0 || result > most) return most;
    if (overflow < 0 || result < 1)
        argument.value_error("expected at least 1 step, got " + std::string(py::str(number)));
    return result;
}

}  // namespace

Truncation read_truncation(py::handle given, int64_t steps, const Argument& argument) {
    if (given.is_none()) return {steps > 0 ? steps : 1, steps > 0 ? steps : 1};
    if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given)) {
        const int64_t k = read_window(given, argument);
        return {k, k};
    }
    const auto pair = py::reinterpret_borrow<py::sequence>(given);
    if (pair.size() != 2)
        argument.value_error("expected a pair (k1, k2), got " + std::to_string(pair.size()) + " items");
    const Truncation truncation{read_window(pair[0], argument), read_window(pair[1], argument)};
    if (truncation.k2 < truncation.k1)
        argument.value_error("expected k1 <= k2 (a smaller k2 would drop losses), got (" +
                             std::to_string(truncation.k1) + ", " + std::to_string(truncation.k2) + ")");
    return truncation;
}

Cell read_nonlinearity(py::handle given, const char* op) {
    const Argument argument{op, "nonlinearity"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected 'tanh' or 'relu', got " + type_name(given));
    const std::string name = py::str(given);
    if (name == "tanh") return Cell::rnn_tanh;
    if (name == "relu") return Cell::rnn_relu;
    argument.value_error("expected 'tanh' or 'relu', got '" + name + "'");
}

Cell read_cell(py::handle given, const Argument& argument) {
    const std::string name = py::str(given);
    for (const auto& [known, cell] : {std::pair{"rnn_tanh", Cell::rnn_tanh}, std::pair{"rnn_relu", Cell::rnn_relu},
                                      std::pair{"gru", Cell::gru}, std::pair{"lstm", Cell::lstm}})
        if (name == known) return cell;
    argument.value_error("expected 'rnn_tanh', 'rnn_relu', 'gru' or 'lstm', got '" + name + "'");
}

namespace {

// What a tape holds for each step, row and unit beside h.
int64_t saved_values(Cell cell) { return cell == Cell::lstm ? 5 : cell == Cell::gru ? 4 : 0; }

const char* forward_name(Cell cell) {
    return cell == Cell::lstm ? "lstm_forward" : cell == Cell::gru ? "gru_forward" : "rnn_forward";
}
const char* backward_name(Cell cell) {
    return cell == Cell::lstm ? "lstm_backward" : cell == Cell::gru ? "gru_backward" : "rnn_backward";
}

RecurrentShape read_shape(Cell cell, const py::array& x, const py::array& w_hh, const char* op) {
    const Argument x_argument{op, "x"}, w_argument{op, "w_hh"};
    check_rank(x, 3, x_argument);
    check_rank(w_hh, 2, w_argument);
    if (w_hh.shape(0) % gates(cell) != 0)
        w_argument.value_error("expected " + std::to_string(gates(cell)) +
                               " gates of equal size in the first dimension, got shape " + format_shape(w_hh));
    const RecurrentShape shape{cell, x.shape(0), x.shape(1), x.shape(2), w_hh.shape(0) / gates(cell)};
    if (shape.hidden < 1) w_argument.value_error("expected at least one hidden unit, got shape " + format_shape(w_hh));
    constexpr int64_t most = (int64_t{1} << 31) - 2;
    if (shape.steps > most || shape.batch > most)
        x_argument.value_error("expected fewer than 2^31 steps and rows, got shape " + format_shape(x));
    element_count({gates(cell), shape.hidden, shape.steps > 0 ? shape.steps : 1, shape.batch > 0 ? shape.batch : 1});
    return shape;
}

int64_t values_of(const RecurrentShape& shape) { return element_count({shape.steps, shape.batch, shape.hidden}); }
int64_t tape_size(const RecurrentShape& shape) { return values_of(shape) * (1 + saved_values(shape.cell)); }

template <class T>
RecurrentTape<T> parts_of(const Tape& tape) {
    auto* h = static_cast<T*>(const_cast<void*>(py::reinterpret_borrow<py::array>(tape.memory).data()));
    return {h, saved_values(tape.shape.cell) ? h + values_of(tape.shape) : nullptr};
}

template <class T>
py::tuple forward(const RecurrentShape& shape, const py::array& x_array, const State& state, py::handle w_ih_given,
                  const py::array& w_hh_array, py::handle b_ih_given, py::handle b_hh_given, py::handle is_init_given,
                  bool training) {
    const Cell cell = shape.cell;
    const char* op = forward_name(cell);
    const auto [cell_again, steps, batch, inputs, hidden] = shape;
    const int64_t columns = gates(cell) * hidden;
    const Input<T> x = input<T>(x_array, {steps, batch, inputs}, {op, "x"});
    const Input<T> w_ih = input<T>(w_ih_given, {columns, inputs}, {op, "w_ih"});
    const Input<T> w_hh = input<T>(w_hh_array, {columns, hidden}, {op, "w_hh"});
    const Input<T> b_ih = optional_input<T>(b_ih_given, {columns}, {op, "b_ih"});
    const Input<T> b_hh = optional_input<T>(b_hh_given, {columns}, {op, "b_hh"});
    const Input<T> h0 = optional_input<T>(state.h, {batch, hidden}, {op, cell == Cell::lstm ? "hx[0]" : "hx"});
    const Input<T> c0 = optional_input<T>(state.c, {batch, hidden}, {op, "hx[1]"});
    const Input<std::uint8_t> is_init = optional_mask(is_init_given, {steps, batch}, {op, "is_init"});

    const Output<T> out({steps, batch, hidden}), h_n({batch, hidden});
    std::optional<Output<T>> c_n;
    if (cell == Cell::lstm) c_n.emplace(std::initializer_list<int64_t>{batch, hidden});
    RecurrentForward<T> p{};
    p.layer = {shape, x.data, h0.data, c0.data, w_ih.data, w_hh.data, b_ih.data, b_hh.data, is_init.data};
    p.out = out.data;
    p.c_n = c_n ? c_n->data : nullptr;

    py::object tape_object = py::none();
    if (training) {
        const int64_t size = tape_size(shape);
        Tape tape{shape,
                  dtype_of<T>,
                  x.holder,
                  h0.holder,
                  c0.holder,
                  w_ih.holder,
                  w_hh.holder,
                  is_init.holder,
                  b_ih.data != nullptr,
                  b_hh.data != nullptr,
                  new_array(dtype_of<T>, {size}),
                  static_cast<std::size_t>(size) * sizeof(T)};
        p.tape = parts_of<T>(tape);
        tape_object = py::cast(std::move(tape));
    }
    {
        const py::gil_scoped_release unlocked;
        const int64_t last = batch * hidden;
        if (steps == 0 || batch == 0) {
            copy_or_zero(p.layer.h0, h_n.data, last);
            if (p.c_n) copy_or_zero(p.layer.c0, p.c_n, last);
        } else {
            const std::vector<Segment> segments = forward_segments(steps, batch, p.layer.is_init);
            p.segments = segments.data();
            p.segment_count = static_cast<int64_t>(segments.size());
            kernels<T>().recurrent_forward(p);
            copy_or_zero(p.out + (steps - 1) * last, h_n.data, last);
        }
    }
    return py::make_tuple(out.array, state_of(cell, h_n.array, c_n ? py::object(c_n->array) : py::none()), tape_object);
}

py::tuple recurrent_forward(Cell cell, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                            py::handle b_hh, py::handle is_init, py::handle training_given) {
    const char* op = forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const py::array x_array = to_array(x, {op, "x"}), w_hh_array = to_array(w_hh, {op, "w_hh"});
    const DType dtype = float_dtype(x_array, {op, "x"});
    const RecurrentShape shape = read_shape(cell, x_array, w_hh_array, op);
    const State state = unpack_state(hx, cell, {op, "hx"});
    return with_dtype(dtype, [&](auto zero) {
        return forward<decltype(zero)>(shape, x_array, state, w_ih, w_hh_array, b_ih, b_hh, is_init, training);
    });
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
py::tuple backward(const Tape& tape, py::handle grad_out_given, const State& grad_state, Truncation truncation,
                   py::handle carry_scale_given) {
    const Cell cell = tape.shape.cell;
    const char* op = backward_name(cell);
    const auto [cell_again, steps, batch, inputs, hidden] = tape.shape;
    const int64_t columns = gates(cell) * hidden;
    const Input<T> grad_out = optional_input<T>(grad_out_given, {steps, batch, hidden}, {op, "grad_out"});
    const Input<T> grad_h =
        optional_input<T>(grad_state.h, {batch, hidden}, {op, cell == Cell::lstm ? "grad_hx[0]" : "grad_hx"});
    const Input<T> grad_c = optional_input<T>(grad_state.c, {batch, hidden}, {op, "grad_hx[1]"});
    const Input<T> carry_scale = optional_input<T>(carry_scale_given, {steps, batch}, {op, "carry_scale"});

    const Output<T> grad_x({steps, batch, inputs}), grad_h0({batch, hidden}), grad_w_ih({columns, inputs}),
        grad_w_hh({columns, hidden});
    std::optional<Output<T>> grad_c0, grad_b_ih, grad_b_hh;
    if (cell == Cell::lstm) grad_c0.emplace(std::initializer_list<int64_t>{batch, hidden});
    if (tape.has_b_ih) grad_b_ih.emplace(std::initializer_list<int64_t>{columns});
    if (tape.has_b_hh) grad_b_hh.emplace(std::initializer_list<int64_t>{columns});

    RecurrentBackward<T> p = backward_of<T>(tape);
    p.overlapping = truncation.k1 < truncation.k2 && truncation.k1 < steps;
    p.grad_out = grad_out.data;
    p.grad_h_n = grad_h.data;
    p.grad_c_n = grad_c.data;
    p.carry_scale = carry_scale.data;
    p.grad_x = grad_x.data;
    p.grad_h0 = grad_h0.data;
    p.grad_c0 = grad_c0 ? grad_c0->data : nullptr;
    p.grad_w_ih = grad_w_ih.data;
    p.grad_w_hh = grad_w_hh.data;
    p.grad_b_ih = grad_b_ih ? grad_b_ih->data : nullptr;
    p.grad_b_hh = grad_b_hh ? grad_b_hh->data : nullptr;
    {
        const py::gil_scoped_release unlocked;
        if (steps == 0 || batch == 0) {
            copy_or_zero<T>(p.grad_h_n, p.grad_h0, batch * hidden);
            if (p.grad_c0) copy_or_zero<T>(p.grad_c_n, p.grad_c0, batch * hidden);
            copy_or_zero<T>(nullptr, p.grad_w_ih, columns * inputs);
            copy_or_zero<T>(nullptr, p.grad_w_hh, columns * hidden);
            if (p.grad_b_ih) copy_or_zero<T>(nullptr, p.grad_b_ih, columns);
            if (p.grad_b_hh) copy_or_zero<T>(nullptr, p.grad_b_hh, columns);
        } else {
            const std::vector<Segment> segments =
                backward_segments(steps, batch, truncation, p.layer.is_init, p.carry_scale);
            p.segments = segments.data();
            p.segment_count = static_cast<int64_t>(segments.size());
            kernels<T>().recurrent_backward(p);
        }
    }
    const auto array_of = [](const std::optional<Output<T>>& output) -> py::object {
        return output ? py::object(output->array) : py::object(py::none());
    };
    return py::make_tuple(grad_x.array, state_of(cell, grad_h0.array, array_of(grad_c0)), grad_w_ih.array,
                          grad_w_hh.array, array_of(grad_b_ih), array_of(grad_b_hh));
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
    if (std::string(family(tape.shape.cell)) != family(cell))
        argument.value_error("expected a tape of " + std::string(forward_name(cell)) + ", got one of " +
                             forward_name(tape.shape.cell));
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
    const int64_t row = steps * batch, states = cell == Cell::lstm ? 2 : 1;
    const Input<T> grad_out = input<T>(grad_out_given, {steps, batch, hidden}, {"lag_norms", "grad_out"});
    const Output<T> norms({lags, steps, batch});
    std::optional<Output<double>> totals;
    if (sums) totals.emplace(std::initializer_list<int64_t>{lags, states, hidden});
    RecurrentBackward<T> p = backward_of<T>(tape);
    p.overlapping = true;
    p.grad_out = grad_out.data;
    p.lag_norms = norms.data;
    p.lag_sums = totals ? totals->data : nullptr;
    {
        const py::gil_scoped_release unlocked;
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
Tape restore(const RecurrentShape& shape, const py::array& x, const State& state, py::handle w_ih,
             const py::array& w_hh, bool has_b_ih, bool has_b_hh, py::handle is_init, py::handle memory) {
    const char* op = "restore_tape";
    const auto [cell, steps, batch, inputs, hidden] = shape;
    const int64_t columns = gates(cell) * hidden, size = tape_size(shape);
    return {shape,
            dtype_of<T>,
            input<T>(x, {steps, batch, inputs}, {op, "x"}).holder,
            optional_input<T>(state.h, {batch, hidden}, {op, "hx"}).holder,
            optional_input<T>(state.c, {batch, hidden}, {op, "hx"}).holder,
            input<T>(w_ih, {columns, inputs}, {op, "w_ih"}).holder,
            input<T>(w_hh, {columns, hidden}, {op, "w_hh"}).holder,
            optional_mask(is_init, {steps, batch}, {op, "is_init"}).holder,
            has_b_ih,
            has_b_hh,
            input<T>(memory, {size}, {op, "memory"}).holder,
            static_cast<std::size_t>(size) * sizeof(T)};
}

std::string describe(const Tape& tape) {
    const auto [cell, steps, batch, inputs, hidden] = tape.shape;
    return std::string("<Tape of ") + forward_name(cell) + ": steps " + std::to_string(steps) + ", batch " +
           std::to_string(batch) + ", inputs " + std::to_string(inputs) + ", hidden " + std::to_string(hidden) + ", " +
           name_of(tape.dtype) + ", " + std::to_string(tape.nbytes) + " bytes>";
}

}  // namespace

void register_recurrent(py::module_& module) {
    py::class_<Tape>(module, "Tape", "What a recurrent forward pass keeps for its backward pass.")
        .def_readonly("nbytes", &Tape::nbytes, "How many bytes of history it holds.")
        .def_readonly("memory", &Tape::memory, "That history, for `restore_tape`.")
        .def("__repr__", &describe);
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
        const RecurrentShape shape = read_shape(cell, x_array, w_hh_array, op);
        const State state = unpack_state(hx, cell, {op, "hx"});
        const bool b_ih = read_bool(has_b_ih, {op, "has_b_ih"}), b_hh = read_bool(has_b_hh, {op, "has_b_hh"});
        return with_dtype(float_dtype(x_array, {op, "x"}), [&](auto zero) {
            return restore<decltype(zero)>(shape, x_array, state, w_ih, w_hh_array, b_ih, b_hh, is_init, memory);
        });
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
        const int64_t lags = std::min(read_integer(max_lag, 0, {op, "max_lag"}), int64_t{1} << 40) + 1;
        const bool sums = read_bool(sums_given, {op, "sums"});
        return with_dtype(tape.dtype, [&](auto zero) { return lag_norms<decltype(zero)>(tape, grad_out, lags, sums); });
    });
    define_backward("rnn_backward", Cell::rnn_tanh);
    define_backward("gru_backward", Cell::gru);
    define_backward("lstm_backward", Cell::lstm);
}

}  // namespace tbptt::python
