// Activations behind a layer, and their gradients from the output.
#pragma once

#include "../api_convolution.h"
#include "runtime.h"
#include "scalar_math.h"
#include "tiled_product.h"

namespace tbptt {
namespace cuda {

template <class T>
TBPTT_DEVICE T activate(Activation activation, T x) {
    switch (activation) {
        case Activation::relu: return ScalarMath<T>::relu(x);
        case Activation::tanh: return ScalarMath<T>::tanh(x);
        case Activation::sigmoid: return ScalarMath<T>::sigmoid(x);
        default: return x;
    }
}

// The gradient before the activation, from its output y; relu'(0) = 0. Where y is NaN, ReLU lets the gradient pass.
template <class T>
TBPTT_DEVICE T activation_gradient(Activation activation, T y, T dy) {
    switch (activation) {
        case Activation::relu: return y <= T(0) ? T(0) : dy;
        case Activation::tanh: return dy * (T(1) - y * y);
        case Activation::sigmoid: return dy * y * (T(1) - y);
        default: return dy;
    }
}

template <class T>
bool in_groups(const T* data) {
    return reinterpret_cast<std::uintptr_t>(data) % sizeof(Group<T>) == 0;
}

template <class T>
struct ActivateInPlace {
    Activation activation;
    std::int64_t count;
    T* y;
};

template <class T, bool Groups>
__global__ void activate_in_place(const ActivateInPlace<T> p) {
    using Access = Group<T, Groups ? Group<T>::size : 1>;
    constexpr int width = Access::size;
    for (std::int64_t i = global_index(); i < p.count / width; i += global_count()) {
        Access values = reinterpret_cast<const Access*>(p.y)[i];
#pragma unroll
        for (int e = 0; e < width; ++e) values.value[e] = activate(p.activation, values.value[e]);
        reinterpret_cast<Access*>(p.y)[i] = values;
    }
}

// A convolution's tiles end in ReLU by themselves; others would fill them with copies of their code.
template <class T>
void finish_activation(Activation activation, std::int64_t count, T* y, Stream stream) {
    if (activation == Activation::none || activation == Activation::relu) return;
    const bool groups = count % Group<T>::size == 0 && in_groups(y);
    launch(groups ? activate_in_place<T, true> : activate_in_place<T, false>,
           grid_for(groups ? count / Group<T>::size : count), stream, ActivateInPlace<T>{activation, count, y});
}

}  // namespace cuda
}  // namespace tbptt
