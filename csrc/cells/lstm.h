// The long short-term memory cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), gates in the
// order i, f, g, o:  c = f·c' + i·g,  h = o·tanh(c). With peepholes (Gers & Schmidhuber 2000) the gates i and f see c',
// and o sees c, each through a weight of its own.
#pragma once

#include "cell.h"

namespace tbptt {

template <class M>
struct Lstm {
    using V = typename M::Value;
    static constexpr CellShape shape{4, 4, 4, true, true, false, 0b1011};

    // p: the peepholes of i, f and o, or null
    static TBPTT_CELL void forward(const V* input, const V* recurrent, V, V c_before, V* saved, V& h, V& c,
                                   const V* p = nullptr) {
        V in_i = input[0] + recurrent[0], in_f = input[1] + recurrent[1], in_o = input[3] + recurrent[3];
        if (p) {
            in_i = in_i + p[0] * c_before;
            in_f = in_f + p[1] * c_before;
        }
        const V i = M::sigmoid(in_i);
        const V f = M::sigmoid(in_f);
        const V g = M::tanh(input[2] + recurrent[2]);
        c = f * c_before + i * g;
        if (p) in_o = in_o + p[2] * c;
        const V o = M::sigmoid(in_o);
        h = o * M::tanh(c);
        saved[0] = i;
        saved[1] = f;
        saved[2] = g;
        saved[3] = o;
    }

    // carry: the gradient of c that the later step passed back
    static TBPTT_CELL void backward(const V* saved, V, V, V c_before, V c, V dh, V carry, V* dgates, V& carry_out,
                                    const V* p = nullptr) {
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], one = M::one();
        const V t = M::tanh(c);
        V dc = carry + dh * o * (one - t * t);
        dgates[3] = dh * t * o * (one - o);
        if (p) dc = dc + dgates[3] * p[2];
        dgates[0] = dc * g * i * (one - i);
        dgates[1] = dc * c_before * f * (one - f);
        dgates[2] = dc * i * (one - g * g);
        carry_out = dc * f;
        if (p) carry_out = carry_out + dgates[0] * p[0] + dgates[1] * p[1];
    }
};

}  // namespace tbptt
