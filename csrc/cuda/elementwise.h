// Functions of each element by itself: exp, activations and their gradients.
#pragma once

#include "activation.h"
#include "api.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

// Calls body(Constant<n>, i) for the elements i … i + n - 1, by this thread's share of 0 … count - 1.
template <class T, class Body>
TBPTT_DEVICE void for_each_vector(std::int64_t count, bool by_vectors, Body body) {
    constexpr int L = vector_values<T>;
    const std::int64_t whole = by_vectors ? count / L * L : 0;
    for (std::int64_t i = L * global_index(); i < whole; i += L * global_count()) body(Constant<L>(), i);
    for (std::int64_t i = whole + global_index(); i < count; i += global_count()) body(Constant<1>(), i);
}

template <class T>
struct Exponentials {
    std::int64_t count;
    const T* from;
    T* to;
    bool by_vectors;
};

template <class T>
__global__ void exponentiate(const Exponentials<T> p) {
    for_each_vector<T>(p.count, p.by_vectors, [&](auto vector, std::int64_t i) {
        constexpr int L = decltype(vector)::value;
        auto x = load_vector<L>(p.from + i);
#pragma unroll
        for (int k = 0; k < L; ++k) x.value[k] = exponential(x.value[k]);
        store_vector(p.to + i, x);
    });
}

template <class T>
void exponentials(std::int64_t count, const T* from, T* to, const Call& call) {
    launch(&exponentiate<T>, grid_for(divide_up(count, vector_values<T>)), call.stream,
           Exponentials<T>{count, from, to, all_aligned(from, to)});
}

template <class T>
void activations(Activation activation, std::int64_t count, const T* from, T* to, const Call& call) {
    run_activation(ActivateSums<T>{activation, count, from, to}, call.stream);
}

template <class T>
struct ActivationGradients {
    ActivationBackward<T> p;
    bool by_vectors;
};

template <class T>
__global__ void find_activation_gradients(const ActivationGradients<T> p) {
    for_each_vector<T>(p.p.count, p.by_vectors, [&](auto vector, std::int64_t i) {
        constexpr int L = decltype(vector)::value;
        const auto y = load_vector<L>(p.p.y + i);
        auto grad = load_vector<L>(p.p.grad_y + i);
#pragma unroll
        for (int k = 0; k < L; ++k) grad.value[k] = activation_gradient(p.p.activation, y.value[k], grad.value[k]);
        store_vector(p.p.grad_x + i, grad);
    });
}

template <class T>
void activation_backward(const ActivationBackward<T>& p, const Call& call) {
    launch(&find_activation_gradients<T>, grid_for(divide_up(p.count, vector_values<T>)), call.stream,
           ActivationGradients<T>{p, all_aligned(p.grad_y, p.y, p.grad_x)});
}

}  // namespace cuda
}  // namespace tbptt
