// The recurrent layers' entries, for units that instantiate them.
#pragma once

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "lag_norms.h"
#include "recurrent_backward.h"
#include "recurrent_forward.h"

namespace tbptt {
namespace cuda {

// Calls `run` with the cell, as a template.
template <template <class> class CellOf>
struct OfCell {
    template <class T>
    static void forward(const RecurrentForward<T>& p, const Call& call) {
        run_forward<T, CellOf>(p, call);
    }
    template <class T>
    static void backward(const RecurrentBackward<T>& p, Truncation truncation, const Call& call) {
        run_backward<T, CellOf>(p, truncation, call);
    }
    template <class T>
    static void lag_norms(const RecurrentBackward<T>& p, std::int64_t lags, const Call& call) {
        run_lag_norms<T, CellOf>(p, lags, call);
    }
    static constexpr CellShape shape = CellOf<ScalarMath<float>>::shape;
};

template <class Run>
auto with_cell(Cell cell, const Run& run) {
    switch (cell) {
        case Cell::rnn_tanh: return run(OfCell<RnnTanh>{});
        case Cell::rnn_relu: return run(OfCell<RnnRelu>{});
        case Cell::gru: return run(OfCell<Gru>{});
        case Cell::lstm: break;
    }
    return run(OfCell<Lstm>{});
}

template <class T>
void recurrent_forward(const RecurrentForward<T>& p, const Call& call) {
    with_cell(p.layer.shape.cell, [&](auto of) { decltype(of)::forward(p, call); });
}

template <class T>
void recurrent_backward(const RecurrentBackward<T>& p, Truncation truncation, const Call& call) {
    with_cell(p.layer.shape.cell, [&](auto of) { decltype(of)::backward(p, truncation, call); });
}

template <class T>
void lag_norms(const RecurrentBackward<T>& p, std::int64_t lags, const Call& call) {
    with_cell(p.layer.shape.cell, [&](auto of) { decltype(of)::lag_norms(p, lags, call); });
}

}  // namespace cuda
}  // namespace tbptt
