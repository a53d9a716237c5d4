// The tape of a recurrent forward pass: what it kept, and the arguments that the backward pass reads again. And what the
// bindings of recurrent layers share.
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
int64_t gates(Cell cell);

// An LSTM's state comes as the pair (h, c), every other one as h; None means zeros.
struct State {
    py::object h = py::none(), c = py::none();
};

State unpack_state(py::handle given, Cell cell, const Argument& argument);
py::object state_of(Cell cell, const py::object& h, const py::object& c);

Truncation read_truncation(py::handle given, int64_t steps, const Argument& argument);
Cell read_cell(py::handle given, const Argument& argument);
// "tanh" or "relu".
Cell read_nonlinearity(py::handle given, const char* op);

template <class T>
void copy_or_zero(const T* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from ? from[i] : T(0);
}

template <class T>
const T* data_of(const py::object& holder) {
    return holder && !holder.is_none() ? static_cast<const T*>(py::reinterpret_borrow<py::array>(holder).data())
                                       : nullptr;
}

}  // namespace tbptt::python
