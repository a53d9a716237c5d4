// What a loss is made of, read in one way for every place where arrays may lie.
#pragma once

#include "arguments.h"

namespace tbptt::python {

enum class Reduction { mean, sum, none };

Reduction read_reduction(py::handle given, const char* op);

// The shape of logits [..., C]; there is a target, and a weight, for each row.
RowShape read_classes(Shape logits, const char* op);
int64_t read_ignore_index(py::handle given, const char* op);

// A loss that looks at every value by itself.
struct Pointwise {
    const char* op;
    Loss kind;
    double delta;
};

Pointwise read_huber(py::handle delta);

// Those without options.
constexpr Pointwise plain_losses[] = {
    {"mse_loss", Loss::squared, 0}, {"l1_loss", Loss::absolute, 0}, {"hinge_loss", Loss::hinge, 0}};

}  // namespace tbptt::python
