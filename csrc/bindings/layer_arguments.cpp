// The checks of layer_arguments.h.
#include "layer_arguments.h"

namespace tbptt::python {

LinearShape read_linear(Shape x, Shape w, const char* op) {
    check_rank(w, 2, {op, "w"});
    const RowShape rows = read_rows(x, {op, "x"});
    const int64_t inputs = w.extents[1], outputs = w.extents[0];
    if (rows.columns != inputs)
        Argument{op, "x"}.value_error("expected last dimension " + std::to_string(inputs) + ", got shape " +
                                      format_shape(x));
    return {rows.extents, with_last(rows.leading, outputs), rows.rows, inputs, outputs};
}

Activation read_function(py::handle given, const char* op) {
    const Activation function = read_activation(given, op);
    if (function == Activation::none) Argument{op, "activation"}.type_error("expected a string, got NoneType");
    return function;
}

}  // namespace tbptt::python
