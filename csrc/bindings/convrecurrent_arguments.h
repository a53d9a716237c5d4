// The arguments and results of recurrent layers on images, read and made in one way for every place where arrays may lie; see
// recurrent_arguments.h.
#pragma once

#include <algorithm>
#include <utility>

#include "recurrent_arguments.h"

namespace tbptt::python {

const char* conv_forward_name(Cell cell);
const char* conv_backward_name(Cell cell);

// The public shapes of a layer's arrays.
class ConvExtents {
   public:
    explicit ConvExtents(const ConvRecurrentShape& s) : s_(s) {}

    int64_t columns() const { return gates(s_.cell) * s_.hidden; }
    Extents images(int64_t channels, Extents leading) const;
    Extents x() const { return images(s_.inputs, {s_.steps, s_.batch}); }
    Extents out() const { return images(s_.hidden, {s_.steps, s_.batch}); }
    Extents state() const { return images(s_.hidden, {s_.batch}); }
    Extents peephole(bool maps) const { return maps ? images(s_.hidden, {3}) : Extents{3, s_.hidden}; }
    Extents w_ih() const { return {columns(), s_.inputs, s_.kernel_ih_height, s_.kernel_ih_width}; }
    Extents w_hh() const { return {columns(), s_.hidden, s_.kernel_hh_height, s_.kernel_hh_width}; }

   private:
    const ConvRecurrentShape& s_;
};

struct ConvRecurrentOptions {
    py::handle dilation, layout, algo;
};

ConvRecurrentShape read_conv_shape(Cell cell, Shape x, Shape w_ih, Shape w_hh, const ConvRecurrentOptions& options,
                                   const char* op);

// What a tape holds beside the output, for each of its values: gates, and what lies beside them. Without the gates only c, which
// no other value gives back in parallel.
struct KeptValues {
    int64_t maps, beside;
};
KeptValues kept_values(Cell cell, bool gates_kept);

// What the forward pass kept, and the arguments that the backward pass reads again: borrowed, not to be changed before it.
struct ConvTape {
    ConvRecurrentShape shape{};
    DType dtype{};
    Borrowed x, h0, c0, w_ih, w_hh, b_ih, b_hh, peephole, is_init, out;
    bool peephole_maps = false;
    bool recompute = false;          // the gates are not kept
    py::object memory = py::none();  // an array: a ConvRecurrentTape
    void* kept = nullptr;            // its data
    KeptValues values{};
    std::size_t nbytes = 0;

    int64_t size() const;  // of the memory
    template <class T>
    ConvRecurrentLayer<T> layer() const {
        return {shape,
                x.as<T>(),
                h0.as<T>(),
                c0.as<T>(),
                w_ih.as<T>(),
                w_hh.as<T>(),
                b_ih.as<T>(),
                b_hh.as<T>(),
                peephole.as<T>(),
                peephole_maps,
                is_init.as<std::uint8_t>()};
    }
    template <class T>
    ConvRecurrentTape<T> parts() const {
        T* data = static_cast<T*>(kept);
        const int64_t values_each = values.maps + values.beside ? size() / (values.maps + values.beside) : 0;
        return {values.maps ? data : nullptr, values.beside ? data + values.maps * values_each : nullptr};
    }
};

std::string describe_tape(const ConvTape& tape);

// What a caller gives to a forward pass, unread; the shape has been read.
template <class Array>
struct GivenConvLayer {
    const Array &x, &w_ih, &w_hh;
    State state;
    py::handle b_ih, b_hh, peephole, is_init;
};

// A tape with its arrays but the output and the memory.
template <class T, class Arrays, class Array>
ConvTape read_conv_layer(const Arrays& arrays, const ConvRecurrentShape& s, const GivenConvLayer<Array>& given,
                         bool recompute, const char* op) {
    const bool pair = s.cell == Cell::lstm;
    const ConvExtents extents(s);
    const auto read = [&](const auto& array, const Extents& expected, const char* name) {
        return borrowed(arrays.template input<T>(array, expected, {op, name}));
    };
    const auto optional = [&](py::handle array, const Extents& expected, const char* name) {
        return array.is_none() ? Borrowed{} : read(array, expected, name);
    };
    ConvTape tape;
    tape.shape = s;
    tape.dtype = dtype_of<T>;
    tape.recompute = recompute;
    tape.x = read(given.x, extents.x(), "x");
    tape.w_ih = read(given.w_ih, extents.w_ih(), "w_ih");
    tape.w_hh = read(given.w_hh, extents.w_hh(), "w_hh");
    tape.h0 = optional(given.state.h, extents.state(), pair ? "hx[0]" : "hx");
    tape.c0 = optional(given.state.c, extents.state(), "hx[1]");
    tape.b_ih = optional(given.b_ih, {extents.columns()}, "b_ih");
    tape.b_hh = optional(given.b_hh, {extents.columns()}, "b_hh");
    tape.is_init = borrowed(arrays.mask(given.is_init, {s.steps, s.batch}, {op, "is_init"}));
    if (!given.peephole.is_none()) {
        const auto array = arrays.read(given.peephole, {op, "peephole"});
        tape.peephole_maps = shape_of(array).rank != 2;
        tape.peephole = read(array, extents.peephole(tape.peephole_maps), "peephole");
    }
    return tape;
}

// Returns (out, state, tape). run(ConvRecurrentForward<T>) is the kernel, copy_or_zero(from, to, count) writes zeros where `from`
// is null, and as_object(tape) wraps a tape, where one is asked for.
template <class T, class Arrays, class Run, class CopyOrZero, class AsObject>
py::tuple run_conv_forward(const Arrays& arrays, ConvTape tape, bool training, const Run& run,
                           const CopyOrZero& copy_or_zero, const AsObject& as_object) {
    const ConvRecurrentShape s = tape.shape;
    const bool pair = s.cell == Cell::lstm;
    const ConvExtents extents(s);
    const int64_t last = element_count(extents.state());
    const Made<T> out = arrays.template make<T>(extents.out()), h_n = arrays.template make<T>(extents.state());
    const Made<T> c_n = pair ? arrays.template make<T>(extents.state()) : Made<T>{};
    ConvRecurrentForward<T> p{};
    p.layer = tape.layer<T>();
    p.out = out.data;
    p.c_n = c_n.data;
    py::object tape_object = py::none();
    if (training) {
        const Made<T> memory = arrays.template make<T>({tape.size()});
        tape.out = {out.array, out.data};
        tape.memory = memory.array;
        tape.kept = memory.data;
        tape.nbytes = static_cast<std::size_t>(tape.size()) * sizeof(T);
        p.tape = tape.parts<T>();
        tape_object = as_object(std::move(tape));
    }
    {
        const Unlocked unlocked;
        if (s.steps == 0 || s.batch == 0) {
            copy_or_zero(p.layer.h0, h_n.data, last);
            if (pair) copy_or_zero(p.layer.c0, c_n.data, last);
        } else {
            run(p);
            copy_or_zero(static_cast<const T*>(p.out + (s.steps - 1) * last), h_n.data, last);
        }
    }
    return py::make_tuple(out.array, state_of(s.cell, h_n.array, c_n.array), tape_object);
}

// The arguments of a backward pass beside the tape; arrays are unread.
struct GivenConvGradients {
    py::handle grad_out;
    State state;
    Truncation truncation;
    py::handle carry_scale;
};

// The tape is one of `cell`'s forward pass, or a ValueError names both.
GivenConvGradients read_given_gradients(const ConvTape& tape, Cell cell, py::handle grad_out, py::handle grad_hx,
                                        py::handle truncation, py::handle carry_scale);

template <class T>
void set_windows(ConvRecurrentBackward<T>& p, Truncation truncation) {
    const int64_t steps = p.layer.shape.steps;
    p.window = std::min(truncation.k1, std::max<int64_t>(steps, 1));
    p.overlapping = truncation.k1 < truncation.k2 && truncation.k1 < steps;
}

// Without steps or rows: states pass through, and gradients of weights are zero.
template <class T, class CopyOrZero>
void pass_conv_through(const ConvRecurrentBackward<T>& p, const CopyOrZero& copy_or_zero) {
    const ConvExtents extents(p.layer.shape);
    constexpr const T* zeros = nullptr;
    copy_or_zero(p.grad_h_n, p.grad_h0, element_count(extents.state()));
    if (p.grad_c0) copy_or_zero(p.grad_c_n, p.grad_c0, element_count(extents.state()));
    copy_or_zero(zeros, p.grad_w_ih, element_count(extents.w_ih()));
    copy_or_zero(zeros, p.grad_w_hh, element_count(extents.w_hh()));
    if (p.grad_b_ih) copy_or_zero(zeros, p.grad_b_ih, extents.columns());
    if (p.grad_b_hh) copy_or_zero(zeros, p.grad_b_hh, extents.columns());
    if (p.grad_peephole) copy_or_zero(zeros, p.grad_peephole, element_count(extents.peephole(p.layer.peephole_maps)));
}

// Returns the gradients by x, the state, w_ih, w_hh, b_ih, b_hh and the peepholes. See run_conv_forward.
template <class T, class Arrays, class Run, class CopyOrZero>
py::tuple run_conv_backward(const Arrays& arrays, const ConvTape& tape, const GivenConvGradients& given, const Run& run,
                            const CopyOrZero& copy_or_zero) {
    const ConvRecurrentShape& s = tape.shape;
    const char* op = conv_backward_name(s.cell);
    const bool pair = s.cell == Cell::lstm;
    const ConvExtents extents(s);
    const auto optional = [&](py::handle array, const Extents& expected, const char* name) {
        return array.is_none() ? Input<T>{} : arrays.template input<T>(array, expected, {op, name});
    };
    const auto make = [&](bool wanted, const Extents& shape) {
        return wanted ? arrays.template make<T>(shape) : Made<T>{};
    };
    const Input<T> grad_out = optional(given.grad_out, extents.out(), "grad_out");
    const Input<T> grad_h = optional(given.state.h, extents.state(), pair ? "grad_hx[0]" : "grad_hx");
    const Input<T> grad_c = optional(given.state.c, extents.state(), "grad_hx[1]");
    const Input<T> carry_scale = optional(given.carry_scale, {s.steps, s.batch}, "carry_scale");
    const Extents peephole = extents.peephole(tape.peephole_maps);
    const Made<T> x = make(true, extents.x()), h0 = make(true, extents.state()), c0 = make(pair, extents.state()),
                  w_ih = make(true, extents.w_ih()), w_hh = make(true, extents.w_hh()),
                  b_ih = make(tape.b_ih.data, {extents.columns()}), b_hh = make(tape.b_hh.data, {extents.columns()}),
                  by_peephole = make(tape.peephole.data, peephole);

    ConvRecurrentBackward<T> p{};
    p.layer = tape.layer<T>();
    p.out = tape.out.as<T>();
    p.tape = tape.parts<T>();
    set_windows(p, given.truncation);
    p.grad_out = grad_out.data;
    p.grad_h_n = grad_h.data;
    p.grad_c_n = grad_c.data;
    p.carry_scale = carry_scale.data;
    p.grad_x = x.data;
    p.grad_h0 = h0.data;
    p.grad_c0 = c0.data;
    p.grad_w_ih = w_ih.data;
    p.grad_w_hh = w_hh.data;
    p.grad_b_ih = b_ih.data;
    p.grad_b_hh = b_hh.data;
    p.grad_peephole = by_peephole.data;
    {
        const Unlocked unlocked;
        s.steps == 0 || s.batch == 0 ? pass_conv_through(p, copy_or_zero) : run(p);
    }
    return py::make_tuple(x.array, state_of(s.cell, h0.array, c0.array), w_ih.array, w_hh.array, b_ih.array, b_hh.array,
                          by_peephole.array);
}

// The tape of an earlier forward pass from its arguments, its output and `memory`, which may have been moved meanwhile.
template <class T, class Arrays>
void restore_conv_tape(const Arrays& arrays, ConvTape& tape, py::handle out, py::handle memory_given) {
    const char* op = "restore_conv_tape";
    tape.out = borrowed(arrays.template input<T>(out, ConvExtents(tape.shape).out(), {op, "out"}));
    const Input<T> memory = arrays.template input<T>(memory_given, {tape.size()}, {op, "memory"});
    tape.memory = memory.holder;
    tape.kept = const_cast<T*>(memory.data);
    tape.nbytes = static_cast<std::size_t>(tape.size()) * sizeof(T);
}

}  // namespace tbptt::python
