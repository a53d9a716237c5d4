// The checks of convrecurrent_arguments.h.
#include "convrecurrent_arguments.h"

#include "windows.h"

namespace tbptt::python {

const char* conv_forward_name(Cell cell) {
    return cell == Cell::lstm ? "convlstm_forward" : cell == Cell::gru ? "convgru_forward" : "convrnn_forward";
}
const char* conv_backward_name(Cell cell) {
    return cell == Cell::lstm ? "convlstm_backward" : cell == Cell::gru ? "convgru_backward" : "convrnn_backward";
}

Extents ConvExtents::images(int64_t channels, Extents leading) const {
    if (!s_.channels_last) leading.push_back(channels);
    leading.push_back(s_.height);
    leading.push_back(s_.width);
    if (s_.channels_last) leading.push_back(channels);
    return leading;
}

namespace {

Algorithm read_algorithm(py::handle given, const Argument& argument) {
    if (!py::isinstance<py::str>(given)) argument.type_error("expected a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (name != "auto" && name != "direct") argument.value_error("expected 'auto' or 'direct', got '" + name + "'");
    return name == "auto" ? Algorithm::automatic : Algorithm::direct;
}

void read_kernel(Shape w, const Argument& argument, int64_t& height, int64_t& width) {
    height = w.extents[2];
    width = w.extents[3];
    if (height % 2 == 0 || width % 2 == 0)
        argument.value_error("expected a kernel of odd height and width, got shape " + format_shape(w));
}

}  // namespace

ConvRecurrentShape read_conv_shape(Cell cell, Shape x, Shape w_ih, Shape w_hh, const ConvRecurrentOptions& options,
                                   const char* op) {
    const auto at = [op](const char* name) { return Argument{op, name}; };
    ConvRecurrentShape s{};
    s.cell = cell;
    check_rank(x, 5, at("x"));
    check_rank(w_ih, 4, at("w_ih"));
    check_rank(w_hh, 4, at("w_hh"));
    s.channels_last = read_channels_last(options.layout, op);
    s.algorithm = read_algorithm(options.algo, at("algo"));
    s.steps = x.extents[0];
    s.batch = x.extents[1];
    s.inputs = x.extents[s.channels_last ? 4 : 2];
    s.height = x.extents[s.channels_last ? 2 : 3];
    s.width = x.extents[s.channels_last ? 3 : 4];
    if (w_hh.extents[0] % gates(cell) != 0)
        at("w_hh").value_error("expected " + std::to_string(gates(cell)) +
                               " gates of equal size in the first dimension, got shape " + format_shape(w_hh));
    s.hidden = w_hh.extents[0] / gates(cell);
    if (s.hidden < 1) at("w_hh").value_error("expected at least one hidden channel, got shape " + format_shape(w_hh));
    if (s.inputs < 1 || s.height < 1 || s.width < 1)
        at("x").value_error("expected at least one channel and one pixel, got shape " + format_shape(x));
    read_kernel(w_ih, at("w_ih"), s.kernel_ih_height, s.kernel_ih_width);
    read_kernel(w_hh, at("w_hh"), s.kernel_hh_height, s.kernel_hh_width);
    const Pair dilation = read_pair(options.dilation, 2, 1, at("dilation"));
    s.dilation_y = dilation[0];
    s.dilation_x = dilation[1];
    constexpr int64_t most = (int64_t{1} << 31) - 2;
    for (const int64_t size : {s.steps, s.batch, s.height, s.width})
        if (size > most) at("x").value_error("expected sizes below 2^31, got shape " + format_shape(x));
    for (const int64_t size :
         {s.dilation_y, s.dilation_x, s.kernel_ih_height, s.kernel_ih_width, s.kernel_hh_height, s.kernel_hh_width})
        if (size > most) at("dilation").value_error("expected kernels and dilation below 2^31");
    element_count(
        {ConvExtents(s).columns() + s.hidden, s.steps > 0 ? s.steps : 1, s.batch > 0 ? s.batch : 1, s.height, s.width});
    return s;
}

KeptValues kept_values(Cell cell, bool gates_kept) {
    if (!gates_kept) return {0, cell == Cell::lstm};
    return {gates(cell), cell == Cell::lstm || cell == Cell::gru};
}

int64_t ConvTape::size() const {
    return element_count({shape.steps, shape.batch, shape.height, shape.width, shape.hidden}) *
           (values.maps + values.beside);
}

std::string describe_tape(const ConvTape& tape) {
    const ConvRecurrentShape& s = tape.shape;
    const auto number = [](const char* name, int64_t value) { return name + std::to_string(value); };
    return std::string("<ConvTape of ") + conv_forward_name(s.cell) + number(": steps ", s.steps) +
           number(", batch ", s.batch) + number(", inputs ", s.inputs) + number(", hidden ", s.hidden) +
           number(", size ", s.height) + number("x", s.width) + ", " + name_of(tape.dtype) +
           (tape.recompute ? ", recompute, " : ", ") + std::to_string(tape.nbytes) + " bytes>";
}

GivenConvGradients read_given_gradients(const ConvTape& tape, Cell cell, py::handle grad_out, py::handle grad_hx,
                                        py::handle truncation, py::handle carry_scale) {
    const char* op = conv_backward_name(cell);
    if (std::string(family(tape.shape.cell)) != family(cell))
        Argument{op, "tape"}.value_error("expected a tape of " + std::string(conv_forward_name(cell)) +
                                         ", got one of " + conv_forward_name(tape.shape.cell));
    const State state = unpack_state(grad_hx, cell, {op, "grad_hx"});
    if (grad_out.is_none() && state.h.is_none() && state.c.is_none())
        Argument{op, "grad_out"}.value_error("expected an array, or None together with grad_hx");
    return {grad_out, state, read_truncation(truncation, tape.shape.steps, {op, "truncation"}), carry_scale};
}

}  // namespace tbptt::python
