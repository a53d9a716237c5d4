// Calls of XLA whose arrays lie in the host's memory.
#pragma once

#include "../host_recurrent.h"
#include "call.h"

namespace tbptt::jax {

struct Host {
    template <class T>
    static void recurrent_forward(const Call&, RecurrentForward<T>& p, T* h_n) {
        python::run_recurrent_forward(p, h_n);
    }
    template <class T>
    static void recurrent_backward(const Call&, RecurrentBackward<T>& p, Truncation truncation) {
        python::run_recurrent_backward(p, truncation);
    }
    template <class T>
    static void convrecurrent_forward(const Call&, const ConvRecurrentForward<T>& p, T* h_n, int64_t state) {
        const ConvRecurrentShape& shape = p.layer.shape;
        if (shape.steps > 0 && shape.batch > 0) kernels<T>().convrecurrent_forward(p);
        python::copy_or_zero(shape.steps > 0 ? p.out + (shape.steps - 1) * state : p.layer.h0, h_n, state);
        if (p.c_n && shape.steps == 0) python::copy_or_zero(p.layer.c0, p.c_n, state);
    }
    template <class T>
    static void convrecurrent_backward(const Call&, ConvRecurrentBackward<T>& p, Truncation truncation) {
        python::run_convrecurrent_backward(p, truncation);
    }
    template <class T>
    static void convolution_forward(const Call&, const ConvolutionForward<T>& p) {
        kernels<T>().convolution_forward(p);
    }
    template <class T>
    static void convolution_backward(const Call&, const ConvolutionBackward<T>& p) {
        kernels<T>().convolution_backward(p);
    }
};

}  // namespace tbptt::jax
