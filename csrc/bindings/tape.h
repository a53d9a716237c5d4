// The tape of a recurrent forward pass: what it kept, and the arguments that the backward pass reads again. And what the
// bindings of recurrent layers on the CPU share.
#pragma once

#include "../api.h"
#include "recurrent_arguments.h"

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

// What a tape holds for each step, row and unit beside h.
inline int64_t saved_values(Cell cell) { return cell == Cell::lstm ? 5 : cell == Cell::gru ? 4 : 0; }

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
