// Where arrays hold less than is computed: what the tape keeps of it, and sums that are rounded in the end.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

// What the tape keeps of a value that a cell saves. Of a sigmoid above a half bfloat16 keeps the distance from one, with the
// sign set: there its own numbers are 1/256 apart, and a gate that forgets a thousandth in each step would forget nothing.
template <class T>
TBPTT_DEVICE T to_tape(Real<T> value, bool sigmoid) {
    if constexpr (is_narrow<T>)
        if (sigmoid && value > 0.5f) return T(-(1.0f - value));
    return T(value);
}
template <class T>
TBPTT_DEVICE Real<T> from_tape(T kept, bool sigmoid) {
    if constexpr (is_narrow<T>)
        if (sigmoid && (kept.bits & 0x8000u) != 0) return 1.0f + kept;
    return kept;
}

template <class T>
struct Rounding {
    std::int64_t count;
    const Real<T>* from;
    T* to;  // out =
};

template <class T>
__global__ void round_values(const Rounding<T> p) {
    for (std::int64_t i = global_index(); i < p.count; i += global_count()) p.to[i] = T(p.from[i]);
}

// What many add to, zeros at first: the output itself, or memory of the arithmetic's type that is rounded to it in the end.
template <class T>
class Sums {
   public:
    Sums(T* output, std::int64_t count, const Call& call)
        : output_(output), count_(count), call_(call), own_(is_narrow<T> ? count : 0, call.stream) {
        if (count > 0) set_bytes(values(), 0, static_cast<std::size_t>(count) * sizeof(Real<T>), call.stream);
    }

    Real<T>* values() const {
        if constexpr (is_narrow<T>)
            return own_;
        else
            return count_ > 0 ? output_ : nullptr;
    }

    void finish() const {
        if (is_narrow<T> && count_ > 0)
            launch(&round_values<T>, grid_for(count_), call_.stream, Rounding<T>{count_, values(), output_});
    }

   private:
    T* const output_;
    const std::int64_t count_;
    const Call& call_;
    const Scratch<Real<T>> own_;
};

}  // namespace cuda
}  // namespace tbptt
