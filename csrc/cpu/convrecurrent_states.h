// The states that entered each step of a convolutional recurrent layer, as the backward pass meets them again.
#pragma once

#include "convrecurrent.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class StatesBefore {
   public:
    // for runs of at most `run` steps
    TBPTT_COLD StatesBefore(const ConvRecurrentBackward<T>& p, int64_t run)
        : p_(p),
          shape_(p.layer.shape),
          image_(pixels_of(shape_) * shape_.hidden),
          copy_(needs_copies({0, shape_.steps}) ? run * shape_.batch * image_ : 0),
          h0_(shape_, p.layer.h0),
          c0_(shape_, p.layer.c0) {}

    // Before the run of `steps`. Where the states lie elsewhere than one after the other in the output, channels last, they are
    // brought together. A reset selects: 0·NaN never enters.
    TBPTT_COLD void prepare(Range steps) {
        copied_ = needs_copies(steps);
        first_ = steps.begin * shape_.batch;
        if (!copied_) return;
        const int64_t images = (steps.end - steps.begin) * shape_.batch;
        run_parallel(threads_for(4.0 * static_cast<double>(images * image_)), [&](const Worker& worker) {
            const Range mine = split(images, worker);
            for (int64_t i = mine.begin; i < mine.end; ++i) copy(first_ + i, copy_ + i * image_);
        });
    }

    bool copied() const { return copied_; }

    // The image of h that entered the step `place` of [T, B]; null for zeros. Without copies, those of the run's places follow
    // one another.
    const T* h(int64_t place) const {
        if (copied_) return copy_ + (place - first_) * image_;
        return place < shape_.batch ? nullptr : p_.out + (place - shape_.batch) * image_;
    }
    // The same, and null wherever it is zeros.
    const T* h_or_null(int64_t place) const { return is_zero(place, h0_.data()) ? nullptr : h(place); }
    const T* c(int64_t place) const {
        if (is_zero(place, c0_.data())) return nullptr;
        if (place < shape_.batch) return c0_.data() + place * image_;
        return p_.tape.beside + (place - shape_.batch) * image_;
    }

   private:
    bool reset_at(int64_t place) const { return p_.layer.is_init && p_.layer.is_init[place]; }

    bool is_zero(int64_t place, const T* initial) const {
        return reset_at(place) || (place < shape_.batch && !initial);
    }

    bool needs_copies(Range steps) const {
        if (!same_order(shape_, shape_.hidden) || (steps.begin == 0 && p_.layer.h0)) return true;
        for (int64_t i = larger<int64_t>(steps.begin, 1) * shape_.batch; i < steps.end * shape_.batch; ++i)
            if (reset_at(i)) return true;
        return false;
    }

    void copy(int64_t place, T* to) const {
        if (is_zero(place, h0_.data())) return fill<T>(to, image_, 0);
        const bool initial = place < shape_.batch;
        const T* from = initial ? h0_.data() + place * image_ : p_.out + (place - shape_.batch) * image_;
        if (!initial && !same_order(shape_, shape_.hidden))
            planes_to_pixels<T>(from, pixels_of(shape_), pixels_of(shape_), shape_.hidden, to, shape_.hidden);
        else
            __builtin_memcpy(to, from, static_cast<std::size_t>(image_) * sizeof(T));
    }

    const ConvRecurrentBackward<T>& p_;
    const ConvRecurrentShape& shape_;
    const int64_t image_;
    Buffer<T> copy_;
    const StateImages<T> h0_, c0_;
    bool copied_ = false;
    int64_t first_ = 0;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
