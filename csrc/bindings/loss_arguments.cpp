// The checks of loss_arguments.h.
#include "loss_arguments.h"

namespace tbptt::python {

Reduction read_reduction(py::handle given, const char* op) {
    const Argument argument{op, "reduction"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    if (name == "none") return Reduction::none;
    argument.value_error("expected 'mean', 'sum' or 'none', got '" + name + "'");
}

RowShape read_classes(Shape logits, const char* op) {
    const Argument argument{op, "logits"};
    RowShape shape = read_rows(logits, argument);
    if (shape.columns < 1) argument.value_error("expected at least 1 class, got shape " + format_shape(logits));
    return shape;
}

int64_t read_ignore_index(py::handle given, const char* op) {
    return read_integer(given, std::numeric_limits<int64_t>::min(), {op, "ignore_index"});
}

Pointwise read_huber(py::handle delta) {
    const char* op = "huber_loss";
    return {op, Loss::huber, read_number(delta, positive, {op, "delta"})};
}

}  // namespace tbptt::python
