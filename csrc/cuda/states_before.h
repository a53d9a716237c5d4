// The states that entered every step, which meet the gates' gradients in those of the recurrent weights.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

// The states that entered every place [T·B, H]; H: all values of a state.
template <class T>
struct StatesBefore {
    std::int64_t places, batch, hidden;
    const T *out, *h0;  // h0 or null
    const std::uint8_t* is_init;
    T* states;  // out =
};

template <class T>
__global__ void find_states_before(const StatesBefore<T> p) {
    for (std::int64_t i = global_index(); i < p.places * p.hidden; i += global_count()) {
        const std::int64_t at = i / p.hidden;
        const bool zero = (p.is_init && p.is_init[at] != 0) || (at < p.batch && !p.h0);
        p.states[i] = zero ? T(0) : at < p.batch ? p.h0[i] : p.out[i - p.batch * p.hidden];
    }
}

}  // namespace cuda
}  // namespace tbptt
