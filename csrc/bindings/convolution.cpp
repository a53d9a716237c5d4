// Convolutions in one and two dimensions; to the kernels, one dimension is images of height 1.
#include <algorithm>
#include <array>

#include "../dispatch.h"
#include "arguments.h"

namespace tbptt::python {

namespace {

using Pair = std::array<int64_t, 2>;  // vertical and horizontal

// One integer for both directions, or one for each; with one dimension, one integer.
Pair read_pair(py::handle given, int rank, int64_t least, const Argument& argument) {
    const int64_t none = least == 0 ? 0 : 1;  // along the missing dimension
    if (to_index(given)) {
        const int64_t value = read_integer(given, least, argument);
        return {rank == 1 ? none : value, value};
    }
    if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given))
        argument.type_error("expected an integer or a tuple of " + std::to_string(rank) + ", got " + type_name(given));
    const py::sequence items = py::reinterpret_borrow<py::sequence>(given);
    if (py::len(items) != static_cast<std::size_t>(rank))
        argument.value_error("expected " + std::to_string(rank) + " integer" + (rank > 1 ? "s" : "") + ", got " +
                             std::to_string(py::len(items)));
    const int64_t last = read_integer(items[static_cast<std::size_t>(rank - 1)], least, argument);
    return {rank == 1 ? none : read_integer(items[0], least, argument), last};
}

struct Padding {
    int64_t before, behind;
};

bool is_nested(py::handle given) {
    if (!py::isinstance<py::tuple>(given) && !py::isinstance<py::list>(given)) return false;
    const py::sequence items = py::reinterpret_borrow<py::sequence>(given);
    return py::len(items) > 0 && (py::isinstance<py::tuple>(items[0]) || py::isinstance<py::list>(items[0]));
}

// How one convolution was asked for, once all is known of it.
struct Convolution {
    int rank;
    ConvolutionShape shape;
    Extents x, y, w;  // public shapes
};

class Reader {
   public:
    Reader(const char* op, int rank, const py::array& x, const py::array& w, py::handle layout)
        : op_(op), rank_(rank), x_(x) {
        check_rank(x, rank + 2, {op, "x"});
        check_rank(w, rank + 2, {op, "w"});
        shape_.channels_last = read_layout(layout);
        const int first = shape_.channels_last ? 1 : 2;
        shape_.batch = x.shape(0);
        shape_.inputs = x.shape(shape_.channels_last ? rank + 1 : 1);
        shape_.height = rank == 2 ? x.shape(first) : 1;
        shape_.width = x.shape(first + rank - 1);
        shape_.outputs = w.shape(0);
        shape_.kernel_height = rank == 2 ? w.shape(2) : 1;
        shape_.kernel_width = w.shape(rank + 1);
        if (shape_.kernel_height < 1 || shape_.kernel_width < 1)
            Argument{op, "w"}.value_error("expected a kernel with at least one element, got shape " + format_shape(w));
    }

    Convolution read(const py::array& w, py::handle stride, py::handle padding, py::handle dilation,
                     py::handle groups) {
        const Pair strides = read_pair(stride, rank_, 1, {op_, "stride"});
        const Pair dilations = read_pair(dilation, rank_, 1, {op_, "dilation"});
        shape_.stride_y = rank_ == 1 ? 1 : strides[0];
        shape_.stride_x = strides[1];
        shape_.dilation_y = rank_ == 1 ? 1 : dilations[0];
        shape_.dilation_x = dilations[1];
        read_groups(w, groups);
        const std::array<Padding, 2> pads = read_padding(padding);
        shape_.pad_top = pads[0].before;
        shape_.pad_left = pads[1].before;
        shape_.out_height =
            output_size("height", shape_.height, shape_.kernel_height, shape_.stride_y, shape_.dilation_y, pads[0]);
        shape_.out_width =
            output_size("width", shape_.width, shape_.kernel_width, shape_.stride_x, shape_.dilation_x, pads[1]);
        Convolution result{rank_, shape_, extents_of(x_), {shape_.batch}, extents_of(w)};
        if (!shape_.channels_last) result.y.push_back(shape_.outputs);
        if (rank_ == 2) result.y.push_back(shape_.out_height);
        result.y.push_back(shape_.out_width);
        if (shape_.channels_last) result.y.push_back(shape_.outputs);
        element_count(result.y);
        return result;
    }

    // Of a transposed convolution: the shape is that of the convolution from its output to x.
    Convolution read_transposed(const py::array& w, py::handle stride, py::handle padding, py::handle output_padding,
                                py::handle dilation, py::handle groups) {
        const Pair strides = read_pair(stride, rank_, 1, {op_, "stride"});
        const Pair dilations = read_pair(dilation, rank_, 1, {op_, "dilation"});
        const Pair more = read_pair(output_padding, rank_, 0, {op_, "output_padding"});
        const Argument padding_argument{op_, "padding"};
        if (py::isinstance<py::str>(padding))
            padding_argument.value_error("expected integers, got '" + std::string(py::str(padding)) + "'");
        const std::array<Padding, 2> pads = read_padding(padding);
        ConvolutionShape s = shape_;
        s.stride_y = strides[0], s.stride_x = strides[1];
        s.dilation_y = dilations[0], s.dilation_x = dilations[1];
        s.pad_top = pads[0].before, s.pad_left = pads[1].before;
        s.out_height = shape_.height, s.out_width = shape_.width;
        s.outputs = shape_.inputs;
        s.groups = read_integer(groups, 1, {op_, "groups"});
        if (w.shape(0) != s.outputs)
            Argument{op_, "w"}.value_error("expected " + std::to_string(s.outputs) +
                                           " input channels (dimension 0), got shape " + format_shape(w));
        if (s.outputs % s.groups != 0)
            Argument{op_, "groups"}.value_error("expected a divisor of the " + std::to_string(s.outputs) +
                                                " input channels, got " + std::to_string(s.groups));
        s.inputs = element_count({s.groups, w.shape(1)});
        s.height = transposed_size(s.out_height, s.kernel_height, s.stride_y, s.dilation_y, pads[0], more[0]);
        s.width = transposed_size(s.out_width, s.kernel_width, s.stride_x, s.dilation_x, pads[1], more[1]);
        Convolution result{rank_, s, extents_of(x_), {s.batch}, extents_of(w)};
        if (!s.channels_last) result.y.push_back(s.inputs);
        result.y.push_back(s.height);
        result.y.push_back(s.width);
        if (s.channels_last) result.y.push_back(s.inputs);
        element_count(result.y);
        return result;
    }

   private:
    int64_t transposed_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, const Padding& pad,
                            int64_t more) const {
        constexpr int64_t limit = int64_t{1} << 30;  // far beyond memory; keeps what follows from overflowing
        for (const int64_t value : {size, kernel, stride, dilation, pad.before, pad.behind})
            if (value > limit) Argument{op_, "padding"}.value_error("expected sizes, strides and padding below 2**30");
        if (more >= std::max(stride, dilation))
            Argument{op_, "output_padding"}.value_error("expected less than the stride or the dilation, got " +
                                                        std::to_string(more));
        const int64_t result = (size - 1) * stride - pad.before - pad.behind + dilation * (kernel - 1) + more + 1;
        if (size < 1 || result < 1)
            Argument{op_, "padding"}.value_error("expected an output of at least one pixel, got " +
                                                 std::to_string(result));
        return result;
    }

    bool read_layout(py::handle given) const {
        const Argument argument{op_, "layout"};
        if (!py::isinstance<py::str>(given)) argument.type_error("expected a string, got " + type_name(given));
        const std::string name = py::str(given), first = rank_ == 1 ? "NCL" : "NCHW",
                          last = rank_ == 1 ? "NLC" : "NHWC";
        if (name != first && name != last)
            argument.value_error("expected '" + first + "' or '" + last + "', got '" + name + "'");
        return name == last;
    }

    void read_groups(const py::array& w, py::handle given) {
        const Argument argument{op_, "groups"};
        shape_.groups = read_integer(given, 1, argument);
        if (shape_.inputs % shape_.groups != 0 || shape_.outputs % shape_.groups != 0)
            argument.value_error("expected a divisor of the " + std::to_string(shape_.inputs) + " input and " +
                                 std::to_string(shape_.outputs) + " output channels, got " +
                                 std::to_string(shape_.groups));
        if (w.shape(1) != shape_.inputs / shape_.groups)
            Argument{op_, "w"}.value_error("expected " + std::to_string(shape_.inputs / shape_.groups) +
                                           " input channels per group (dimension 1), got shape " + format_shape(w));
    }

    std::array<Padding, 2> read_padding(py::handle given) const {
        const Argument argument{op_, "padding"};
        if (py::isinstance<py::str>(given)) {
            const std::string name = py::str(given);
            if (name == "valid") return {};
            if (name == "same")
                return {same(shape_.height, shape_.kernel_height, shape_.stride_y, shape_.dilation_y),
                        same(shape_.width, shape_.kernel_width, shape_.stride_x, shape_.dilation_x)};
            if (name == "causal" && rank_ == 1)
                return {Padding{0, 0}, Padding{shape_.dilation_x * (shape_.kernel_width - 1), 0}};
            argument.value_error(std::string("expected 'same', 'valid'") + (rank_ == 1 ? ", 'causal'" : "") +
                                 " or integers, got '" + name + "'");
        }
        if (is_nested(given)) {
            const py::sequence sides = py::reinterpret_borrow<py::sequence>(given);
            if (py::len(sides) != static_cast<std::size_t>(rank_))
                argument.value_error("expected " + std::to_string(rank_) + " pairs of sides, got " +
                                     std::to_string(py::len(sides)));
            const Pair last = read_pair(sides[static_cast<std::size_t>(rank_ - 1)], 2, 0, argument);
            const Pair first = rank_ == 1 ? Pair{0, 0} : read_pair(sides[0], 2, 0, argument);
            return {Padding{first[0], first[1]}, Padding{last[0], last[1]}};
        }
        const Pair both = read_pair(given, rank_, 0, argument);
        return {Padding{both[0], both[0]}, Padding{both[1], both[1]}};
    }

    // As many outputs as inputs (with a stride, as many as it reaches); an odd zero goes behind.
    static Padding same(int64_t size, int64_t kernel, int64_t stride, int64_t dilation) {
        const int64_t outputs = (size + stride - 1) / stride;
        const int64_t reach = (outputs > 0 ? (outputs - 1) * stride : 0) + dilation * (kernel - 1) + 1;
        const int64_t total = reach > size ? reach - size : 0;
        return {total / 2, total - total / 2};
    }

    int64_t output_size(const char* direction, int64_t size, int64_t kernel, int64_t stride, int64_t dilation,
                        const Padding& pad) const {
        constexpr int64_t limit = int64_t{1} << 40;  // far beyond memory; keeps what follows from overflowing
        for (const int64_t value : {stride, dilation, pad.before, pad.behind})
            if (value > limit)
                Argument{op_, "padding"}.value_error("expected stride, dilation and padding below 2**40");
        const int64_t room = size + pad.before + pad.behind;
        if (kernel > limit / dilation || dilation * (kernel - 1) + 1 > room)
            Argument{op_, "w"}.value_error("expected a kernel within the padded " + std::string(direction) + " " +
                                           std::to_string(room) + ", got size " + std::to_string(kernel) +
                                           " with dilation " + std::to_string(dilation));
        return (room - dilation * (kernel - 1) - 1) / stride + 1;
    }

    const char* op_;
    int rank_;
    const py::array& x_;
    ConvolutionShape shape_{};
};

template <class T>
py::array forward(const char* op, const Convolution& c, const py::array& x_given, const py::array& w_given,
                  py::handle b_given, Activation activation) {
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> b = optional_input<T>(b_given, {c.shape.outputs}, {op, "b"});
    const Output<T> y({element_count(c.y)});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().convolution_forward({c.shape, activation, x.data, w.data, b.data, y.data});
    }
    return reshaped(y.array, c.y);
}

// The output that an activation's gradient needs.
template <class T>
Input<T> read_output(const char* op, const Convolution& c, py::handle given, Activation activation) {
    if (activation == Activation::none) return {};
    if (given.is_none())
        Argument{op, "y"}.value_error("expected the output of the convolution, which an activation needs, got None");
    return input_of_extents<T>(given, c.y, {op, "y"});
}

template <class T>
py::tuple backward(const char* op, const Convolution& c, py::handle grad_given, const py::array& x_given,
                   const py::array& w_given, py::handle y_given, Activation activation, Needs needs) {
    const Input<T> grad_y = input_of_extents<T>(grad_given, c.y, {op, "grad_out"});
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> y = read_output<T>(op, c, y_given, activation);
    const Output<T> grad_x({needs.x ? element_count(c.x) : 0}), grad_w({needs.w ? element_count(c.w) : 0}),
        grad_b({needs.b ? c.shape.outputs : 0});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().convolution_backward({c.shape, activation, grad_y.data, x.data, w.data, y.data,
                                           needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                           needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(chosen(needs.x, grad_x.array, c.x), chosen(needs.w, grad_w.array, c.w),
                          chosen(needs.b, grad_b.array));
}

void define(py::module_& module, const char* op, const char* op_backward, int rank) {
    module.def(op, [op, rank](py::handle x, py::handle w, py::handle b, py::handle stride, py::handle padding,
                              py::handle dilation, py::handle groups, py::handle activation, py::handle layout) {
        const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const Convolution c =
            Reader(op, rank, x_array, w_array, layout).read(w_array, stride, padding, dilation, groups);
        const Activation function = read_activation(activation, op);
        return with_dtype(dtype,
                          [&](auto zero) { return forward<decltype(zero)>(op, c, x_array, w_array, b, function); });
    });
    module.def(op_backward,
               [op = op_backward, rank](py::handle grad_out, py::handle x, py::handle w, py::handle y,
                                        py::handle stride, py::handle padding, py::handle dilation, py::handle groups,
                                        py::handle activation, py::handle layout, py::handle needs) {
                   const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
                   const DType dtype = float_dtype(x_array, {op, "x"});
                   const Convolution c =
                       Reader(op, rank, x_array, w_array, layout).read(w_array, stride, padding, dilation, groups);
                   const Activation function = read_activation(activation, op);
                   const Needs wanted = read_needs(needs, op);
                   return with_dtype(dtype, [&](auto zero) {
                       return backward<decltype(zero)>(op, c, grad_out, x_array, w_array, y, function, wanted);
                   });
               });
}

template <class T>
py::array transposed_forward(const char* op, const Convolution& c, const py::array& x_given, const py::array& w_given,
                             py::handle b_given, Activation activation) {
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> b = optional_input<T>(b_given, {c.shape.inputs}, {op, "b"});
    const Output<T> y({element_count(c.y)});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().transposed_forward({c.shape, activation, x.data, w.data, b.data, y.data});
    }
    return reshaped(y.array, c.y);
}

template <class T>
py::tuple transposed_backward(const char* op, const Convolution& c, py::handle grad_given, const py::array& x_given,
                              const py::array& w_given, py::handle y_given, Activation activation, Needs needs) {
    const Input<T> grad_y = input_of_extents<T>(grad_given, c.y, {op, "grad_out"});
    const Input<T> x = input_of_extents<T>(x_given, c.x, {op, "x"});
    const Input<T> w = input_of_extents<T>(w_given, c.w, {op, "w"});
    const Input<T> y = read_output<T>(op, c, y_given, activation);
    const Output<T> grad_x({needs.x ? element_count(c.x) : 0}), grad_w({needs.w ? element_count(c.w) : 0}),
        grad_b({needs.b ? c.shape.inputs : 0});
    {
        const py::gil_scoped_release unlocked;
        kernels<T>().transposed_backward({c.shape, activation, grad_y.data, x.data, w.data, y.data,
                                          needs.x ? grad_x.data : nullptr, needs.w ? grad_w.data : nullptr,
                                          needs.b ? grad_b.data : nullptr});
    }
    return py::make_tuple(chosen(needs.x, grad_x.array, c.x), chosen(needs.w, grad_w.array, c.w),
                          chosen(needs.b, grad_b.array));
}

void define_transposed(py::module_& module) {
    module.def("conv_transpose2d", [](py::handle x, py::handle w, py::handle b, py::handle stride, py::handle padding,
                                      py::handle output_padding, py::handle dilation, py::handle groups,
                                      py::handle activation, py::handle layout) {
        const char* op = "conv_transpose2d";
        const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const Convolution c = Reader(op, 2, x_array, w_array, layout)
                                  .read_transposed(w_array, stride, padding, output_padding, dilation, groups);
        const Activation function = read_activation(activation, op);
        return with_dtype(
            dtype, [&](auto zero) { return transposed_forward<decltype(zero)>(op, c, x_array, w_array, b, function); });
    });
    module.def("conv_transpose2d_backward", [](py::handle grad_out, py::handle x, py::handle w, py::handle y,
                                               py::handle stride, py::handle padding, py::handle output_padding,
                                               py::handle dilation, py::handle groups, py::handle activation,
                                               py::handle layout, py::handle needs) {
        const char* op = "conv_transpose2d_backward";
        const py::array x_array = to_array(x, {op, "x"}), w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(x_array, {op, "x"});
        const Convolution c = Reader(op, 2, x_array, w_array, layout)
                                  .read_transposed(w_array, stride, padding, output_padding, dilation, groups);
        const Activation function = read_activation(activation, op);
        const Needs wanted = read_needs(needs, op);
        return with_dtype(dtype, [&](auto zero) {
            return transposed_backward<decltype(zero)>(op, c, grad_out, x_array, w_array, y, function, wanted);
        });
    });
}

}  // namespace

void register_convolution(py::module_& module) {
    define(module, "conv1d", "conv1d_backward", 1);
    define(module, "conv2d", "conv2d_backward", 2);
    define_transposed(module);
}

}  // namespace tbptt::python
