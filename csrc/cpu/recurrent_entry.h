// From the parameter struct to the cell.
#pragma once

#include "recurrent_backward.h"
#include "recurrent_forward.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
void recurrent_forward(const RecurrentForward<T>& p) {
    switch (p.layer.shape.cell) {
        case Cell::rnn_tanh: return ForwardPass<T, RnnTanh, RnnRelu>(p).run();
        case Cell::rnn_relu: return ForwardPass<T, RnnTanh, RnnRelu>(p, true).run();
        case Cell::gru: return ForwardPass<T, Gru>(p).run();
        case Cell::lstm: return ForwardPass<T, Lstm>(p).run();
    }
}

template <class T>
void recurrent_backward(const RecurrentBackward<T>& p) {
    switch (p.layer.shape.cell) {
        case Cell::rnn_tanh: return BackwardPass<T, RnnTanh, RnnRelu>(p).run();
        case Cell::rnn_relu: return BackwardPass<T, RnnTanh, RnnRelu>(p, true).run();
        case Cell::gru: return BackwardPass<T, Gru>(p).run();
        case Cell::lstm: return BackwardPass<T, Lstm>(p).run();
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
