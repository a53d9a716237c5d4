// The checks of recurrent_arguments.h.
#include "recurrent_arguments.h"

#include <algorithm>

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

int64_t read_lags(py::handle max_lag, const Argument& argument) {
    return std::min(read_integer(max_lag, 0, argument), int64_t{1} << 40) + 1;
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

const char* forward_name(Cell cell) {
    return cell == Cell::lstm ? "lstm_forward" : cell == Cell::gru ? "gru_forward" : "rnn_forward";
}
const char* backward_name(Cell cell) {
    return cell == Cell::lstm ? "lstm_backward" : cell == Cell::gru ? "gru_backward" : "rnn_backward";
}

RecurrentShape read_shape(Cell cell, Shape x, Shape w_hh, const char* op) {
    const Argument x_argument{op, "x"}, w_argument{op, "w_hh"};
    check_rank(x, 3, x_argument);
    check_rank(w_hh, 2, w_argument);
    if (w_hh.extents[0] % gates(cell) != 0)
        w_argument.value_error("expected " + std::to_string(gates(cell)) +
                               " gates of equal size in the first dimension, got shape " + format_shape(w_hh));
    const RecurrentShape shape{cell, x.extents[0], x.extents[1], x.extents[2], w_hh.extents[0] / gates(cell)};
    if (shape.hidden < 1) w_argument.value_error("expected at least one hidden unit, got shape " + format_shape(w_hh));
    constexpr int64_t most = (int64_t{1} << 31) - 2;
    if (shape.steps > most || shape.batch > most)
        x_argument.value_error("expected fewer than 2^31 steps and rows, got shape " + format_shape(x));
    element_count({gates(cell), shape.hidden, shape.steps > 0 ? shape.steps : 1, shape.batch > 0 ? shape.batch : 1});
    return shape;
}

void check_tape_of(Cell tape, Cell cell, const Argument& argument) {
    if (std::string(family(tape)) != family(cell))
        argument.value_error("expected a tape of " + std::string(forward_name(cell)) + ", got one of " +
                             forward_name(tape));
}

std::string describe_tape(const RecurrentShape& shape, DType dtype, std::size_t nbytes) {
    const auto [cell, steps, batch, inputs, hidden] = shape;
    return std::string("<Tape of ") + forward_name(cell) + ": steps " + std::to_string(steps) + ", batch " +
           std::to_string(batch) + ", inputs " + std::to_string(inputs) + ", hidden " + std::to_string(hidden) + ", " +
           name_of(dtype) + ", " + std::to_string(nbytes) + " bytes>";
}

}  // namespace tbptt::python
