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
struct ActivateSums {
    Activation activation;
    std::int64_t count;
    const Real<T>* from;
    T* to;  // may be the same
};

template <class T, bool Groups>
__global__ void activate_sums(const ActivateSums<T> p) {
    constexpr int width = Groups ? Group<Real<T>>::size : 1;
    for (std::int64_t i = global_index(); i < p.count / width; i += global_count()) {
        const Group<Real<T>, width> sums = reinterpret_cast<const Group<Real<T>, width>*>(p.from)[i];
        Group<T, width> values;
#pragma unroll
        for (int e = 0; e < width; ++e) values.value[e] = T(activate(p.activation, sums.value[e]));
        reinterpret_cast<Group<T, width>*>(p.to)[i] = values;
    }
}

template <class T>
void run_activation(const ActivateSums<T>& p, Stream stream) {
    constexpr int group = Group<Real<T>>::size;
    const bool groups = p.count % group == 0 && in_groups(p.from) && in_groups(p.to);
    launch(groups ? activate_sums<T, true> : activate_sums<T, false>, grid_for(groups ? p.count / group : p.count),
           stream, p);
}

}  // namespace cuda
}  // namespace tbptt
