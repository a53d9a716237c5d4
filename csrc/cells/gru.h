// The gated recurrent unit (Cho et al. 2014) with the reset gate applied after the product, gates in the order r, z, n:
// n = tanh(x_n + r·h_n),  h = (1 - z)·n + z·h'.
#pragma once

#include "cell.h"

namespace tbptt {

template <class M>
struct Gru {
    using V = typename M::Value;
    // The candidate's input and recurrent parts have different gradients. Both are kept, at the two ends, so that the
    // columns that meet W_ih (n_x, r, z) and those that meet W_hh (r, z, n_h) are each contiguous.
    static constexpr CellShape shape{3, 4, 4, false, true, true, 0b0011};

    static TBPTT_CELL void forward(const V* input, const V* recurrent, V h_before, V, V* saved, V& h, V&) {
        const V r = M::sigmoid(input[0] + recurrent[0]);
        const V z = M::sigmoid(input[1] + recurrent[1]);
        const V n = M::tanh(input[2] + r * recurrent[2]);
        h = n + z * (h_before - n);
        saved[0] = r;
        saved[1] = z;
        saved[2] = n;
        saved[3] = recurrent[2];
    }

    // carry: the part of the gradient of h that passed through z, beside the product
    static TBPTT_CELL void backward(const V* saved, V, V h_before, V, V, V dh, V carry, V* dgates, V& carry_out) {
        const V r = saved[0], z = saved[1], n = saved[2], n_h = saved[3], one = M::one();
        const V d = dh + carry;
        const V dn = d * (one - z) * (one - n * n);
        dgates[0] = dn;
        dgates[1] = dn * n_h * r * (one - r);
        dgates[2] = d * (h_before - n) * z * (one - z);
        dgates[3] = dn * r;
        carry_out = d * z;
    }
};

}  // namespace tbptt
