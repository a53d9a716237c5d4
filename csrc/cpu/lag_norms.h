// What a walk back through time leaves of the states' gradients: their norms by lag, and their sums over losses.
#pragma once

#include "recurrent.h"

namespace tbptt {
namespace TBPTT_ISA {

// In double precision, where squares of float neither overflow nor vanish: gradients decay over many powers of ten.
template <class T>
TBPTT_INLINE double euclidean_norm(const T* values, int64_t count) {
    constexpr int parts = 8;  // chains of additions side by side
    double squares[parts] = {}, sum = 0;
    int64_t i = 0;
    for (; i + parts <= count; i += parts)
        for (int part = 0; part < parts; ++part) {
            const double value = values[i + part];
            squares[part] += value * value;
        }
    for (; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
    for (double part : squares) sum += part;
    return __builtin_sqrt(sum);
}

// Norms of what reached the states of all lanes in this step, each by one worker; and their sums over lanes, each unit by
// one worker. states [rows together][size]. Called, not inlined, so that all cells share it.
template <class T>
__attribute__((noinline)) void measure_states(const Lanes& lanes, int64_t step, const T* states, int64_t size,
                                              const RecurrentBackward<T>& p, const Worker& worker) {
    const int64_t batch = p.layer.shape.batch, rows = p.layer.shape.steps * batch;
    const Range mine = split(lanes.count(), worker), units = split(size, worker);
    for (int64_t i = 0; i < lanes.count(); ++i) {
        const Segment& segment = *lanes[i].segment;
        const int64_t lag = step - lanes[i].begin;
        if (lag > segment.origin) continue;  // the state before step 0
        const T* state = states + lanes[i].slot * size;
        if (i >= mine.begin && i < mine.end)
            p.lag_norms[lag * rows + segment.origin * batch + segment.batch] =
                static_cast<T>(euclidean_norm(state, size));
        if (!p.lag_sums) continue;
        double* sums = p.lag_sums + lag * size;
        for (int64_t k = units.begin; k < units.end; ++k) sums[k] += state[k];
    }
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
