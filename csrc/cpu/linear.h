// The linear layer y = f(x·Wᵀ + b), forward and backward.
#pragma once

#include "elementwise.h"
#include "pack.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t linear_block = 96;  // rows that stay in the second-level cache for all panels

// product() over rows of a contiguous matrix [rows][ld], shared out among workers in blocks of rows; where these are fewer
// than the workers, in parts of the panels too.
template <class T, class Finish>
TBPTT_INLINE void product_of_matrix(const Worker& worker, const T* a, int64_t rows, int64_t ld, const Packed<T>& b,
                                    Finish finish) {
    const int64_t blocks = ceil_div(rows, linear_block);
    const int64_t parts = larger<int64_t>(1, smaller(b.panels, ceil_div(worker.count, larger<int64_t>(1, blocks))));
    const Range mine = split(blocks * parts, worker);
    const T* pointers[linear_block];
    for (int64_t part = mine.begin; part < mine.end; ++part) {
        const int64_t first = part / parts * linear_block, count = smaller(linear_block, rows - first);
        for (int64_t i = 0; i < count; ++i) pointers[i] = a + (first + i) * ld;
        product<T>(pointers, count, b, split(b.panels, part % parts, parts),
                   [&](int64_t p, int64_t row, int height, const T* c) {
                       for (int r = 0; r < height; ++r) finish(first + row + r, p * b.width(), c + r * b.width());
                   });
    }
}

template <class T>
void linear_forward(const LinearForward<T>& p) {
    Packed<T> w = layout_panels<T>(p.inputs, p.outputs, choose_vectors<T>(p.outputs));
    Buffer<T> packed(w.size());
    w.data = packed;
    run_parallel(threads_for(2.0 * static_cast<double>(p.rows * p.inputs) * static_cast<double>(p.outputs)),
                 [&](const Worker& worker) {
                     const Range panels = split(w.panels, worker);
                     for (int64_t i = panels.begin; i < panels.end; ++i) pack_gates(w, i, p.w, 1, p.outputs);
                     wait_for_all(worker);
                     product_of_matrix(worker, p.x, p.rows, p.inputs, w, [&](int64_t row, int64_t column, const T* c) {
                         write_columns(p.y + row * p.outputs, p.outputs, column, w.width(), c,
                                       [&](Vec<T> sum, int64_t j) {
                                           if (p.b) sum += load_partial(p.b + j, p.outputs - j);
                                           return activate(p.activation, Wide<T, 1>{{sum}}).part[0];
                                       });
                     });
                 });
}

template <class T>
void linear_backward(const LinearBackward<T>& p) {
    const bool activated = p.activation != Activation::none;
    Packed<T> w = layout_panels<T>(p.outputs, p.inputs, choose_vectors<T>(p.inputs));
    Buffer<T> packed(p.grad_x ? w.size() : 0), before(activated ? p.rows * p.outputs : 0);
    Buffer<const T*> rows(p.rows);
    w.data = packed;
    const T* grad = activated ? static_cast<const T*>(before) : p.grad_y;
    const GradientOperand<T> operand{rows, p.grad_w ? p.inputs : 0, p.grad_w, p.grad_b, 0, p.inputs, 1};
    const GradientBlock block{0, p.outputs, {0, -1}};
    const int threads = threads_for(4.0 * static_cast<double>(p.rows * p.inputs) * static_cast<double>(p.outputs));
    WeightGradient<T> gradient(p.rows, grad, p.outputs, &block, 1, &operand, 1, threads);
    const auto prepare = [&](const Worker& worker) {
        const Range panels = split(p.grad_x ? w.panels : 0, worker), mine = split(p.rows, worker);
        for (int64_t i = panels.begin; i < panels.end; ++i) pack_rows(w, i, p.w, p.inputs, p.inputs);
        for (int64_t i = mine.begin; i < mine.end; ++i) rows[i] = p.x + i * p.inputs;
        if (!activated) return;
        const int64_t first = mine.begin * p.outputs, count = (mine.end - mine.begin) * p.outputs;
        activation_gradients<T>(p.activation, count, p.y + first, p.grad_y + first, before + first);
    };
    run_parallel(threads, [&](const Worker& worker) {
        prepare(worker);
        wait_for_all(worker);
        if (p.grad_x)
            product_of_matrix(worker, grad, p.rows, p.outputs, w, [&](int64_t row, int64_t column, const T* c) {
                write_columns(p.grad_x + row * p.inputs, p.inputs, column, w.width(), c,
                              [](Vec<T> sum, int64_t) { return sum; });
            });
        if (p.grad_w || p.grad_b) gradient.run(worker);
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
