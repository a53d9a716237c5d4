// Losses of one value, once: on vectors of the CPU, on a number in a CUDA thread.
#pragma once

#include "../api.h"
#include "cell.h"

namespace tbptt {

// The loss and its slope by the prediction, which at a kink is 0 and which carries a NaN on.
template <class V>
struct LossAndSlope {
    V loss, slope;
};

// ±1 for its sign, and x itself where it has none: zero or NaN.
template <class V>
TBPTT_CELL V sign_or_self(V x) {
    const V one = 1.0 - V{};
    return x > 0 ? one : x < 0 ? -one : x;
}

// `delta` is Huber's.
template <Loss kind, class V>
TBPTT_CELL LossAndSlope<V> loss_of(V prediction, V target, V delta) {
    if constexpr (kind == Loss::hinge) {
        const V missing = 1.0 - target * prediction, none{};  // to the margin
        return {missing <= 0 ? none : missing, missing <= 0 ? none : missing > 0 ? -target : missing};
    } else {
        const V difference = prediction - target, sign = sign_or_self(difference), size = sign * difference;
        if constexpr (kind == Loss::squared) return {difference * difference, 2.0 * difference};
        if constexpr (kind == Loss::absolute) return {size, sign};
        if constexpr (kind == Loss::huber)
            return {size <= delta ? 0.5 * difference * difference : delta * (size - 0.5 * delta),
                    size <= delta ? difference : delta * sign};
    }
}

}  // namespace tbptt
