// The long short-term memory cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), gates in the
// order i, f, g, o:  c = f·c' + i·g,  h = o·tanh(c).
#pragma once

#include "cell.h"

namespace tbptt {

template <class M>
struct Lstm {
    using V = typename M::Value;
    static constexpr CellShape shape{4, 4, 4, true, true, false};

    static TBPTT_CELL void forward(const V* input, const V* recurrent, V, V c_before, V* saved, V& h, V& c) {
        const V i = M::sigmoid(input[0] + recurrent[0]);
        const V f = M::sigmoid(input[1] + recurrent[1]);
        const V g = M::tanh(input[2] + recurrent[2]);
        const V o = M::sigmoid(input[3] + recurrent[3]);
        c = f * c_before + i * g;
        h = o * M::tanh(c);
        saved[0] = i;
        saved[1] = f;
        saved[2] = g;
        saved[3] = o;
    }

    // carry: the gradient of c that the later step passed back
    static TBPTT_CELL void backward(const V* saved, V, V, V c_before, V c, V dh, V carry, V* dgates, V& carry_out) {
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], one = M::one();
        const V t = M::tanh(c);
        const V dc = carry + dh * o * (one - t * t);
        dgates[0] = dc * g * i * (one - i);
        dgates[1] = dc * c_before * f * (one - f);
        dgates[2] = dc * i * (one - g * g);
        dgates[3] = dh * t * o * (one - o);
        carry_out = dc * f;
    }
};

}  // namespace tbptt
