// The arguments and results of recurrent layers, read and made in one way for every place where arrays may lie. `Arrays`
// knows that place: `input<T>`, `optional_input<T>`, `mask` and `make<T>` are those of HostArrays.
#pragma once

#include "../api_recurrent.h"
#include "host_arrays.h"

namespace tbptt::python {

const char* family(Cell cell);
const char* forward_name(Cell cell);
const char* backward_name(Cell cell);
int64_t gates(Cell cell);

// An LSTM's state comes as the pair (h, c), every other one as h; None means zeros.
struct State {
    py::object h = py::none(), c = py::none();
};

State unpack_state(py::handle given, Cell cell, const Argument& argument);
py::object state_of(Cell cell, const py::object& h, const py::object& c);

RecurrentShape read_shape(Cell cell, Shape x, Shape w_hh, const char* op);
Truncation read_truncation(py::handle given, int64_t steps, const Argument& argument);
Cell read_cell(py::handle given, const Argument& argument);
// "tanh" or "relu".
Cell read_nonlinearity(py::handle given, const char* op);

// How many lags there are up to `max_lag`.
int64_t read_lags(py::handle max_lag, const Argument& argument);
// How many states a cell has, whose norm is one.
inline int64_t states_of(Cell cell) { return cell == Cell::lstm ? 2 : 1; }

// A tape of `cell`'s forward pass, or a ValueError that names both.
void check_tape_of(Cell tape, Cell cell, const Argument& argument);
std::string describe_tape(const RecurrentShape& shape, DType dtype, std::size_t nbytes);

// What a caller gives to a forward pass, unread. `Array`: x and w_hh have told the shape already.
template <class Array>
struct GivenLayer {
    const Array& x;
    State state;
    py::handle w_ih;
    const Array& w_hh;
    py::handle b_ih, b_hh, is_init;
};

template <class T>
struct LayerInputs {
    Input<T> x, w_ih, w_hh, b_ih, b_hh, h0, c0;
    Input<std::uint8_t> is_init;

    RecurrentLayer<T> layer(const RecurrentShape& shape) const {
        return {shape, x.data, h0.data, c0.data, w_ih.data, w_hh.data, b_ih.data, b_hh.data, is_init.data};
    }
};

template <class T, class Arrays, class Array>
LayerInputs<T> read_layer(const Arrays& arrays, const RecurrentShape& shape, const GivenLayer<Array>& given,
                          const char* op) {
    const auto [cell, steps, batch, inputs, hidden] = shape;
    const int64_t columns = gates(cell) * hidden;
    LayerInputs<T> in;
    in.x = arrays.template input<T>(given.x, {steps, batch, inputs}, {op, "x"});
    in.w_ih = arrays.template input<T>(given.w_ih, {columns, inputs}, {op, "w_ih"});
    in.w_hh = arrays.template input<T>(given.w_hh, {columns, hidden}, {op, "w_hh"});
    in.b_ih = arrays.template optional_input<T>(given.b_ih, {columns}, {op, "b_ih"});
    in.b_hh = arrays.template optional_input<T>(given.b_hh, {columns}, {op, "b_hh"});
    const bool pair = cell == Cell::lstm;
    in.h0 = arrays.template optional_input<T>(given.state.h, {batch, hidden}, {op, pair ? "hx[0]" : "hx"});
    in.c0 = arrays.template optional_input<T>(given.state.c, {batch, hidden}, {op, "hx[1]"});
    in.is_init = arrays.mask(given.is_init, {steps, batch}, {op, "is_init"});
    return in;
}

template <class T>
struct GradientInputs {
    Input<T> grad_out, grad_h, grad_c, carry_scale;
};

template <class T, class Arrays>
GradientInputs<T> read_gradients(const Arrays& arrays, const RecurrentShape& shape, py::handle grad_out,
                                 const State& grad_state, py::handle carry_scale, const char* op) {
    const auto [cell, steps, batch, inputs, hidden] = shape;
    const bool pair = cell == Cell::lstm;
    GradientInputs<T> in;
    in.grad_out = arrays.template optional_input<T>(grad_out, {steps, batch, hidden}, {op, "grad_out"});
    in.grad_h = arrays.template optional_input<T>(grad_state.h, {batch, hidden}, {op, pair ? "grad_hx[0]" : "grad_hx"});
    in.grad_c = arrays.template optional_input<T>(grad_state.c, {batch, hidden}, {op, "grad_hx[1]"});
    in.carry_scale = arrays.template optional_input<T>(carry_scale, {steps, batch}, {op, "carry_scale"});
    return in;
}

template <class T>
void set_windows(RecurrentBackward<T>& p, Truncation truncation) {
    p.overlapping = truncation.k1 < truncation.k2 && truncation.k1 < p.layer.shape.steps;
}

template <class T>
struct LayerGradients {
    Made<T> x, h0, c0, w_ih, w_hh, b_ih, b_hh;

    template <class Arrays>
    LayerGradients(const Arrays& arrays, const RecurrentShape& shape, bool has_b_ih, bool has_b_hh) {
        const auto [cell, steps, batch, inputs, hidden] = shape;
        const int64_t columns = gates(cell) * hidden;
        x = arrays.template make<T>({steps, batch, inputs});
        h0 = arrays.template make<T>({batch, hidden});
        if (cell == Cell::lstm) c0 = arrays.template make<T>({batch, hidden});
        w_ih = arrays.template make<T>({columns, inputs});
        w_hh = arrays.template make<T>({columns, hidden});
        if (has_b_ih) b_ih = arrays.template make<T>({columns});
        if (has_b_hh) b_hh = arrays.template make<T>({columns});
    }

    void set(RecurrentBackward<T>& p, const GradientInputs<T>& in, Truncation truncation) const {
        set_windows(p, truncation);
        p.grad_out = in.grad_out.data;
        p.grad_h_n = in.grad_h.data;
        p.grad_c_n = in.grad_c.data;
        p.carry_scale = in.carry_scale.data;
        p.grad_x = x.data;
        p.grad_h0 = h0.data;
        p.grad_c0 = c0.data;
        p.grad_w_ih = w_ih.data;
        p.grad_w_hh = w_hh.data;
        p.grad_b_ih = b_ih.data;
        p.grad_b_hh = b_hh.data;
    }

    py::tuple result(Cell cell) const {
        return py::make_tuple(x.array, state_of(cell, h0.array, c0.array), w_ih.array, w_hh.array, b_ih.array,
                              b_hh.array);
    }
};

// Without steps or rows there is nothing to walk: states pass through, and gradients of weights are zero.
// copy_or_zero(from, to, count) writes zeros where `from` is null.
template <class T, class CopyOrZero>
void pass_through(const RecurrentBackward<T>& p, const CopyOrZero& copy_or_zero) {
    const auto [cell, steps, batch, inputs, hidden] = p.layer.shape;
    const int64_t columns = gates(cell) * hidden;
    constexpr const T* zeros = nullptr;
    copy_or_zero(p.grad_h_n, p.grad_h0, batch * hidden);
    if (p.grad_c0) copy_or_zero(p.grad_c_n, p.grad_c0, batch * hidden);
    copy_or_zero(zeros, p.grad_w_ih, columns * inputs);
    copy_or_zero(zeros, p.grad_w_hh, columns * hidden);
    if (p.grad_b_ih) copy_or_zero(zeros, p.grad_b_ih, columns);
    if (p.grad_b_hh) copy_or_zero(zeros, p.grad_b_hh, columns);
}

}  // namespace tbptt::python
