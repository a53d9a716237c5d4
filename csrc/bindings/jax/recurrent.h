// rnn, gru and lstm for XLA. A call's options are `cell`, `shape` (T, B, I, H) and, backward, `truncation` (k1, k2). `Where`
// says where arrays lie and runs the kernels there: Host (host.h) or Device (../cuda/jax.cpp).
#pragma once

#include "../tape.h"
#include "call.h"

namespace tbptt::jax {

inline Cell read_cell(const Call& call) {
    const auto name = call.option<std::string_view>("cell");
    for (const auto& [known, cell] : {std::pair{"rnn_tanh", Cell::rnn_tanh}, std::pair{"rnn_relu", Cell::rnn_relu},
                                      std::pair{"gru", Cell::gru}, std::pair{"lstm", Cell::lstm}})
        if (name == known) return cell;
    Call::refuse("expected a cell, got '" + std::string(name) + "'");
}

inline Truncation read_truncation(const Call& call) {
    const auto windows = call.integers<2>("truncation");
    if (windows[0] < 1 || windows[1] < windows[0]) Call::refuse("expected a truncation with 1 <= k1 <= k2");
    return {windows[0], windows[1]};
}

// How many elements the arrays of a layer have.
struct RecurrentSizes {
    int64_t x, out, state, w_ih, w_hh, bias, mask, saved;

    explicit RecurrentSizes(const RecurrentShape& s)
        : x(Call::count({s.steps, s.batch, s.inputs})),
          out(Call::count({s.steps, s.batch, s.hidden})),
          state(Call::count({s.batch, s.hidden})),
          w_ih(Call::count({python::gates(s.cell), s.hidden, s.inputs})),
          w_hh(Call::count({python::gates(s.cell), s.hidden, s.hidden})),
          bias(Call::count({python::gates(s.cell), s.hidden})),
          mask(Call::count({s.steps, s.batch})),
          saved(Call::count({out, python::saved_values(s.cell)})) {}
};

inline RecurrentShape read_shape(const Call& call) {
    const auto sizes = call.integers<4>("shape");
    for (const int64_t size : sizes)
        if (size < 0 || size >= int64_t{1} << 31) Call::refuse("expected sizes below 2^31");
    if (sizes[3] == 0) Call::refuse("expected at least one unit");
    return {read_cell(call), sizes[0], sizes[1], sizes[2], sizes[3]};
}

// (x, h, [c,] w_ih, w_hh, b_ih, b_hh, is_init) -> (out, h_n, [c_n,] saved): all but x and the weights may be missing.
template <class Where>
struct RecurrentForwardOp {
    template <class T>
    static void run(Call& call, T) {
        const RecurrentShape shape = read_shape(call);
        const RecurrentSizes n(shape);
        const bool pair = shape.cell == Cell::lstm;
        RecurrentForward<T> p{};
        p.layer.shape = shape;
        p.layer.x = call.input<T>(n.x);
        p.layer.h0 = call.optional_input<T>(n.state);
        if (pair) p.layer.c0 = call.optional_input<T>(n.state);
        p.layer.w_ih = call.input<T>(n.w_ih);
        p.layer.w_hh = call.input<T>(n.w_hh);
        p.layer.b_ih = call.optional_input<T>(n.bias);
        p.layer.b_hh = call.optional_input<T>(n.bias);
        p.layer.is_init = call.optional_input<std::uint8_t>(n.mask);
        p.out = call.output<T>(n.out);
        T* const h_n = call.output<T>(n.state);
        if (pair) p.c_n = call.output<T>(n.state);
        // What a plain cell keeps is its output, which nobody changes here: `keep` tells it from inference.
        p.tape.saved = call.optional_output<T>(n.saved);
        if (call.option<bool>("keep")) p.tape.h = p.out;
        if (n.saved > 0 && (p.tape.h != nullptr) != (p.tape.saved != nullptr)) Call::refuse("expected a tape to keep");
        call.no_more();
        Where::recurrent_forward(call, p, h_n);
    }
};

// (grad_out, grad_h, [grad_c,] out, saved, x, h, [c,] w_ih, w_hh, is_init, carry_scale)
// -> (x, h, [c,] w_ih, w_hh, b_ih, b_hh): gradients and states may be missing, and so may the results by biases.
template <class Where>
struct RecurrentBackwardOp {
    template <class T>
    static void run(Call& call, T) {
        const RecurrentShape shape = read_shape(call);
        const RecurrentSizes n(shape);
        const bool pair = shape.cell == Cell::lstm;
        RecurrentBackward<T> p{};
        p.layer.shape = shape;
        p.grad_out = call.optional_input<T>(n.out);
        p.grad_h_n = call.optional_input<T>(n.state);
        if (pair) p.grad_c_n = call.optional_input<T>(n.state);
        p.tape.h = const_cast<T*>(call.input<T>(n.out));  // read alone
        p.tape.saved = const_cast<T*>(call.input<T>(n.saved));
        p.layer.x = call.input<T>(n.x);
        p.layer.h0 = call.optional_input<T>(n.state);
        if (pair) p.layer.c0 = call.optional_input<T>(n.state);
        p.layer.w_ih = call.input<T>(n.w_ih);
        p.layer.w_hh = call.input<T>(n.w_hh);
        p.layer.is_init = call.optional_input<std::uint8_t>(n.mask);
        p.carry_scale = call.optional_input<T>(n.mask);
        p.grad_x = call.output<T>(n.x);
        p.grad_h0 = call.output<T>(n.state);
        if (pair) p.grad_c0 = call.output<T>(n.state);
        p.grad_w_ih = call.output<T>(n.w_ih);
        p.grad_w_hh = call.output<T>(n.w_hh);
        p.grad_b_ih = call.optional_output<T>(n.bias);
        p.grad_b_hh = call.optional_output<T>(n.bias);
        call.no_more();
        const Truncation truncation = read_truncation(call);
        python::set_windows(p, truncation);
        Where::recurrent_backward(call, p, truncation);
    }
};

}  // namespace tbptt::jax
