// The recurrent layers on images: convolutional rnn, gru and lstm, forward and backward.
#include <algorithm>
#include <string>

#include "../dispatch.h"
#include "arguments.h"
#include "tape.h"
#include "windows.h"

namespace tbptt::python {

namespace {

// What the forward pass kept, and the arguments that the backward pass reads again.
struct ConvTape {
    ConvRecurrentShape shape;
    DType dtype;
    // Borrowed: the caller's own arrays (or contiguous copies), not to be changed before the backward pass.
    py::object x, h0, c0, w_ih, w_hh, b_ih, b_hh, peephole, is_init, out;
    bool peephole_maps;
    bool recompute;     // the gates are not kept
    py::object memory;  // an array: a ConvRecurrentTape
    std::size_t nbytes;
};

const char* forward_name(Cell cell) {
    return cell == Cell::lstm ? "convlstm_forward" : cell == Cell::gru ? "convgru_forward" : "convrnn_forward";
}
const char* backward_name(Cell cell) {
    return cell == Cell::lstm ? "convlstm_backward" : cell == Cell::gru ? "convgru_backward" : "convrnn_backward";
}

// The public shapes of a layer's arrays.
class Shapes {
   public:
    explicit Shapes(const ConvRecurrentShape& s) : s_(s) {}

    int64_t columns() const { return gates(s_.cell) * s_.hidden; }
    Extents images(int64_t channels, Extents leading) const {
        if (!s_.channels_last) leading.push_back(channels);
        leading.push_back(s_.height);
        leading.push_back(s_.width);
        if (s_.channels_last) leading.push_back(channels);
        return leading;
    }
    Extents x() const { return images(s_.inputs, {s_.steps, s_.batch}); }
    Extents out() const { return images(s_.hidden, {s_.steps, s_.batch}); }
    Extents state() const { return images(s_.hidden, {s_.batch}); }
    Extents w_ih() const { return {columns(), s_.inputs, s_.kernel_ih_height, s_.kernel_ih_width}; }
    Extents w_hh() const { return {columns(), s_.hidden, s_.kernel_hh_height, s_.kernel_hh_width}; }

   private:
    const ConvRecurrentShape& s_;
};

template <class T>
Input<T> optional(py::handle given, const Extents& extents, const Argument& argument) {
    return given.is_none() ? Input<T>{} : input_of_extents<T>(given, extents, argument);
}

// Arrays of the layer's own form, before they are checked.
struct Given {
    py::array x, w_ih, w_hh;
    State state;
    py::handle b_ih, b_hh, peephole, is_init, dilation, layout, algo;
};

class Reader {
   public:
    Reader(const char* op, Cell cell, const Given& given) : op_(op), given_(given) {
        s_.cell = cell;
        const py::array &x = given.x, &w_ih = given.w_ih, &w_hh = given.w_hh;
        check_rank(x, 5, at("x"));
        check_rank(w_ih, 4, at("w_ih"));
        check_rank(w_hh, 4, at("w_hh"));
        s_.channels_last = read_channels_last(given.layout, op);
        s_.algorithm = read_algorithm();
        s_.steps = x.shape(0);
        s_.batch = x.shape(1);
        s_.inputs = x.shape(s_.channels_last ? 4 : 2);
        s_.height = x.shape(s_.channels_last ? 2 : 3);
        s_.width = x.shape(s_.channels_last ? 3 : 4);
        if (w_hh.shape(0) % gates(cell) != 0)
            at("w_hh").value_error("expected " + std::to_string(gates(cell)) +
                                   " gates of equal size in the first dimension, got shape " + format_shape(w_hh));
        s_.hidden = w_hh.shape(0) / gates(cell);
        if (s_.hidden < 1)
            at("w_hh").value_error("expected at least one hidden channel, got shape " + format_shape(w_hh));
        if (s_.inputs < 1 || s_.height < 1 || s_.width < 1)
            at("x").value_error("expected at least one channel and one pixel, got shape " + format_shape(x));
        read_kernel(w_ih, "w_ih", s_.kernel_ih_height, s_.kernel_ih_width);
        read_kernel(w_hh, "w_hh", s_.kernel_hh_height, s_.kernel_hh_width);
        const Pair dilation = read_pair(given.dilation, 2, 1, at("dilation"));
        s_.dilation_y = dilation[0];
        s_.dilation_x = dilation[1];
        constexpr int64_t most = (int64_t{1} << 31) - 2;
        for (const int64_t size : {s_.steps, s_.batch, s_.height, s_.width})
            if (size > most) at("x").value_error("expected sizes below 2^31, got shape " + format_shape(x));
        for (const int64_t size : std::initializer_list<int64_t>{s_.dilation_y, s_.dilation_x, w_ih.shape(2),
                                                                 w_ih.shape(3), w_hh.shape(2), w_hh.shape(3)})
            if (size > most) at("dilation").value_error("expected kernels and dilation below 2^31");
        element_count({Shapes(s_).columns() + s_.hidden, s_.steps > 0 ? s_.steps : 1, s_.batch > 0 ? s_.batch : 1,
                       s_.height, s_.width});
    }

    const ConvRecurrentShape& shape() const { return s_; }

    // The layer with its arrays, which `tape` keeps.
    template <class T>
    ConvRecurrentLayer<T> read(ConvTape& tape) const {
        const bool pair = s_.cell == Cell::lstm;
        const Shapes shapes(s_);
        const Input<T> x_in = input_of_extents<T>(given_.x, shapes.x(), at("x"));
        const Input<T> w_ih_in = input_of_extents<T>(given_.w_ih, shapes.w_ih(), at("w_ih"));
        const Input<T> w_hh_in = input_of_extents<T>(given_.w_hh, shapes.w_hh(), at("w_hh"));
        const Input<T> h0 = optional<T>(given_.state.h, shapes.state(), at(pair ? "hx[0]" : "hx"));
        const Input<T> c0 = optional<T>(given_.state.c, shapes.state(), at("hx[1]"));
        const Input<T> b_ih = optional_input<T>(given_.b_ih, {shapes.columns()}, at("b_ih"));
        const Input<T> b_hh = optional_input<T>(given_.b_hh, {shapes.columns()}, at("b_hh"));
        const Input<std::uint8_t> is_init = optional_mask(given_.is_init, {s_.steps, s_.batch}, at("is_init"));
        bool maps = false;
        const Input<T> peephole = read_peephole<T>(maps);
        tape.shape = s_;
        tape.dtype = dtype_of<T>;
        tape.x = x_in.holder, tape.w_ih = w_ih_in.holder, tape.w_hh = w_hh_in.holder;
        tape.b_ih = b_ih.holder, tape.b_hh = b_hh.holder;
        tape.h0 = h0.holder, tape.c0 = c0.holder, tape.is_init = is_init.holder, tape.peephole = peephole.holder;
        tape.peephole_maps = maps;
        return {s_,        x_in.data, h0.data,       c0.data, w_ih_in.data, w_hh_in.data,
                b_ih.data, b_hh.data, peephole.data, maps,    is_init.data};
    }

   private:
    Argument at(const char* name) const { return {op_, name}; }

    Algorithm read_algorithm() const {
        if (!py::isinstance<py::str>(given_.algo))
            at("algo").type_error("expected a string, got " + type_name(given_.algo));
        const std::string name = py::str(given_.algo);
        if (name != "auto" && name != "direct")
            at("algo").value_error("expected 'auto' or 'direct', got '" + name + "'");
        return name == "auto" ? Algorithm::automatic : Algorithm::direct;
    }

    void read_kernel(const py::array& w, const char* name, int64_t& height, int64_t& width) const {
        height = w.shape(2);
        width = w.shape(3);
        if (height % 2 == 0 || width % 2 == 0)
            at(name).value_error("expected a kernel of odd height and width, got shape " + format_shape(w));
    }

    template <class T>
    Input<T> read_peephole(bool& maps) const {
        if (!given_.peephole || given_.peephole.is_none()) return {};
        const py::array array = to_array(given_.peephole, at("peephole"));
        maps = array.ndim() != 2;
        return input_of_extents<T>(array, maps ? Shapes(s_).images(s_.hidden, {3}) : Extents{3, s_.hidden},
                                   at("peephole"));
    }

    const char* op_;
    const Given& given_;
    ConvRecurrentShape s_{};
};

// What a tape holds beside the output, in elements: gates, and what lies beside them.
int64_t values_beside(const ConvRecurrentShape& s) { return s.cell == Cell::lstm || s.cell == Cell::gru ? 1 : 0; }
int64_t values_of(const ConvRecurrentShape& s) {
    return element_count({s.steps, s.batch, s.height, s.width, s.hidden});
}
// Without the gates only c, which no other value gives back in parallel.
int64_t tape_size(const ConvRecurrentShape& s, bool recompute) {
    return values_of(s) * (recompute ? s.cell == Cell::lstm : gates(s.cell) + values_beside(s));
}

template <class T>
ConvRecurrentTape<T> parts_of(const ConvTape& tape) {
    auto* maps = static_cast<T*>(const_cast<void*>(py::reinterpret_borrow<py::array>(tape.memory).data()));
    if (tape.recompute) return {nullptr, tape.shape.cell == Cell::lstm ? maps : nullptr};
    return {maps, values_beside(tape.shape) ? maps + gates(tape.shape.cell) * values_of(tape.shape) : nullptr};
}

template <class T>
py::tuple forward(const Reader& reader, bool training, bool recompute) {
    const ConvRecurrentShape& shape = reader.shape();
    const Shapes shapes(shape);
    ConvTape tape{};
    ConvRecurrentForward<T> p{};
    p.layer = reader.read<T>(tape);

    const bool pair = shape.cell == Cell::lstm;
    const int64_t last = element_count(shapes.state());
    const Output<T> out({element_count(shapes.out())}), h_n({last}), c_n({pair ? last : 0});
    p.out = out.data;
    p.c_n = pair ? c_n.data : nullptr;
    const py::array out_array = reshaped(out.array, shapes.out());
    py::object tape_object = py::none();
    if (training) {
        const int64_t size = tape_size(shape, recompute);
        tape.recompute = recompute;
        tape.out = out_array;
        tape.memory = new_array(dtype_of<T>, {size});
        tape.nbytes = static_cast<std::size_t>(size) * sizeof(T);
        p.tape = parts_of<T>(tape);
        tape_object = py::cast(std::move(tape));
    }
    {
        const Unlocked unlocked;
        if (shape.steps == 0 || shape.batch == 0) {
            copy_or_zero(p.layer.h0, h_n.data, last);
            if (pair) copy_or_zero(p.layer.c0, p.c_n, last);
        } else {
            kernels<T>().convrecurrent_forward(p);
            copy_or_zero<T>(p.out + (shape.steps - 1) * last, h_n.data, last);
        }
    }
    return py::make_tuple(out_array,
                          state_of(shape.cell, reshaped(h_n.array, shapes.state()),
                                   pair ? py::object(reshaped(c_n.array, shapes.state())) : py::object(py::none())),
                          tape_object);
}

Cell read_plain(py::handle nonlinearity) { return read_nonlinearity(nonlinearity, "convrnn_forward"); }
Cell read_any(py::handle name) { return read_cell(name, {"convrecurrent_forward", "cell"}); }

template <Cell (*read)(py::handle)>
py::tuple convrecurrent_forward(py::handle name, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh,
                                py::handle b_ih, py::handle b_hh, py::handle peephole, py::handle is_init,
                                py::handle dilation, py::handle layout, py::handle algo, py::handle training_given,
                                py::handle recompute_given) {
    const Cell cell = read(name);
    const char* op = forward_name(cell);
    const bool training = read_bool(training_given, {op, "training"});
    const bool recompute = read_bool(recompute_given, {op, "recompute"});
    const Given given{to_array(x, {op, "x"}),
                      to_array(w_ih, {op, "w_ih"}),
                      to_array(w_hh, {op, "w_hh"}),
                      unpack_state(hx, cell, {op, "hx"}),
                      b_ih,
                      b_hh,
                      peephole,
                      is_init,
                      dilation,
                      layout,
                      algo};
    const DType dtype = float_dtype(given.x, {op, "x"});
    const Reader reader(op, cell, given);
    return with_dtype(dtype, [&](auto zero) { return forward<decltype(zero)>(reader, training, recompute); });
}

template <class T>
py::tuple backward(const char* op, const ConvTape& tape, py::handle grad_out_given, const State& grad_state,
                   Truncation truncation, py::handle carry_scale_given) {
    const ConvRecurrentShape& s = tape.shape;
    const bool pair = s.cell == Cell::lstm;
    const Shapes shapes(s);
    const Input<T> grad_out = optional<T>(grad_out_given, shapes.out(), {op, "grad_out"});
    const Input<T> grad_h = optional<T>(grad_state.h, shapes.state(), {op, pair ? "grad_hx[0]" : "grad_hx"});
    const Input<T> grad_c = optional<T>(grad_state.c, shapes.state(), {op, "grad_hx[1]"});
    const Input<T> carry_scale = optional_input<T>(carry_scale_given, {s.steps, s.batch}, {op, "carry_scale"});

    const int64_t columns = shapes.columns(), state = element_count(shapes.state()),
                  w_ih_size = element_count(shapes.w_ih()), w_hh_size = element_count(shapes.w_hh());
    const T* peephole = data_of<T>(tape.peephole);
    const bool has_b_ih = data_of<T>(tape.b_ih), has_b_hh = data_of<T>(tape.b_hh);
    const Extents peephole_extents =
        peephole ? extents_of(py::reinterpret_borrow<py::array>(tape.peephole)) : Extents{0};
    const Output<T> grad_x({element_count(shapes.x())}), grad_h0({state}), grad_c0({pair ? state : 0}),
        grad_w_ih({w_ih_size}), grad_w_hh({w_hh_size}), grad_b_ih({has_b_ih ? columns : 0}),
        grad_b_hh({has_b_hh ? columns : 0}), grad_peephole({element_count(peephole_extents)});

    ConvRecurrentBackward<T> p{};
    p.layer = {s,
               data_of<T>(tape.x),
               data_of<T>(tape.h0),
               data_of<T>(tape.c0),
               data_of<T>(tape.w_ih),
               data_of<T>(tape.w_hh),
               data_of<T>(tape.b_ih),
               data_of<T>(tape.b_hh),
               peephole,
               tape.peephole_maps,
               data_of<std::uint8_t>(tape.is_init)};
    p.out = data_of<T>(tape.out);
    p.tape = parts_of<T>(tape);
    p.window = std::min(truncation.k1, std::max<int64_t>(s.steps, 1));
    p.overlapping = truncation.k1 < truncation.k2 && truncation.k1 < s.steps;
    p.grad_out = grad_out.data;
    p.grad_h_n = grad_h.data;
    p.grad_c_n = grad_c.data;
    p.carry_scale = carry_scale.data;
    p.grad_x = grad_x.data;
    p.grad_h0 = grad_h0.data;
    p.grad_c0 = pair ? grad_c0.data : nullptr;
    p.grad_w_ih = grad_w_ih.data;
    p.grad_w_hh = grad_w_hh.data;
    p.grad_b_ih = has_b_ih ? grad_b_ih.data : nullptr;
    p.grad_b_hh = has_b_hh ? grad_b_hh.data : nullptr;
    p.grad_peephole = peephole ? grad_peephole.data : nullptr;
    {
        const Unlocked unlocked;
        if (s.steps == 0 || s.batch == 0) {
            copy_or_zero<T>(p.grad_h_n, p.grad_h0, state);
            if (pair) copy_or_zero<T>(p.grad_c_n, p.grad_c0, state);
            copy_or_zero<T>(nullptr, p.grad_w_ih, w_ih_size);
            copy_or_zero<T>(nullptr, p.grad_w_hh, w_hh_size);
            if (p.grad_b_ih) copy_or_zero<T>(nullptr, p.grad_b_ih, columns);
            if (p.grad_b_hh) copy_or_zero<T>(nullptr, p.grad_b_hh, columns);
            copy_or_zero<T>(nullptr, grad_peephole.data, element_count(peephole_extents));
        } else {
            const std::vector<Segment> segments =
                backward_segments(s.steps, s.batch, truncation, p.layer.is_init, p.carry_scale);
            p.segments = segments.data();
            p.segment_count = static_cast<int64_t>(segments.size());
            kernels<T>().convrecurrent_backward(p);
        }
    }
    return py::make_tuple(reshaped(grad_x.array, shapes.x()),
                          state_of(s.cell, reshaped(grad_h0.array, shapes.state()),
                                   pair ? py::object(reshaped(grad_c0.array, shapes.state())) : py::object(py::none())),
                          reshaped(grad_w_ih.array, shapes.w_ih()), reshaped(grad_w_hh.array, shapes.w_hh()),
                          chosen(has_b_ih, grad_b_ih.array), chosen(has_b_hh, grad_b_hh.array),
                          chosen(peephole != nullptr, grad_peephole.array, peephole_extents));
}

py::tuple convrecurrent_backward(py::handle cell_name, py::handle tape_given, py::handle grad_out, py::handle grad_hx,
                                 py::handle truncation, py::handle carry_scale) {
    const Cell cell = read_cell(cell_name, {"convrnn_backward", "cell"});
    const char* op = backward_name(cell);
    const Argument argument{op, "tape"};
    if (!py::isinstance<ConvTape>(tape_given)) argument.type_error("expected a ConvTape, got " + type_name(tape_given));
    const ConvTape& tape = tape_given.cast<const ConvTape&>();
    const ConvRecurrentShape& s = tape.shape;
    if (std::string(family(s.cell)) != family(cell))
        argument.value_error("expected a tape of " + std::string(forward_name(cell)) + ", got one of " +
                             forward_name(s.cell));
    const State state = unpack_state(grad_hx, cell, {op, "grad_hx"});
    if (grad_out.is_none() && state.h.is_none() && state.c.is_none())
        Argument{op, "grad_out"}.value_error("expected an array, or None together with grad_hx");
    const Truncation windows = read_truncation(truncation, s.steps, {op, "truncation"});
    return with_dtype(tape.dtype, [&](auto zero) {
        return backward<decltype(zero)>(op, tape, grad_out, state, windows, carry_scale);
    });
}

// The tape of an earlier forward pass from its arguments, its output and `memory`, which may have been moved meanwhile.
ConvTape restore(py::handle cell_name, py::handle x, py::handle hx, py::handle w_ih, py::handle w_hh, py::handle b_ih,
                 py::handle b_hh, py::handle peephole, py::handle is_init, py::handle dilation, py::handle layout,
                 py::handle algo, py::handle recompute, py::handle out, py::handle memory) {
    const char* op = "restore_conv_tape";
    const Cell cell = read_cell(cell_name, {op, "cell"});
    const Given given{to_array(x, {op, "x"}),
                      to_array(w_ih, {op, "w_ih"}),
                      to_array(w_hh, {op, "w_hh"}),
                      unpack_state(hx, cell, {op, "hx"}),
                      b_ih,
                      b_hh,
                      peephole,
                      is_init,
                      dilation,
                      layout,
                      algo};
    const DType dtype = float_dtype(given.x, {op, "x"});
    const Reader reader(op, cell, given);
    ConvTape tape{};
    tape.recompute = read_bool(recompute, {op, "recompute"});
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        reader.read<T>(tape);
        const int64_t size = tape_size(tape.shape, tape.recompute);
        tape.out = input_of_extents<T>(out, Shapes(tape.shape).out(), {op, "out"}).holder;
        tape.memory = input<T>(memory, {size}, {op, "memory"}).holder;
        tape.nbytes = static_cast<std::size_t>(size) * sizeof(T);
        return 0;
    });
    return tape;
}

std::string describe(const ConvTape& tape) {
    const ConvRecurrentShape& s = tape.shape;
    const auto number = [](const char* name, int64_t value) { return name + std::to_string(value); };
    return std::string("<ConvTape of ") + forward_name(s.cell) + number(": steps ", s.steps) +
           number(", batch ", s.batch) + number(", inputs ", s.inputs) + number(", hidden ", s.hidden) +
           number(", size ", s.height) + number("x", s.width) + ", " + name_of(tape.dtype) +
           (tape.recompute ? ", recompute, " : ", ") + std::to_string(tape.nbytes) + " bytes>";
}

}  // namespace

void register_convrecurrent(py::module_& module) {
    py::class_<ConvTape>(module, "ConvTape", "What a recurrent layer on images keeps for its backward pass.")
        .def_readonly("nbytes", &ConvTape::nbytes, "How many bytes of history it holds, beside the output.")
        .def_readonly("memory", &ConvTape::memory, "That history, for `restore_conv_tape`.")
        .def("__repr__", &describe);
    module.def("convrnn_forward", &convrecurrent_forward<read_plain>);
    module.def("convrecurrent_forward", &convrecurrent_forward<read_any>);
    module.def("convrecurrent_backward", &convrecurrent_backward);
    module.def("restore_conv_tape", &restore);
}

}  // namespace tbptt::python
