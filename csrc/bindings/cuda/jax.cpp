// The library's functions that XLA calls on a device: those of ../jax, with kernels on XLA's stream.
#include "../jax/convolution.h"
#include "../jax/convrecurrent.h"
#include "../jax/recurrent.h"
#include "device_recurrent.h"

namespace tbptt {

namespace jax {

namespace {

cuda::Call on_stream(const Call& call) {
    return {static_cast<cuda::Stream>(call.stream()), call.option<bool>("exact")};
}

template <class T>
auto copy_on(const Call& call) {
    const auto stream = static_cast<cuda::Stream>(call.stream());
    return [stream](const T* from, T* to, int64_t count) { python::copy_or_zero(from, to, count, stream); };
}

struct Device {
    template <class T>
    static void recurrent_forward(const Call& call, RecurrentForward<T>& p, T* h_n) {
        python::run_recurrent_forward(p, h_n, on_stream(call));
    }
    template <class T>
    static void recurrent_backward(const Call& call, RecurrentBackward<T>& p, Truncation truncation) {
        python::run_recurrent_backward(p, truncation, on_stream(call));
    }
    template <class T>
    static void convrecurrent_forward(const Call& call, ConvRecurrentForward<T>& p, T* h_n, int64_t state) {
        const ConvRecurrentShape& shape = p.layer.shape;
        const auto copy = copy_on<T>(call);
        p.tape = without_output(shape.cell, p.tape);
        if (shape.steps > 0 && shape.batch > 0) cuda::convrecurrent_forward(p, on_stream(call));
        copy(shape.steps > 0 ? p.out + (shape.steps - 1) * state : p.layer.h0, h_n, state);
        if (p.c_n && shape.steps == 0) copy(p.layer.c0, p.c_n, state);
    }
    template <class T>
    static void convrecurrent_backward(const Call& call, ConvRecurrentBackward<T>& p, Truncation truncation) {
        const ConvRecurrentShape& shape = p.layer.shape;
        p.tape = without_output(shape.cell, p.tape);
        if (shape.steps == 0 || shape.batch == 0) return python::pass_conv_through(p, copy_on<T>(call));
        cuda::convrecurrent_backward(p, truncation, on_stream(call));
    }
    template <class T>
    static void convolution_forward(const Call& call, const ConvolutionForward<T>& p) {
        cuda::convolution_forward(p, on_stream(call));
    }
    template <class T>
    static void convolution_backward(const Call& call, const ConvolutionBackward<T>& p) {
        cuda::convolution_backward(p, on_stream(call));
    }

   private:
    // A plain cell's h is the output here; the shape of what is kept is the same wherever a program runs.
    template <class T>
    static ConvRecurrentTape<T> without_output(Cell cell, const ConvRecurrentTape<T>& tape) {
        return python::gates(cell) > 1 ? tape : ConvRecurrentTape<T>{};
    }
};

#ifdef TBPTT_EMULATED
constexpr bool has_stream = false;  // the device is the host, whose programs have none
#else
constexpr bool has_stream = true;
#endif
template <class Op>
constexpr auto handler = &handle<Op, has_stream>;

constexpr Target targets[] = {
    {"tbptt_fast_recurrent_forward", handler<RecurrentForwardOp<Device>>},
    {"tbptt_fast_recurrent_backward", handler<RecurrentBackwardOp<Device>>},
    {"tbptt_fast_convrecurrent_forward", handler<ConvRecurrentForwardOp<Device>>},
    {"tbptt_fast_convrecurrent_backward", handler<ConvRecurrentBackwardOp<Device>>},
    {"tbptt_fast_convolution_forward", handler<ConvolutionForwardOp<Device>>},
    {"tbptt_fast_convolution_backward", handler<ConvolutionBackwardOp<Device>>},
};

}  // namespace

}  // namespace jax

namespace python {

void register_cuda_jax(py::module_& module) {
    module.def("jax_targets", [] { return jax::as_capsules(jax::targets); });
}

}  // namespace python

}  // namespace tbptt
