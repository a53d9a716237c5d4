// Windows that slide over one or two dimensions: how their sizes, steps and padding are given.
#pragma once

#include <array>

#include "arguments.h"

namespace tbptt::python {

using Pair = std::array<int64_t, 2>;  // vertical and horizontal, or the two sides of one direction

std::string format_pair(const Pair& pair);

// One integer for both directions, or one for each; with one dimension, one integer.
Pair read_pair(py::handle given, int rank, int64_t least, const Argument& argument);

struct Sides {
    int64_t before, behind;
};

// One direction of the windows.
struct Windows {
    int64_t size, kernel, stride, dilation;
};

// Padding, vertical and horizontal: integers, pairs of sides, "valid" (none), "same" (as many windows as values or, with a
// stride, as many as it reaches; an odd one goes behind) or, with one dimension, "causal" (before only).
std::array<Sides, 2> read_sides(py::handle given, int rank, const std::array<Windows, 2>& windows,
                                const Argument& argument);

}  // namespace tbptt::python
