// Loops that apply a vector function to arrays, and the activations behind a linear layer.
#pragma once

#include "../api.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
constexpr int math_together = TBPTT_REGISTERS == 32 ? 4 : 2;  // vectors whose latencies overlap

// to = function(from), where function takes and returns a Wide<T, N> for any N
template <class T, class Function>
TBPTT_INLINE void map(int64_t count, const T* from, T* to, Function function) {
    constexpr int L = lanes<T>, N = math_together<T>;
    int64_t i = 0;
    for (; i + N * L <= count; i += N * L) {
        const auto result = function(each<T, N>([&](int n) { return load(from + i + n * L); }));
        for (int n = 0; n < N; ++n) store(to + i + n * L, result.part[n]);
    }
    for (; i < count; i += L)
        store_partial(to + i, function(Wide<T, 1>{{load_partial(from + i, count - i)}}).part[0], count - i);
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

}  // namespace TBPTT_ISA
}  // namespace tbptt
