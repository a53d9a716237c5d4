// The optimizers' formulas for one element, once: on vectors of the CPU, on a number in a CUDA thread. A rule is made of the
// parameters of its step and called as rule.apply<M>(update), where M::Value is the type of the values and M::sqrt their root.
#pragma once

#include "../api.h"
#include "cell.h"

namespace tbptt {

// What is updated: an element of each array of a parameter.
template <class V>
struct Update {
    V param, grad, first, second, third;
};

// The optimizer's own arrays that a rule uses are a sum of these.
enum States { no_state = 0, first_state = 1, second_state = 2, third_state = 4 };

template <class V>
TBPTT_CELL V clip(V x, V limit) {
    return x > limit ? limit : x < -limit ? -limit : x;  // NaN stays
}

template <class T, bool momentum>
struct SgdRule {
    static constexpr int states = momentum ? first_state : no_state;
    T lr, mu, decay, share;
    bool nesterov;

    TBPTT_CELL_DRIVER explicit SgdRule(const SgdStep<T>& p)
        : lr(static_cast<T>(p.lr)),
          mu(static_cast<T>(p.mu)),
          decay(static_cast<T>(p.weight_decay)),
          share(static_cast<T>(p.grad_share)),
          nesterov(p.nesterov) {}

    template <class M>
    TBPTT_CELL void apply(Update<typename M::Value>& u) const {
        if constexpr (!momentum) {
            u.param -= lr * (u.grad + decay * u.param);
        } else {
            const typename M::Value grad = u.grad + decay * u.param;
            u.first = mu * u.first + share * grad;
            u.param -= lr * (nesterov ? grad + mu * u.first : u.first);
        }
    }
};

template <class T, bool centered, bool momentum>
struct RmspropRule {
    static constexpr int states = first_state | (momentum ? second_state : 0) | (centered ? third_state : 0);
    T lr, mu, decay, alpha, rest, eps;

    TBPTT_CELL_DRIVER explicit RmspropRule(const RmspropStep<T>& p)
        : lr(static_cast<T>(p.lr)),
          mu(static_cast<T>(p.mu)),
          decay(static_cast<T>(p.weight_decay)),
          alpha(static_cast<T>(p.alpha)),
          rest(static_cast<T>(1 - p.alpha)),
          eps(static_cast<T>(p.eps)) {}

    template <class M>
    TBPTT_CELL void apply(Update<typename M::Value>& u) const {
        using V = typename M::Value;
        const V grad = u.grad + decay * u.param;
        u.first = alpha * u.first + rest * (grad * grad);
        V variance = u.first;
        if constexpr (centered) {
            u.third = alpha * u.third + rest * grad;
            variance -= u.third * u.third;
            variance = variance < 0 ? V{} : variance;  // by rounding
        }
        const V scaled = grad / (M::sqrt(variance) + eps);
        if constexpr (momentum) u.second = mu * u.second + scaled;
        u.param -= lr * (momentum ? u.second : scaled);
    }
};

template <class T, bool amsgrad>
struct AdamRule {
    static constexpr int states = first_state | second_state | (amsgrad ? third_state : 0);
    T decay, beta1, rest1, beta2, rest2, keep, step_size, inverse_root, eps;

    TBPTT_CELL_DRIVER explicit AdamRule(const AdamStep<T>& p)
        : decay(static_cast<T>(p.grad_decay)),
          beta1(static_cast<T>(p.beta1)),
          rest1(static_cast<T>(1 - p.beta1)),
          beta2(static_cast<T>(p.beta2)),
          rest2(static_cast<T>(1 - p.beta2)),
          keep(static_cast<T>(p.param_keep)),
          step_size(static_cast<T>(p.step_size)),
          inverse_root(static_cast<T>(p.inverse_root)),
          eps(static_cast<T>(p.eps)) {}

    template <class M>
    TBPTT_CELL void apply(Update<typename M::Value>& u) const {
        using V = typename M::Value;
        const V grad = u.grad + decay * u.param;
        u.first = beta1 * u.first + rest1 * grad;
        u.second = beta2 * u.second + rest2 * (grad * grad);
        if constexpr (amsgrad) u.third = u.second > u.third ? u.second : u.third;
        const V square = amsgrad ? u.third : u.second;
        u.param = keep * u.param - step_size * u.first / (M::sqrt(square) * inverse_root + eps);
    }
};

// Calls f(rule) with the rule of a step.
template <class T, class F>
TBPTT_CELL_DRIVER void with_rule(const SgdStep<T>& p, F f) {
    p.mu == 0 ? f(SgdRule<T, false>(p)) : f(SgdRule<T, true>(p));
}

template <class T, class F>
TBPTT_CELL_DRIVER void with_rule(const RmspropStep<T>& p, F f) {
    if (p.centered)
        p.mu == 0 ? f(RmspropRule<T, true, false>(p)) : f(RmspropRule<T, true, true>(p));
    else
        p.mu == 0 ? f(RmspropRule<T, false, false>(p)) : f(RmspropRule<T, false, true>(p));
}

template <class T, class F>
TBPTT_CELL_DRIVER void with_rule(const AdamStep<T>& p, F f) {
    p.amsgrad ? f(AdamRule<T, true>(p)) : f(AdamRule<T, false>(p));
}

}  // namespace tbptt
