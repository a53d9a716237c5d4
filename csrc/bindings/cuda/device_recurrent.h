// The recurrent layers' kernels on a device, and what is left to do around them (see ../host_recurrent.h): for calls from
// Python, and for those that XLA makes.
#pragma once

#include "../../cuda/api.h"
#include "../recurrent_arguments.h"
#include "arrays.h"

namespace tbptt::python {

// p.c_n is null but for an LSTM.
template <class T>
void run_recurrent_forward(const RecurrentForward<T>& p, T* h_n, const cuda::Call& call) {
    const auto [cell, steps, batch, inputs, hidden] = p.layer.shape;
    const int64_t last = batch * hidden;
    if (steps == 0 || batch == 0) {
        copy_or_zero(p.layer.h0, h_n, last, call.stream);
        if (p.c_n) copy_or_zero(p.layer.c0, p.c_n, last, call.stream);
    } else {
        cuda::recurrent_forward(p, call);
        copy_or_zero<T>(p.out + (steps - 1) * last, h_n, last, call.stream);
    }
}

template <class T>
void run_recurrent_backward(const RecurrentBackward<T>& p, Truncation truncation, const cuda::Call& call) {
    if (p.layer.shape.steps == 0 || p.layer.shape.batch == 0)
        pass_through(p, [&](const T* from, T* to, int64_t count) { copy_or_zero(from, to, count, call.stream); });
    else
        cuda::recurrent_backward(p, truncation, call);
}

}  // namespace tbptt::python
