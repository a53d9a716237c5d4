// The checks of windows.h.
#include "windows.h"

namespace tbptt::python {

namespace {

bool is_sequence(py::handle given) { return py::isinstance<py::tuple>(given) || py::isinstance<py::list>(given); }

bool is_nested(py::handle given) {
    if (!is_sequence(given)) return false;
    const py::sequence items = py::reinterpret_borrow<py::sequence>(given);
    return py::len(items) > 0 && is_sequence(items[0]);
}

Sides same(const Windows& w) {
    const int64_t outputs = (w.size + w.stride - 1) / w.stride;
    const int64_t reach = (outputs > 0 ? (outputs - 1) * w.stride : 0) + w.dilation * (w.kernel - 1) + 1;
    const int64_t total = reach > w.size ? reach - w.size : 0;
    return {total / 2, total - total / 2};
}

}  // namespace

std::string format_pair(const Pair& pair) {
    return "(" + std::to_string(pair[0]) + ", " + std::to_string(pair[1]) + ")";
}

Pair read_pair(py::handle given, int rank, int64_t least, const Argument& argument) {
    const int64_t none = least == 0 ? 0 : 1;  // along the missing dimension
    if (to_index(given)) {
        const int64_t value = read_integer(given, least, argument);
        return {rank == 1 ? none : value, value};
    }
    if (!is_sequence(given))
        argument.type_error("expected an integer or a tuple of " + std::to_string(rank) + ", got " + type_name(given));
    const py::sequence items = py::reinterpret_borrow<py::sequence>(given);
    if (py::len(items) != static_cast<std::size_t>(rank))
        argument.value_error("expected " + std::to_string(rank) + " integer" + (rank > 1 ? "s" : "") + ", got " +
                             std::to_string(py::len(items)));
    const int64_t last = read_integer(items[static_cast<std::size_t>(rank - 1)], least, argument);
    return {rank == 1 ? none : read_integer(items[0], least, argument), last};
}

std::array<Sides, 2> read_sides(py::handle given, int rank, const std::array<Windows, 2>& windows,
                                const Argument& argument) {
    if (py::isinstance<py::str>(given)) {
        const std::string name = py::str(given);
        if (name == "valid") return {};
        if (name == "same") return {same(windows[0]), same(windows[1])};
        if (name == "causal" && rank == 1)
            return {Sides{0, 0}, Sides{windows[1].dilation * (windows[1].kernel - 1), 0}};
        argument.value_error(std::string("expected 'same', 'valid'") + (rank == 1 ? ", 'causal'" : "") +
                             " or integers, got '" + name + "'");
    }
    if (is_nested(given)) {
        const py::sequence sides = py::reinterpret_borrow<py::sequence>(given);
        if (py::len(sides) != static_cast<std::size_t>(rank))
            argument.value_error("expected " + std::to_string(rank) + " pairs of sides, got " +
                                 std::to_string(py::len(sides)));
        const Pair last = read_pair(sides[static_cast<std::size_t>(rank - 1)], 2, 0, argument);
        const Pair first = rank == 1 ? Pair{0, 0} : read_pair(sides[0], 2, 0, argument);
        return {Sides{first[0], first[1]}, Sides{last[0], last[1]}};
    }
    const Pair both = read_pair(given, rank, 0, argument);
    return {Sides{both[0], both[0]}, Sides{both[1], both[1]}};
}

}  // namespace tbptt::python
