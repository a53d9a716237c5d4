// Recurrent layers on images for XLA. A call's options are `cell`, `shape`, the numbers of a ConvRecurrentShape behind its
// cell, `recompute`, `peephole_maps` and, backward, `truncation`.
#pragma once

#include <array>

#include "../convrecurrent_arguments.h"
#include "recurrent.h"

namespace tbptt::jax {

constexpr std::size_t convrecurrent_numbers = 14;

// In the order of the struct; Python gets them when it traces a call, and XLA gives them back.
inline std::array<int64_t, convrecurrent_numbers> numbers_of(const ConvRecurrentShape& s) {
    return {s.steps,
            s.batch,
            s.inputs,
            s.hidden,
            s.height,
            s.width,
            s.kernel_ih_height,
            s.kernel_ih_width,
            s.kernel_hh_height,
            s.kernel_hh_width,
            s.dilation_y,
            s.dilation_x,
            s.channels_last,
            static_cast<int64_t>(s.algorithm)};
}

inline ConvRecurrentShape read_convrecurrent(const Call& call) {
    const auto n = call.integers<convrecurrent_numbers>("shape");
    for (const int64_t number : n)
        if (number < 0 || number >= int64_t{1} << 31) Call::refuse("expected sizes below 2^31");
    for (std::size_t i = 2; i < 12; ++i)
        if (n[i] < 1) Call::refuse("expected channels, pixels, kernels and dilations >= 1");
    for (std::size_t i = 6; i < 10; ++i)
        if (n[i] % 2 == 0) Call::refuse("expected kernels of odd height and width");
    const auto algorithm = static_cast<Algorithm>(n[13]);
    if (algorithm != Algorithm::automatic && algorithm != Algorithm::direct)
        Call::refuse("expected an algorithm for every shape");
    return {read_cell(call), n[0],  n[1],       n[2],     n[3], n[4], n[5], n[6], n[7], n[8], n[9],
            n[10],           n[11], n[12] != 0, algorithm};
}

struct ConvRecurrentSizes {
    int64_t x, out, state, w_ih, w_hh, bias, peephole, mask, maps, beside;

    ConvRecurrentSizes(const ConvRecurrentShape& s, bool peephole_maps, bool recompute) {
        const int64_t pixels = Call::count({s.height, s.width}), columns = python::gates(s.cell) * s.hidden;
        const python::KeptValues kept = python::kept_values(s.cell, !recompute);
        mask = Call::count({s.steps, s.batch});
        x = Call::count({mask, s.inputs, pixels});
        state = Call::count({s.batch, s.hidden, pixels});
        out = Call::count({s.steps, state});
        w_ih = Call::count({columns, s.inputs, s.kernel_ih_height, s.kernel_ih_width});
        w_hh = Call::count({columns, s.hidden, s.kernel_hh_height, s.kernel_hh_width});
        bias = columns;
        peephole = Call::count({3, s.hidden, peephole_maps ? pixels : 1});
        maps = Call::count({kept.maps, out});
        beside = Call::count({kept.beside, out});
    }
};

// The layer's arrays behind its x, as both directions take them.
template <class T>
void read_convrecurrent_layer(Call& call, const ConvRecurrentSizes& n, ConvRecurrentLayer<T>& layer) {
    const bool pair = layer.shape.cell == Cell::lstm;
    layer.x = call.input<T>(n.x);
    layer.h0 = call.optional_input<T>(n.state);
    if (pair) layer.c0 = call.optional_input<T>(n.state);
    layer.w_ih = call.input<T>(n.w_ih);
    layer.w_hh = call.input<T>(n.w_hh);
    layer.b_ih = call.optional_input<T>(n.bias);
    layer.b_hh = call.optional_input<T>(n.bias);
    if (pair) layer.peephole = call.optional_input<T>(n.peephole);
    layer.is_init = call.optional_input<std::uint8_t>(n.mask);
}

template <class T>
ConvRecurrentTape<T> parts_of(T* memory, const ConvRecurrentSizes& n) {
    if (!memory) return {};
    return {n.maps ? memory : nullptr, n.beside ? memory + n.maps : nullptr};
}

// (x, h, [c,] w_ih, w_hh, b_ih, b_hh, [peephole,] is_init) -> (out, h_n, [c_n,] saved).
template <class Where>
struct ConvRecurrentForwardOp {
    template <class T>
    static void run(Call& call, T) {
        ConvRecurrentForward<T> p{};
        ConvRecurrentShape& shape = p.layer.shape;
        shape = read_convrecurrent(call);
        p.layer.peephole_maps = call.option<bool>("peephole_maps");
        const ConvRecurrentSizes n(shape, p.layer.peephole_maps, call.option<bool>("recompute"));
        const bool pair = shape.cell == Cell::lstm;
        read_convrecurrent_layer(call, n, p.layer);
        p.out = call.output<T>(n.out);
        T* const h_n = call.output<T>(n.state);
        if (pair) p.c_n = call.output<T>(n.state);
        p.tape = parts_of(call.optional_output<T>(n.maps + n.beside), n);
        call.no_more();
        Where::convrecurrent_forward(call, p, h_n, n.state);
    }
};

// (grad_out, grad_h, [grad_c,] out, saved, x, h, [c,] w_ih, w_hh, b_ih, b_hh, [peephole,] is_init, carry_scale)
// -> (x, h, [c,] w_ih, w_hh, b_ih, b_hh[, peephole]).
template <class Where>
struct ConvRecurrentBackwardOp {
    template <class T>
    static void run(Call& call, T) {
        ConvRecurrentBackward<T> p{};
        ConvRecurrentShape& shape = p.layer.shape;
        shape = read_convrecurrent(call);
        p.layer.peephole_maps = call.option<bool>("peephole_maps");
        const ConvRecurrentSizes n(shape, p.layer.peephole_maps, call.option<bool>("recompute"));
        const bool pair = shape.cell == Cell::lstm;
        p.grad_out = call.optional_input<T>(n.out);
        p.grad_h_n = call.optional_input<T>(n.state);
        if (pair) p.grad_c_n = call.optional_input<T>(n.state);
        p.out = call.input<T>(n.out);
        p.tape = parts_of(const_cast<T*>(call.input<T>(n.maps + n.beside)), n);  // read alone
        read_convrecurrent_layer(call, n, p.layer);
        p.carry_scale = call.optional_input<T>(n.mask);
        p.grad_x = call.output<T>(n.x);
        p.grad_h0 = call.output<T>(n.state);
        if (pair) p.grad_c0 = call.output<T>(n.state);
        p.grad_w_ih = call.output<T>(n.w_ih);
        p.grad_w_hh = call.output<T>(n.w_hh);
        p.grad_b_ih = call.optional_output<T>(n.bias);
        p.grad_b_hh = call.optional_output<T>(n.bias);
        if (pair) p.grad_peephole = call.optional_output<T>(n.peephole);
        call.no_more();
        const Truncation truncation = read_truncation(call);
        python::set_windows(p, truncation);
        Where::convrecurrent_backward(call, p, truncation);
    }
};

}  // namespace tbptt::jax
