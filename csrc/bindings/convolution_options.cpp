// The checks of convolution_options.h.
#include "convolution_options.h"

#include <algorithm>

#include "windows.h"

namespace tbptt::python {

namespace {

class Reader {
   public:
    Reader(const ConvolutionOp& op, Shape x, Shape w, const ConvolutionOptions& options)
        : op_(op), x_(x), w_(w), options_(options) {}

    Convolution read() {
        read_arrays();
        const Pair strides = read_pair(options_.stride, op_.rank, 1, argument("stride"));
        const Pair dilations = read_pair(options_.dilation, op_.rank, 1, argument("dilation"));
        s_.stride_y = strides[0], s_.stride_x = strides[1];
        s_.dilation_y = dilations[0], s_.dilation_x = dilations[1];
        op_.transposed ? read_transposed() : read_direct();
        s_.algorithm = options_.algo ? read_algorithm() : Algorithm::automatic;
        Convolution result{s_, op_.transposed ? s_.inputs : s_.outputs, extents_of(x_), extents_of(w_), {s_.batch}};
        if (!s_.channels_last) result.y.push_back(result.out_channels);
        if (op_.rank == 2) result.y.push_back(op_.transposed ? s_.height : s_.out_height);
        result.y.push_back(op_.transposed ? s_.width : s_.out_width);
        if (s_.channels_last) result.y.push_back(result.out_channels);
        element_count(result.y);
        return result;
    }

   private:
    Argument argument(const char* name) const { return {op_.name, name}; }

    // What the arrays and the layout say: the sizes on the side of x, and the kernel's.
    void read_arrays() {
        const int rank = op_.rank;
        check_rank(x_, rank + 2, argument("x"));
        check_rank(w_, rank + 2, argument("w"));
        s_.transposed = op_.transposed;
        s_.channels_last = rank == 1 ? read_channels_last(options_.layout, op_.name, "NCL", "NLC")
                                     : read_channels_last(options_.layout, op_.name);
        const int first = s_.channels_last ? 1 : 2;
        s_.batch = x_.extents[0];
        (op_.transposed ? s_.outputs : s_.inputs) = x_.extents[s_.channels_last ? rank + 1 : 1];
        (op_.transposed ? s_.out_height : s_.height) = rank == 2 ? x_.extents[first] : 1;
        (op_.transposed ? s_.out_width : s_.width) = x_.extents[first + rank - 1];
        s_.kernel_height = rank == 2 ? w_.extents[2] : 1;
        s_.kernel_width = w_.extents[rank + 1];
        if (s_.kernel_height < 1 || s_.kernel_width < 1)
            argument("w").value_error("expected a kernel with at least one element, got shape " + format_shape(w_));
    }

    void read_direct() {
        s_.outputs = w_.extents[0];
        s_.groups = read_integer(options_.groups, 1, argument("groups"));
        if (s_.inputs % s_.groups != 0 || s_.outputs % s_.groups != 0)
            argument("groups").value_error("expected a divisor of the " + std::to_string(s_.inputs) + " input and " +
                                           std::to_string(s_.outputs) + " output channels, got " +
                                           std::to_string(s_.groups));
        if (w_.extents[1] != s_.inputs / s_.groups)
            argument("w").value_error("expected " + std::to_string(s_.inputs / s_.groups) +
                                      " input channels per group (dimension 1), got shape " + format_shape(w_));
        const std::array<Sides, 2> pads = read_padding();
        s_.out_height = output_size("height", s_.height, s_.kernel_height, s_.stride_y, s_.dilation_y, pads[0]);
        s_.out_width = output_size("width", s_.width, s_.kernel_width, s_.stride_x, s_.dilation_x, pads[1]);
    }

    void read_transposed() {
        const Pair more = read_pair(options_.output_padding, op_.rank, 0, argument("output_padding"));
        if (py::isinstance<py::str>(options_.padding))
            argument("padding").value_error("expected integers, got '" + std::string(py::str(options_.padding)) + "'");
        const std::array<Sides, 2> pads = read_padding();
        s_.groups = read_integer(options_.groups, 1, argument("groups"));
        if (w_.extents[0] != s_.outputs)
            argument("w").value_error("expected " + std::to_string(s_.outputs) +
                                      " input channels (dimension 0), got shape " + format_shape(w_));
        if (s_.outputs % s_.groups != 0)
            argument("groups").value_error("expected a divisor of the " + std::to_string(s_.outputs) +
                                           " input channels, got " + std::to_string(s_.groups));
        s_.inputs = element_count({s_.groups, w_.extents[1]});
        s_.height = transposed_size(s_.out_height, s_.kernel_height, s_.stride_y, s_.dilation_y, pads[0], more[0]);
        s_.width = transposed_size(s_.out_width, s_.kernel_width, s_.stride_x, s_.dilation_x, pads[1], more[1]);
    }

    Algorithm read_algorithm() const {
        const py::handle given = options_.algo;
        if (!py::isinstance<py::str>(given)) argument("algo").type_error("expected a string, got " + type_name(given));
        const std::string name = py::str(given);
        if (name == "auto") return Algorithm::automatic;
        if (name == "direct") return Algorithm::direct;
        const Algorithm found = name == "winograd"       ? Algorithm::winograd
                                : name == "winograd_2x2" ? Algorithm::winograd_2x2
                                : name == "winograd_4x4" ? Algorithm::winograd_4x4
                                                         : Algorithm::automatic;
        if (found == Algorithm::automatic)
            argument("algo").value_error(
                "expected 'auto', 'direct', 'winograd', 'winograd_2x2' or 'winograd_4x4', got '" + name + "'");
        const Pair kernel{s_.kernel_height, s_.kernel_width}, stride{s_.stride_y, s_.stride_x},
            dilation{s_.dilation_y, s_.dilation_x};
        if (kernel != Pair{3, 3} || stride != Pair{1, 1} || dilation != Pair{1, 1})
            argument("algo").value_error("expected a kernel of (3, 3), stride and dilation 1 for '" + name +
                                         "', got kernel " + format_pair(kernel) + ", stride " + format_pair(stride) +
                                         ", dilation " + format_pair(dilation));
        return found;
    }

    std::array<Sides, 2> read_padding() {
        const std::array<Sides, 2> pads = read_sides(options_.padding, op_.rank,
                                                     {{{s_.height, s_.kernel_height, s_.stride_y, s_.dilation_y},
                                                       {s_.width, s_.kernel_width, s_.stride_x, s_.dilation_x}}},
                                                     argument("padding"));
        s_.pad_top = pads[0].before;
        s_.pad_left = pads[1].before;
        return pads;
    }

    int64_t output_size(const char* direction, int64_t size, int64_t kernel, int64_t stride, int64_t dilation,
                        const Sides& pad) const {
        constexpr int64_t limit = int64_t{1} << 40;  // far beyond memory; keeps what follows from overflowing
        for (const int64_t value : {stride, dilation, pad.before, pad.behind})
            if (value > limit) argument("padding").value_error("expected stride, dilation and padding below 2**40");
        const int64_t room = size + pad.before + pad.behind;
        if (kernel > limit / dilation || dilation * (kernel - 1) + 1 > room)
            argument("w").value_error("expected a kernel within the padded " + std::string(direction) + " " +
                                      std::to_string(room) + ", got size " + std::to_string(kernel) +
                                      " with dilation " + std::to_string(dilation));
        return (room - dilation * (kernel - 1) - 1) / stride + 1;
    }

    int64_t transposed_size(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, const Sides& pad,
                            int64_t more) const {
        constexpr int64_t limit = int64_t{1} << 30;  // far beyond memory; keeps what follows from overflowing
        for (const int64_t value : {size, kernel, stride, dilation, pad.before, pad.behind})
            if (value > limit) argument("padding").value_error("expected sizes, strides and padding below 2**30");
        if (more >= std::max(stride, dilation))
            argument("output_padding")
                .value_error("expected less than the stride or the dilation, got " + std::to_string(more));
        const int64_t result = (size - 1) * stride - pad.before - pad.behind + dilation * (kernel - 1) + more + 1;
        if (size < 1 || result < 1)
            argument("padding").value_error("expected an output of at least one pixel, got " + std::to_string(result));
        return result;
    }

    const ConvolutionOp& op_;
    const Shape x_, w_;
    const ConvolutionOptions& options_;
    ConvolutionShape s_{};
};

}  // namespace

Convolution read_convolution(const ConvolutionOp& op, Shape x, Shape w, const ConvolutionOptions& options) {
    return Reader(op, x, w, options).read();
}

}  // namespace tbptt::python
