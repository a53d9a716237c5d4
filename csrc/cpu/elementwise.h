// Loops that apply a vector function to arrays, and the activations behind a linear layer.
#pragma once

#include "../api.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
constexpr int math_together = TBPTT_REGISTERS == 32 ? 4 : 2;  // vectors whose latencies overlap

constexpr double cost_of_an_activation = 8;  // of one element, in units of `threads_for`

// Calls body(begin, count) for parts of 0 … count-1 that begin at cache lines, so that no two workers write to one.
template <class T, class Body>
TBPTT_INLINE void share_elements(int64_t count, Body body) {
    constexpr int64_t line = 64 / sizeof(T);
    run_parallel(threads_for(cost_of_an_activation * static_cast<double>(count)), [&](const Worker& worker) {
        const Range lines = split(ceil_div(count, line), worker);
        const int64_t begin = lines.begin * line, end = smaller(lines.end * line, count);
        if (begin < end) body(begin, end - begin);
    });
}

// to = function(from), where function takes and returns a Wide<T, N> for any N
template <class T, class Function>
TBPTT_INLINE void map_part(int64_t count, const T* from, T* to, Function function) {
    constexpr int L = lanes<T>, N = math_together<T>;
    int64_t i = 0;
    for (; i + N * L <= count; i += N * L) {
        const auto result = function(each<T, N>([&](int n) { return load(from + i + n * L); }));
        for (int n = 0; n < N; ++n) store(to + i + n * L, result.part[n]);
    }
    for (; i < count; i += L)
        store_partial(to + i, function(Wide<T, 1>{{load_partial(from + i, count - i)}}).part[0], count - i);
}

template <class T, class Function>
TBPTT_INLINE void map(int64_t count, const T* from, T* to, Function function) {
    share_elements<T>(count, [&](int64_t begin, int64_t part) { map_part(part, from + begin, to + begin, function); });
}

template <class T, int N>
TBPTT_INLINE Wide<T, N> activate(Activation activation, Wide<T, N> x) {
    switch (activation) {
        case Activation::relu: return VecMath<T, N>::relu(x);
        case Activation::tanh: return VecMath<T, N>::tanh(x);
        case Activation::sigmoid: return VecMath<T, N>::sigmoid(x);
        default: return x;
    }
}

// The gradient before the activation, from its output y; relu'(0) = 0.
template <class T, int N>
TBPTT_INLINE Wide<T, N> activation_gradient(Activation activation, Wide<T, N> y, Wide<T, N> dy) {
    const T one = 1;
    switch (activation) {
        case Activation::relu: return VecMath<T, N>::relu_gradient(y, dy);
        case Activation::tanh: return dy * (one - y * y);
        case Activation::sigmoid: return dy * y * (one - y);
        default: return dy;
    }
}

template <class T>
TBPTT_INLINE void activation_gradients(Activation activation, int64_t count, const T* y, const T* dy, T* to) {
    for (int64_t i = 0; i < count; i += lanes<T>) {
        const Wide<T, 1> value{{load_partial(y + i, count - i)}}, gradient{{load_partial(dy + i, count - i)}};
        store_partial(to + i, activation_gradient(activation, value, gradient).part[0], count - i);
    }
}

template <class T>
void activation_backward(const ActivationBackward<T>& p) {
    share_elements<T>(p.count, [&](int64_t begin, int64_t count) {
        activation_gradients(p.activation, count, p.y + begin, p.grad_y + begin, p.grad_x + begin);
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
