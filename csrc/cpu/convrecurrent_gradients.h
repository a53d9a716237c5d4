// The gradients of a convolutional recurrent layer by its weights and by x, which are made of the states before each step and of
// dgates for a run of steps at a time.
#pragma once

#include "convrecurrent_states.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ConvGradients {
   public:
    // for runs of at most `run` steps, of which that with the last step comes first
    TBPTT_COLD ConvGradients(const ConvRecurrentBackward<T>& p, const StatesBefore<T>& before, int64_t run)
        : p_(p),
          shape_(p.layer.shape),
          before_(before),
          apart_(shape_of(shape_.cell).candidate_apart),
          pixels_(pixels_of(shape_)),
          columns_(shape_of(shape_.cell).gates * shape_.hidden),
          x_size_(pixels_ * shape_.inputs),
          turns_(!same_order(shape_, shape_.inputs)),
          x_(turns_ ? run * shape_.batch * x_size_ : 0),
          grad_x_(turns_ ? run * shape_.batch * x_size_ : 0),
          sum_(run < shape_.steps ? columns_ * (longest() + 1) : 0),
          peephole_sum_(p.grad_peephole ? 3 * pixels_ * shape_.hidden : 0) {}

    // dgates [steps, B, pixels, G·H]: what meets W_hh and what meets W_ih
    TBPTT_COLD void add(Range steps, const T* dgates, const T* dgates_x) {
        const int64_t first = steps.begin * shape_.batch, images = (steps.end - steps.begin) * shape_.batch;
        last_ = steps.end == shape_.steps;
        T* b_hh = apart_ ? p_.grad_b_hh : nullptr;
        // Without copies the state before step 0 is zeros, which add nothing to the gradient by w_hh, but to that by b_hh.
        const int64_t skipped = !before_.copied() && first == 0 ? shape_.batch : 0;
        find(images - skipped, true, before_.h(first + skipped), dgates + skipped * pixels_ * columns_, nullptr,
             p_.grad_w_hh, skipped ? nullptr : b_hh);
        if (b_hh && skipped) find(images, true, p_.out, dgates, nullptr, nullptr, b_hh);

        const T* x = p_.layer.x + first * x_size_;
        T* grad_x = p_.grad_x + first * x_size_;
        if (turns_) turn_images<T>(images, pixels_, shape_.inputs, x, x_, true);
        // where no candidate stands apart, the gradients by both biases are the same
        T* b_ih = p_.grad_b_ih ? p_.grad_b_ih : apart_ ? nullptr : p_.grad_b_hh;
        find(images, false, turns_ ? static_cast<const T*>(x_) : x, dgates_x,
             turns_ ? static_cast<T*>(grad_x_) : grad_x, p_.grad_w_ih, b_ih);
        if (turns_) turn_images<T>(images, pixels_, shape_.inputs, grad_x_, grad_x, false);
        if (!apart_ && p_.grad_b_hh && p_.grad_b_hh != b_ih && first == 0)
            __builtin_memcpy(p_.grad_b_hh, b_ih, static_cast<std::size_t>(columns_) * sizeof(T));
        if (p_.grad_peephole) add_peepholes(steps, dgates);
    }

    // After the last run.
    TBPTT_COLD void finish() {
        if (!p_.grad_peephole) return;
        const int64_t image = pixels_ * shape_.hidden;
        if (p_.layer.peephole_maps) {
            if (same_order(shape_, shape_.hidden))
                __builtin_memcpy(p_.grad_peephole, peephole_sum_, static_cast<std::size_t>(3 * image) * sizeof(T));
            else
                turn_images<T>(3, pixels_, shape_.hidden, peephole_sum_, p_.grad_peephole, false);
            return;
        }
        for (int g = 0; g < 3; ++g) {
            T* to = p_.grad_peephole + g * shape_.hidden;
            fill<T>(to, shape_.hidden, 0);
            for (int64_t pixel = 0; pixel < pixels_; ++pixel)
                add_to<T>(to, peephole_sum_ + g * image + pixel * shape_.hidden, shape_.hidden);
        }
    }

   private:
    int64_t longest() const {
        return larger(shape_.kernel_ih_height * shape_.kernel_ih_width * shape_.inputs,
                      taps_of_state(shape_) * shape_.hidden);
    }

    // One convolution's gradients; those by its weights go to `w` and `b` from the first run, and are added from the others.
    TBPTT_COLD void find(int64_t images, bool state, const T* x, const T* g, T* grad_x, T* w, T* b) {
        const ConvolutionShape shape = convolution_of(shape_, images, state);
        const int64_t size = columns_ * shape.inputs * shape.kernel_height * shape.kernel_width;
        T *to_w = w && !last_ ? sum_ : w, *to_b = b && !last_ ? sum_ + size : b;
        convolution_backward(ConvolutionBackward<T>{shape, Activation::none, g, x,
                                                    state ? p_.layer.w_hh : p_.layer.w_ih, nullptr, nullptr, grad_x,
                                                    to_w, to_b});
        if (w && !last_) add_to<T>(w, to_w, size);
        if (b && !last_) add_to<T>(b, to_b, columns_);
    }

    // Each pixel's peepholes met the c before its gates i and f, and that behind its gate o.
    TBPTT_COLD void add_peepholes(Range steps, const T* dgates) {
        const int64_t hidden = shape_.hidden, image = pixels_ * hidden;
        run_parallel(threads_for(8.0 * static_cast<double>(image)), [&](const Worker& worker) {
            const Range mine = split(pixels_, worker);
            for (int g = 0; g < 3 && last_; ++g)
                fill<T>(peephole_sum_ + g * image + mine.begin * hidden, (mine.end - mine.begin) * hidden, 0);
            for (int64_t place = steps.begin * shape_.batch; place < steps.end * shape_.batch; ++place) {
                const T* d = dgates + (place - steps.begin * shape_.batch) * pixels_ * columns_;
                const T *before = before_.c(place), *behind = p_.tape.beside + place * image;
                for (int64_t pixel = mine.begin; pixel < mine.end; ++pixel)
                    for (int g = before ? 0 : 2; g < 3; ++g)
                        add_product(peephole_sum_ + g * image + pixel * hidden,
                                    d + pixel * columns_ + (g < 2 ? g : 3) * hidden,
                                    (g < 2 ? before : behind) + pixel * hidden);
            }
        });
    }

    void add_product(T* to, const T* a, const T* b) const {
        for (int64_t i = 0; i < shape_.hidden; i += lanes<T>) {
            const int64_t count = shape_.hidden - i;
            store_partial(to + i,
                          load_partial<T>(to + i, count) + load_partial(a + i, count) * load_partial(b + i, count),
                          count);
        }
    }

    const ConvRecurrentBackward<T>& p_;
    const ConvRecurrentShape& shape_;
    const StatesBefore<T>& before_;
    const bool apart_;  // the candidate's recurrent part
    const int64_t pixels_, columns_, x_size_;
    const bool turns_;  // x is in planes
    Buffer<T> x_, grad_x_, sum_, peephole_sum_;
    bool last_ = true;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
