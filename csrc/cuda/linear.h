// The linear layer y = f(x·Wᵀ + b), forward and backward, by products of large matrices.
#pragma once

#include "column_sums.h"
#include "elementwise.h"
#include "product.h"
#include "transpose.h"

namespace tbptt {
namespace cuda {

template <class T>
void linear_forward(const LinearForward<T>& p, const Call& call) {
    Product<T> product{};
    product.rows = p.rows;
    product.columns = p.outputs;
    product.depth = p.inputs;
    product.along = true;
    product.a = p.x;
    product.a_stride = p.inputs;
    product.b = p.w;
    product.b_stride = p.inputs;
    product.bias = p.b;
    product.c = p.y;
    product.c_stride = p.outputs;
    multiply(product, call);
    if (p.activation != Activation::none) activations(p.activation, p.rows * p.outputs, p.y, p.y, call);
}

// grad_x = g·W, which asks for Wᵀ.
template <class T>
void linear_by_x(const LinearBackward<T>& p, const T* g, const Call& call) {
    const Scratch<T> weights(p.inputs * p.outputs, call.stream);
    turn(Transposition<T>{p.outputs, p.inputs, p.w, 0, weights}, call);
    Product<T> product{};
    product.rows = p.rows;
    product.columns = p.inputs;
    product.depth = p.outputs;
    product.along = true;
    product.a = g;
    product.a_stride = p.outputs;
    product.b = weights;
    product.b_stride = p.outputs;
    product.c = p.grad_x;
    product.c_stride = p.inputs;
    multiply(product, call);
}

// grad_w = gᵀ·x.
template <class T>
void linear_by_w(const LinearBackward<T>& p, const T* g, const Call& call) {
    Product<T> product{};
    product.rows = p.outputs;
    product.columns = p.inputs;
    product.depth = p.rows;
    product.a = g;
    product.a_stride = p.outputs;
    product.b = p.x;
    product.b_stride = p.inputs;
    product.c = p.grad_w;
    product.c_stride = p.inputs;
    multiply(product, call);
}

template <class T>
void linear_backward(const LinearBackward<T>& p, const Call& call) {
    const bool activated = p.activation != Activation::none;
    const std::int64_t count = p.rows * p.outputs;
    const Scratch<T> before(activated ? count : 0, call.stream);
    if (activated) activation_backward<T>({count, p.activation, p.grad_y, p.y, before}, call);
    const T* const g = activated ? static_cast<const T*>(before) : p.grad_y;
    if (p.grad_x) linear_by_x(p, g, call);
    if (p.grad_w) linear_by_w(p, g, call);
    if (!p.grad_b) return;
    ColumnSums<T> sums{};
    sums.rows = p.rows;
    sums.columns = p.outputs;
    sums.matrix = g;
    sums.stride = p.outputs;
    sums.sums = p.grad_b;
    add_columns(sums, call);
}

}  // namespace cuda
}  // namespace tbptt
