// The forward pass of a convolutional recurrent layer, for every cell: the gates of one step after the other.
#pragma once

#include "convrecurrent.h"

namespace tbptt {
namespace cuda {

template <class T>
class ConvForwardPass {
   public:
    ConvForwardPass(const ConvRecurrentForward<T>& p, const Call& call)
        : p_(p),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          call_(call),
          operands_(p.layer, call),
          gates_(operands_, call),
          turns_(!same_order(shape_, shape_.hidden)),
          state_(operands_.step),
          maps_(p.tape.maps ? 0 : gates_.run() * state_ * cell_.gates, call.stream),
          states_(turns_ ? (gates_.run() + 1) * state_ : 0, call.stream),
          c_n_(shape_, shape_.batch, shape_.hidden, p.c_n, call.stream) {}

    void run() const {
        for (std::int64_t first = 0; first < shape_.steps; first += gates_.run()) {
            const std::int64_t left = shape_.steps - first, count = left < gates_.run() ? left : gates_.run();
            T* maps = maps_ ? static_cast<T*>(maps_) : p_.tape.maps + first * state_ * cell_.gates;
            gates_.convolve_inputs(first, count, maps);
            for (std::int64_t t = first; t < first + count; ++t) {
                ConvStep<T> to{};
                to.maps = maps + (t - first) * state_ * cell_.gates;
                to.keeps = p_.tape.maps != nullptr;
                to.h = h_of(t, first);
                if (cell_.has_c) to.c = c_of(t);
                if (cell_.candidate_apart && to.keeps) to.candidate = p_.tape.beside + t * state_;
                gates_.apply(t, t > 0 ? h_of(t - 1, first) : operands_.h0,
                             !cell_.has_c ? nullptr
                             : t > 0      ? c_of(t - 1)
                                          : operands_.c0,
                             to);
            }
            if (turns_) write_planes(first, count);
        }
        if (!cell_.has_c) return;
        if (p_.tape.beside)
            copy_bytes(c_n_.data(), c_of(shape_.steps - 1), static_cast<std::size_t>(state_) * sizeof(T), call_.stream);
        c_n_.finish();
    }

   private:
    // h of a step of the run from `first` on, or of the step before it: in `out` where that has this order.
    T* h_of(std::int64_t t, std::int64_t first) const {
        return turns_ ? states_ + (t - first + 1) * state_ : p_.out + t * state_;
    }
    // Without a tape c is written over from step to step.
    T* c_of(std::int64_t t) const { return p_.tape.beside ? p_.tape.beside + t * state_ : c_n_.data(); }

    // The states of a run; the last one goes before those of the next run.
    void write_planes(std::int64_t first, std::int64_t count) const {
        turn_images<T, false>(count * shape_.batch, images_of(shape_.height, shape_.width, shape_.hidden, true),
                              states_ + state_, p_.out + first * state_, call_.stream);
        copy_bytes(states_, states_ + count * state_, static_cast<std::size_t>(state_) * sizeof(T), call_.stream);
    }

    const ConvRecurrentForward<T>& p_;
    const ConvRecurrentShape& shape_;
    const CellShape cell_;
    const Call& call_;
    const ConvOperands<T> operands_;
    const ConvGates<T> gates_;
    const bool turns_;  // the output is in planes
    const std::int64_t state_;
    const Scratch<T> maps_, states_;  // of a run; states with that before it
    const WrittenChannelsLast<T> c_n_;
};

}  // namespace cuda
}  // namespace tbptt
