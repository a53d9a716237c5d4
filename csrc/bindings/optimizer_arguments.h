// The options and lists of arrays of the optimizers, read in one way for every place where arrays may lie. `Lists` is
// ArrayLists<T, …>.
#pragma once

#include "arguments.h"
#include "array_lists.h"

namespace tbptt::python {

// What is done to the gradients before a step.
struct Clipping {
    double max_norm, clip_value;  // infinite for none
    bool skip;                    // a non-finite gradient skips the step instead of raising
    bool maximize;
};

double read_limit(py::handle given, const Argument& argument);
Clipping read_clipping(py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle maximize,
                       const char* op);

struct SgdOptions {
    double lr, mu, dampening, weight_decay;
    bool nesterov, velocity;

    // A velocity holds the rates of its steps: -lr is on the gradients instead, and what they made is added.
    double factor() const { return velocity ? -lr : 1; }

    template <class T>
    SgdStep<T> step(Parameters<T> list) const {
        list.factor *= factor();
        return {list, velocity ? -1 : lr, mu, factor() * weight_decay, 1 - dampening, nesterov};
    }
};
SgdOptions read_sgd(py::handle lr, py::handle mu, py::handle dampening, py::handle nesterov, py::handle velocity,
                    py::handle weight_decay);

struct RmspropOptions {
    double lr, alpha, eps, mu, weight_decay;

    template <class T>
    RmspropStep<T> step(const Parameters<T>& list, bool centered) const {
        return {list, lr, alpha, eps, mu, weight_decay, centered};
    }
};
RmspropOptions read_rmsprop(py::handle lr, py::handle alpha, py::handle eps, py::handle mu, py::handle weight_decay);

struct AdamOptions {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled;

    template <class T>
    AdamStep<T> step(const Parameters<T>& list, double number, bool amsgrad) const {
        return {list, lr / (1 - std::pow(beta1, number)), 1 / std::sqrt(1 - std::pow(beta2, number)), beta1,  beta2,
                eps,  decoupled ? 0 : weight_decay,       decoupled ? 1 - lr * weight_decay : 1,      amsgrad};
    }
};
AdamOptions read_adam(py::handle lr, py::handle beta1, py::handle beta2, py::handle eps, py::handle weight_decay,
                      py::handle decoupled);

// With mu = 0 the momentum may be given, and is left alone.
template <class Lists, class Member>
void add_momentum(Lists& lists, py::handle given, double mu, Member member, const char* op) {
    if (!given.is_none())
        lists.add_state("momentum", given, member);
    else if (mu > 0)
        Argument{op, "momentum"}.value_error("expected a list of arrays with mu > 0, got None");
}

template <class Lists>
void add_sgd_lists(Lists& lists, py::handle grads, py::handle momentum, const SgdOptions& options) {
    using Array = OptimizerArray<typename Lists::Value>;
    add_momentum(lists, momentum, options.mu, &Array::first, "sgd_step");
    lists.check_overlap();
    lists.add_grads(grads);
}

template <class Lists>
void add_rmsprop_lists(Lists& lists, py::handle grads, py::handle square_avg, py::handle momentum, py::handle grad_avg,
                       const RmspropOptions& options) {
    using Array = OptimizerArray<typename Lists::Value>;
    lists.add_state("square_avg", square_avg, &Array::first);
    add_momentum(lists, momentum, options.mu, &Array::second, "rmsprop_step");
    if (!grad_avg.is_none()) lists.add_state("grad_avg", grad_avg, &Array::third);
    lists.check_overlap();
    lists.add_grads(grads);
}

template <class Lists>
void add_adam_lists(Lists& lists, py::handle grads, py::handle exp_avg, py::handle exp_avg_sq,
                    py::handle max_exp_avg_sq) {
    using Array = OptimizerArray<typename Lists::Value>;
    lists.add_state("exp_avg", exp_avg, &Array::first);
    lists.add_state("exp_avg_sq", exp_avg_sq, &Array::second);
    if (!max_exp_avg_sq.is_none()) lists.add_state("max_exp_avg_sq", max_exp_avg_sq, &Array::third);
    lists.check_overlap();
    lists.add_grads(grads);
}

}  // namespace tbptt::python
