// The checks of normalization_arguments.h.
#include "normalization_arguments.h"

namespace tbptt::python {

ChannelShape read_channels(Shape x, py::handle layout, const char* op) {
    const bool last = read_channels_last(layout, op);
    const Extent* const extents = x.extents;
    if (x.rank != 2 && x.rank != 4)
        Argument{op, "x"}.value_error("expected 2 or 4 dimensions, got shape " + format_shape(x));
    if (x.rank == 2) return {extents[0], extents[1], 1};
    if (last) return {extents[0] * extents[1] * extents[2], extents[3], 1};
    return {extents[0], extents[1], extents[2] * extents[3]};
}

BatchNormOptions read_batch_norm(py::handle training, py::handle momentum, py::handle eps, const char* op) {
    constexpr Interval share{"a number in [0, 1]", 0, true, 1 + std::numeric_limits<double>::epsilon()};
    return {read_bool(training, {op, "training"}), read_number(momentum, share, {op, "momentum"}), read_eps(eps, op)};
}

void check_statistics(bool training, Shape x, const ChannelShape& shape, py::handle mean, py::handle var,
                      const char* op) {
    if (!training && mean.is_none())
        Argument{op, "running_mean"}.type_error("expected an array, which normalizes unless training, got None");
    if (mean.is_none() != var.is_none())
        Argument{op, mean.is_none() ? "running_mean" : "running_var"}.type_error(
            "expected both running values or neither, got None");
    if (training && shape.outer * shape.inner < 2)
        Argument{op, "x"}.value_error("expected at least 2 values per channel when training, got shape " +
                                      format_shape(x));
}

RowShape read_normalized_rows(Shape x, const char* op) {
    const Argument argument{op, "x"};
    const RowShape shape = read_rows(x, argument);
    if (shape.columns < 1) argument.value_error("expected at least 1 value in a row, got shape " + format_shape(x));
    return shape;
}

double read_eps(py::handle eps, const char* op) { return read_number(eps, not_negative, {op, "eps"}); }

DropoutOptions read_dropout(py::handle p, py::handle key, const char* op) {
    return {read_number(p, fraction, {op, "p"}), static_cast<std::uint64_t>(read_integer(key, 0, {op, "key"}))};
}

}  // namespace tbptt::python
