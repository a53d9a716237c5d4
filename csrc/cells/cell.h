// What every recurrent cell tells its drivers. The maths of a cell is written once, templated on a struct of maths `M`
// (Vec<float> or Vec<double> on the CPU, a scalar in a CUDA thread):
//
//   forward(input[gates], recurrent[gates], h_before, c_before, saved[saved], h, c)
//   backward(saved, h, h_before, c_before, c, dh, carry, dgates[gate_gradients], carry_out)
//
// `input` is x·W_ihᵀ with the biases, `recurrent` h'·W_hhᵀ (for a cell with saved recurrent candidate, with its own bias).
// `dh` is the gradient that reaches h by the loss and by the recurrent product of the later step; `carry` what the later
// step passed back beside that product (LSTM: the gradient of c; GRU: the part through z).
#pragma once

// What the host alone calls, to choose among cells: in every version of the kernels a function of its own.
#define TBPTT_CELL_DRIVER inline __attribute__((always_inline))

#if defined(__CUDACC__)
#define TBPTT_CELL __host__ __device__ __forceinline__
#else
#define TBPTT_CELL inline __attribute__((always_inline))
#endif

namespace tbptt {

struct CellShape {
    int gates;           // row blocks of W_ih and W_hh
    int saved;           // values that the tape keeps per unit and step, beside h and c
    int gate_gradients;  // columns of dgates per unit
    bool has_c;          // a second state
    bool has_carry;      // the backward step passes something back beside the recurrent product
    bool
        candidate_apart;  // the last gate's recurrent part (with its bias) is used on its own, as in the GRU: dgates then
                          // are [candidate's input part, other gates…, candidate's recurrent part]
    unsigned sigmoids = 0;  // which of the saved values are sigmoids, by their bits

    constexpr int kept() const { return saved + has_c; }  // with c behind them

    // dgates columns (in blocks of H) that meet W_ih and W_hh: `gates` blocks each. Those of W_ih begin with the
    // candidate where it is apart, which is a rotation of the weights' own order.
    constexpr int input_first() const { return 0; }
    constexpr int recurrent_first() const { return candidate_apart ? 1 : 0; }
    constexpr int input_rotation() const { return candidate_apart ? gates - 1 : 0; }
};

}  // namespace tbptt
