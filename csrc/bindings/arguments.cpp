// The checks of arguments.h.
#include "arguments.h"

namespace tbptt::python {

Extents leading_extents(Shape shape, int64_t without, const Argument& argument) {
    if (shape.rank < without)
        argument.value_error("expected at least " + std::to_string(without) + " dimension" + (without > 1 ? "s" : "") +
                             ", got shape " + format_shape(shape));
    return Extents(shape.extents, shape.extents + shape.rank - without);
}

Extents leading_extents(const py::array& array, py::ssize_t without, const Argument& argument) {
    return leading_extents(shape_of(array), without, argument);
}

Extents extents_of(Shape shape) { return Extents(shape.extents, shape.extents + shape.rank); }

Extents extents_of(const py::array& array) { return extents_of(shape_of(array)); }

RowShape read_rows(Shape shape, const Argument& argument) {
    const Extents leading = leading_extents(shape, 1, argument);
    return {extents_of(shape), leading, element_count(leading), shape.extents[shape.rank - 1]};
}

Extents with_last(Extents leading, int64_t columns) {
    leading.push_back(columns);
    return leading;
}

int64_t element_count(const Extents& extents) {
    return element_count(Shape{extents.data(), static_cast<int64_t>(extents.size())});
}

void check_extents(const Extents& given, const Extents& expected, const Argument& argument) {
    if (given != expected)
        argument.value_error("expected shape " + format_shape(expected.data(), expected.size()) + ", got " +
                             format_shape(given.data(), given.size()));
}

py::array reshaped(const py::array& array, const Extents& extents) {
    if (static_cast<std::size_t>(array.ndim()) == extents.size()) return array;
    element_count(extents);  // which has a better word for what NumPy refuses
    return py::array(array).reshape(extents);
}

Ids read_ids(py::handle object, const Argument& argument) {
    py::array array = to_array(object, argument);
    const py::dtype dtype = array.dtype();
    const bool wide = dtype.itemsize() == sizeof(int64_t);
    if (dtype.kind() != 'i' || !(wide || dtype.itemsize() == sizeof(std::int32_t)) || dtype.byteorder() == '>')
        argument.type_error("expected dtype int32 or int64, got " + dtype_name(array));
    array = to_contiguous(std::move(array));
    Ids ids{extents_of(array), array.size(), {}, {}, nullptr};
    if (wide) {
        ids.data = static_cast<const int64_t*>(array.data());
    } else {
        ids.converted = Block(static_cast<std::size_t>(ids.count) * sizeof(int64_t));
        auto* to = static_cast<int64_t*>(ids.converted.get());
        const auto* from = static_cast<const std::int32_t*>(array.data());
        for (int64_t i = 0; i < ids.count; ++i) to[i] = from[i];
        ids.data = to;
    }
    ids.given = {std::move(array), ids.data};
    return ids;
}

void check_ids(const Ids& ids, int64_t end, const int64_t* ignored, const Argument& argument) {
    const int64_t also = ignored ? *ignored : -1;
    for (int64_t i = 0; i < ids.count; ++i) {
        const int64_t id = ids.data[i];
        if ((id >= 0 && id < end) || (ignored && id == also)) continue;
        argument.value_error("expected values in [0, " + std::to_string(end) + ")" +
                             (ignored ? " or " + std::to_string(also) : "") + ", got " + std::to_string(id));
    }
}

Activation read_activation(py::handle given, const char* op) {
    if (given.is_none()) return Activation::none;
    const Argument argument{op, "activation"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected None or a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (name == "relu") return Activation::relu;
    if (name == "tanh") return Activation::tanh;
    if (name == "sigmoid") return Activation::sigmoid;
    argument.value_error("expected None, 'relu', 'tanh' or 'sigmoid', got '" + name + "'");
}

bool read_channels_last(py::handle given, const char* op, const std::string& first, const std::string& last) {
    const Argument argument{op, "layout"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (name != first && name != last)
        argument.value_error("expected '" + first + "' or '" + last + "', got '" + name + "'");
    return name == last;
}

Needs read_needs(py::handle given, const char* op) {
    const Argument argument{op, "needs"};
    Needs needs;
    if (!py::isinstance<py::iterable>(given))
        argument.type_error("expected some of 'x', 'w', 'b', got " + type_name(given));
    for (const py::handle item : given) {
        const std::string name = py::str(item);
        if (name == "x")
            needs.x = true;
        else if (name == "w")
            needs.w = true;
        else if (name == "b")
            needs.b = true;
        else
            argument.value_error("expected 'x', 'w' or 'b', got '" + name + "'");
    }
    return needs;
}

int64_t read_integer(py::handle object, int64_t least, const Argument& argument) {
    const py::object number = to_index(object);
    if (!number) argument.type_error("expected an integer, got " + type_name(object));
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow > 0) argument.value_error("expected an integer below 2**63, got " + std::string(py::str(number)));
    if (overflow < 0 || value < least)
        argument.value_error("expected an integer >= " + std::to_string(least) + ", got " +
                             std::string(py::str(number)));
    return value;
}

double read_number(py::handle object, const Interval& interval, const Argument& argument) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        argument.type_error(std::string("expected ") + interval.description + ", got " + type_name(object));
    }
    const bool above = interval.least_included ? value >= interval.least : value > interval.least;
    if (!(above && value < interval.end))
        argument.value_error(std::string("expected ") + interval.description + ", got " + std::string(py::str(object)));
    return value;
}

}  // namespace tbptt::python
