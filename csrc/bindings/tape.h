// The tape of a recurrent forward pass: what it kept, and the arguments that the backward pass reads again.
#pragma once

#include "../api.h"
#include "check.h"

namespace tbptt::python {

struct Tape {
    RecurrentShape shape;
    DType dtype;
    // Borrowed: the caller's own arrays (or contiguous copies), not to be changed before the backward pass.
    py::object x, h0, c0, w_ih, w_hh, is_init;
    bool has_b_ih, has_b_hh;
    py::object memory;  // an array: h, and behind it what else a RecurrentTape holds
    std::size_t nbytes;
};

const char* family(Cell cell);

}  // namespace tbptt::python
