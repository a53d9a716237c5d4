// The forward pass of a convolutional recurrent layer, for every cell: the gates of one step after the other.
#pragma once

#include "convrecurrent_gates.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ConvForwardPass {
   public:
    TBPTT_COLD explicit ConvForwardPass(const ConvRecurrentForward<T>& p)
        : p_(p),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          pixels_(pixels_of(shape_)),
          rows_(shape_.batch * pixels_),
          hidden_(shape_.hidden),
          columns_(cell_.gates * hidden_),
          keeps_(p.tape.maps != nullptr),
          turns_(!same_order(shape_, hidden_)),
          gates_(p.layer, shape_.batch),
          maps_(keeps_ ? 0 : gates_.run() * rows_ * columns_),
          states_(turns_ ? 2 * rows_ * hidden_ : 0),
          c_(cell_.has_c && !p.tape.beside ? rows_ * hidden_ : 0),
          h0_(shape_, p.layer.h0),
          c0_(shape_, p.layer.c0),
          images_(2 * gates_.threads() * shape_.batch) {}

    TBPTT_COLD void run() {
        const int threads = gates_.threads();
        const int64_t run = gates_.run(), parts = gates_.parts(shape_.batch);
        for (int64_t step = 0; step < shape_.steps; step += run) {
            const int64_t end = smaller(step + run, shape_.steps);
            gates_.convolve_inputs(step, end, maps_of(step, step));
            for (int64_t s = step; s < end && gates_.apart(); ++s)
                gates_.multiply_apart(find_images(0, s, step), s > 0 ? h_of(s - 1) : h0_.data(),
                                      [&](const Part& part, int64_t image) {
                                          if (turns_) write_planes(s, image, part);
                                      });
            if (gates_.apart()) continue;
            Tasks even(parts, threads), odd(parts, threads);
            run_parallel(threads, [&](const Worker& worker) {
                for (int64_t s = step; s < end; ++s) {
                    Tasks &now = s % 2 ? odd : even, &next = s % 2 ? even : odd;
                    const GateImages<T> images = find_images(worker.index, s, step);
                    next.reset(worker);
                    now.run(worker, [&](int64_t i) {
                        const Part part = gates_.part(shape_.batch, i);
                        gates_.multiply(worker, images, part);
                        if (turns_) write_planes(s, 0, part);
                    });
                    wait_for_all(worker);
                }
            });
        }
        if (cell_.has_c) write_c();
    }

   private:
    using Part = typename ConvGates<T>::Part;

    T* maps_of(int64_t step, int64_t first) const {
        return keeps_ ? p_.tape.maps + step * rows_ * columns_ : maps_ + (step - first) * rows_ * columns_;
    }

    // h of a step with its channels together: in `out` where that is its order.
    T* h_of(int64_t step) const {
        return turns_ ? states_ + step % 2 * rows_ * hidden_ : p_.out + step * rows_ * hidden_;
    }
    T* beside_of(int64_t step) const { return p_.tape.beside ? p_.tape.beside + step * rows_ * hidden_ : nullptr; }
    T* c_of(int64_t step) const { return p_.tape.beside ? beside_of(step) : static_cast<T*>(c_); }

    // An image of the state that enters a step; null for zeros. A reset selects: 0·NaN never enters.
    const T* image_before(const T* initial, const T* before, int64_t step, int64_t n) const {
        const T* state = step > 0 ? before : initial;
        const bool reset = p_.layer.is_init && p_.layer.is_init[step * shape_.batch + n];
        return state && !reset ? state + n * pixels_ * hidden_ : nullptr;
    }

    GateImages<T> find_images(int index, int64_t step, int64_t first) const {
        const T **h = images_ + 2 * index * shape_.batch, **c = h + shape_.batch;
        const T *h_before = step > 0 ? h_of(step - 1) : nullptr,
                *c_before = step > 0 && cell_.has_c ? c_of(step - 1) : nullptr;
        for (int64_t n = 0; n < shape_.batch; ++n) {
            h[n] = image_before(h0_.data(), h_before, step, n);
            c[n] = image_before(c0_.data(), c_before, step, n);
        }
        return {shape_.batch, h,     c, maps_of(step, first), h_of(step), cell_.has_c ? c_of(step) : beside_of(step),
                hidden_,      keeps_};
    }

    // A part of the output, from an image on, where that is in planes.
    __attribute__((noinline)) void write_planes(int64_t step, int64_t image, const Part& part) const {
        const int64_t panel = gates_.units_of_panel(), unit = part.panels.begin * panel;
        const int64_t units = smaller(part.panels.end * panel, hidden_) - unit;
        T* out = p_.out + step * rows_ * hidden_;
        const T* h = h_of(step);
        for_images(pixels_, image * pixels_ + part.first, part.count,
                   [&](int64_t row, int64_t n, int64_t pixel, int64_t length) {
                       pixels_to_planes<T>(h + (image * pixels_ + part.first + row) * hidden_ + unit, hidden_, length,
                                           units, out + (n * hidden_ + unit) * pixels_ + pixel, pixels_);
                   });
    }

    TBPTT_COLD void write_c() {
        const T* c = c_of(shape_.steps - 1);
        if (turns_)
            turn_images<T>(shape_.batch, pixels_, hidden_, c, p_.c_n, false);
        else
            __builtin_memcpy(p_.c_n, c, static_cast<std::size_t>(rows_ * hidden_) * sizeof(T));
    }

    const ConvRecurrentForward<T>& p_;
    const ConvRecurrentShape shape_;
    const CellShape cell_;
    const int64_t pixels_, rows_, hidden_, columns_;  // rows: pixels of all images of a step
    const bool keeps_;                                // the gates
    const bool turns_;                                // the output is in planes
    ConvGates<T> gates_;
    Buffer<T> maps_, states_, c_;
    const StateImages<T> h0_, c0_;
    Buffer<const T*> images_;
};

template <class T>
void convrecurrent_forward(const ConvRecurrentForward<T>& p) {
    ConvForwardPass<T>(p).run();
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
