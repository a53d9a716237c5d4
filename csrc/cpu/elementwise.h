// Loops that apply a vector function to arrays, and the activations behind a linear layer.
#pragma once

#include "../api.h"
#include "vector_math.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T, class Function>
TBPTT_INLINE void map(int64_t count, const T* from, T* to, Function function) {
    constexpr int L = lanes<T>;
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, function(load(from + i)));
    if (i < count) store_partial(to + i, function(load_partial(from + i, count - i)), count - i);
}

template <class T>
TBPTT_INLINE Vec<T> activate(Activation activation, Vec<T> x) {
    switch (activation) {
        case Activation::relu: return VecMath<T>::relu(x);
        case Activation::tanh: return vec_tanh<T>(x);
        case Activation::sigmoid: return vec_sigmoid<T>(x);
        default: return x;
    }
}

// The gradient before the activation, from its output y; relu'(0) = 0.
template <class T>
TBPTT_INLINE Vec<T> activation_gradient(Activation activation, Vec<T> y, Vec<T> dy) {
    const Vec<T> one = broadcast(static_cast<T>(1));
    switch (activation) {
        case Activation::relu: return VecMath<T>::relu_gradient(y, dy);
        case Activation::tanh: return dy * (one - y * y);
        case Activation::sigmoid: return dy * y * (one - y);
        default: return dy;
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
