// The plain recurrent cell (Elman 1990): h = f(x·W_ihᵀ + h'·W_hhᵀ + b).
#pragma once

#include "cell.h"

namespace tbptt {

template <class M>
struct RnnTanh {
    using V = typename M::Value;
    static constexpr CellShape shape{1, 0, 1, false, false, false};

    static TBPTT_CELL void forward(const V* input, const V* recurrent, V, V, V*, V& h, V&) {
        h = M::tanh(input[0] + recurrent[0]);
    }

    static TBPTT_CELL void backward(const V*, V h, V, V, V, V dh, V, V* dgates, V&) {
        dgates[0] = dh * (M::one() - h * h);
    }
};

template <class M>
struct RnnRelu {
    using V = typename M::Value;
    static constexpr CellShape shape = RnnTanh<M>::shape;

    static TBPTT_CELL void forward(const V* input, const V* recurrent, V, V, V*, V& h, V&) {
        h = M::relu(input[0] + recurrent[0]);
    }

    // relu'(0) = 0
    static TBPTT_CELL void backward(const V*, V h, V, V, V, V dh, V, V* dgates, V&) {
        dgates[0] = M::relu_gradient(h, dh);
    }
};

}  // namespace tbptt
