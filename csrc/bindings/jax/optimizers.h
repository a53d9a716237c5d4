// The optimizers for XLA: one call updates all parameters, in place where XLA has aliased a result with its input. A call's
// options are `sizes`, the elements of each array, and the settings; the learning rate, the number of the step and Adam's eps
// may be traced, and come as an array of the three.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../../dispatch.h"
#include "../optimizer_arguments.h"
#include "call.h"

namespace tbptt::jax {

// (params, grads, states of each kind, [lr, step, eps]) -> (params, states of each kind, norm of all gradients).
template <class T>
class Lists {
   public:
    // `states`: the members of OptimizerArray that hold them
    Lists(Call& call, std::initializer_list<T * OptimizerArray<T>::*> states) {
        const auto sizes = call.option<Integers>("sizes");
        arrays_.resize(sizes.size());
        std::vector<std::pair<T * OptimizerArray<T>::*, const T*>> given;
        const auto take = [&](T* OptimizerArray<T>::* member) {
            for (const int64_t size : sizes) given.emplace_back(member, call.input<T>(size));
        };
        take(&OptimizerArray<T>::param);
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            arrays_[i].count = sizes.begin()[i];
            arrays_[i].grad = call.input<T>(sizes.begin()[i]);
        }
        for (const auto member : states) take(member);
        const T* scalars = call.input<T>(3);
        lr = static_cast<double>(scalars[0]);
        step = static_cast<double>(scalars[1]);
        eps = static_cast<double>(scalars[2]);
        for (std::size_t i = 0; i < given.size(); ++i) {
            OptimizerArray<T>& array = arrays_[i % arrays_.size()];
            T* const to = call.output<T>(array.count);
            if (to != given[i].second && array.count > 0)
                std::memcpy(to, given[i].second, static_cast<std::size_t>(array.count) * sizeof(T));
            array.*given[i].first = to;
        }
        norm_ = call.output<T>(1);
        call.no_more();
    }

    // step(list) makes the update, unless a gradient is not finite: the norm is NaN then, and nothing changes.
    template <class Step>
    void update(const Call& call, const Step& make_step) const {
        const auto max_norm = call.option<double>("max_norm"), clip_value = call.option<double>("clip_value");
        double norm = 0;
        int64_t non_finite = -1;
        Parameters<T> list{arrays_.data(), static_cast<int64_t>(arrays_.size()), clip_value, 1};
        kernels<T>().gradient_norm({list, &norm, &non_finite});
        *norm_ = static_cast<T>(norm);
        if (std::isnan(norm)) return;
        list.factor = std::min(1.0, max_norm / (norm + call.option<double>("norm_eps")));
        make_step(list);
    }

    double lr, step, eps;

   private:
    std::vector<OptimizerArray<T>> arrays_;
    T* norm_;
};

struct SgdOp {
    template <class T>
    static void run(Call& call, T) {
        const auto mu = call.option<double>("mu");
        const Lists<T> lists = mu > 0 ? Lists<T>(call, {&OptimizerArray<T>::first}) : Lists<T>(call, {});
        const python::SgdOptions options{lists.lr,
                                         mu,
                                         call.option<double>("dampening"),
                                         call.option<double>("weight_decay"),
                                         call.option<bool>("nesterov"),
                                         call.option<bool>("velocity")};
        lists.update(call, [&](const Parameters<T>& list) { kernels<T>().sgd_step(options.step(list)); });
    }
};

struct AdamOp {
    template <class T>
    static void run(Call& call, T) {
        using Array = OptimizerArray<T>;
        const bool amsgrad = call.option<bool>("amsgrad");
        const Lists<T> lists = amsgrad ? Lists<T>(call, {&Array::first, &Array::second, &Array::third})
                                       : Lists<T>(call, {&Array::first, &Array::second});
        const python::AdamOptions options{
            lists.lr,  call.option<double>("beta1"),        call.option<double>("beta2"),
            lists.eps, call.option<double>("weight_decay"), call.option<bool>("decoupled")};
        lists.update(
            call, [&](const Parameters<T>& list) { kernels<T>().adam_step(options.step(list, lists.step, amsgrad)); });
    }
};

}  // namespace tbptt::jax
