// A recurrent layer's pass on the CPU: cut into segments, which the kernels run side by side.
#pragma once

#include <vector>

#include "../dispatch.h"
#include "convrecurrent_arguments.h"
#include "tape.h"

namespace tbptt::python {

// Fills p's segments and results, and h_n [B, H].
template <class T>
void run_recurrent_forward(RecurrentForward<T>& p, T* h_n) {
    const RecurrentShape& shape = p.layer.shape;
    const int64_t last = shape.batch * shape.hidden;
    if (shape.steps == 0 || shape.batch == 0) {
        copy_or_zero(p.layer.h0, h_n, last);
        if (p.c_n) copy_or_zero(p.layer.c0, p.c_n, last);
        return;
    }
    const std::vector<Segment> segments = forward_segments(shape.steps, shape.batch, p.layer.is_init);
    p.segments = segments.data();
    p.segment_count = static_cast<int64_t>(segments.size());
    kernels<T>().recurrent_forward(p);
    copy_or_zero(p.out + (shape.steps - 1) * last, h_n, last);
}

// Fills p's segments and results.
template <class T>
void run_recurrent_backward(RecurrentBackward<T>& p, Truncation truncation) {
    const RecurrentShape& shape = p.layer.shape;
    if (shape.steps == 0 || shape.batch == 0) return pass_through(p, &copy_or_zero<T>);
    const std::vector<Segment> segments =
        backward_segments(shape.steps, shape.batch, truncation, p.layer.is_init, p.carry_scale);
    p.segments = segments.data();
    p.segment_count = static_cast<int64_t>(segments.size());
    kernels<T>().recurrent_backward(p);
}

// The same on images.
template <class T>
void run_convrecurrent_backward(ConvRecurrentBackward<T>& p, Truncation truncation) {
    const ConvRecurrentShape& shape = p.layer.shape;
    if (shape.steps == 0 || shape.batch == 0) return pass_conv_through(p, &copy_or_zero<T>);
    const std::vector<Segment> segments =
        backward_segments(shape.steps, shape.batch, truncation, p.layer.is_init, p.carry_scale);
    p.segments = segments.data();
    p.segment_count = static_cast<int64_t>(segments.size());
    kernels<T>().convrecurrent_backward(p);
}

}  // namespace tbptt::python
