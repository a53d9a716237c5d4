// The forward pass of a convolutional recurrent layer, for every cell.
//
// The convolution of the inputs is made for a run of steps at once, into the place where the tape keeps the gates. Each step
// then convolves the state with panels that hold all gates of the same units, so that a tile ends with everything the cell
// needs: it takes the inputs' part from that place and leaves the gates there.
#pragma once

#include "convrecurrent_cells.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ConvForwardPass {
    static constexpr int L = lanes<T>;

   public:
    TBPTT_COLD explicit ConvForwardPass(const ConvRecurrentForward<T>& p)
        : p_(p),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          pixels_(pixels_of(shape_)),
          rows_(shape_.batch * pixels_),
          hidden_(shape_.hidden),
          columns_(cell_.gates * hidden_),
          taps_count_(taps_of_state(shape_)),
          threads_(
              threads_for(2.0 * static_cast<double>(rows_ * taps_count_) * static_cast<double>(columns_ * hidden_))),
          keeps_(p.tape.maps != nullptr),
          turns_(!same_order(shape_, hidden_)),
          apart_(stands_apart<T>(shape_)),
          apply_(find_forward<T>(shape_.cell)),
          blocks_(rows_, threads_),
          unit_vectors_(cell_.gates == 1 ? choose_vectors<T>(hidden_) : 1),
          unit_panels_(ceil_div(hidden_, unit_vectors_ * L)),
          parts_(Blocks::parts(blocks_.count(rows_), unit_panels_, threads_)),
          run_(choose_run()),
          panels_{nullptr, taps_count_ * hidden_, unit_panels_, cell_.gates * unit_vectors_},
          packed_(apart_ ? 0 : panels_.size()),
          products_(apart_ ? rows_ * columns_ + L : 0),
          bias_(columns_),
          candidate_bias_(hidden_),
          zeros_(hidden_),
          x_(same_order(shape_, shape_.inputs) ? 0 : run_ * rows_ * shape_.inputs),
          run_maps_(keeps_ ? 0 : run_ * rows_ * columns_),
          states_(turns_ ? 2 * rows_ * hidden_ : 0),
          c_(cell_.has_c && !keeps_ ? rows_ * hidden_ : 0),
          taps_(taps_count_),
          h0_(shape_, p.layer.h0),
          c0_(shape_, p.layer.c0),
          peepholes_(p.layer),
          pieces_(threads_ * taps_count_ * blocks_.size),
          images_(threads_ * shape_.batch),
          lines_(threads_ * blocks_.size),
          input_weights_(make_packed_weights()),
          state_weights_(make_packed_weights()) {
        panels_.data = packed_;
        fill<T>(zeros_, hidden_, 0);
        find_taps(shape_, false, taps_);
        add_biases();
    }
    ~ConvForwardPass() {
        destroy_packed_weights(input_weights_);
        destroy_packed_weights(state_weights_);
    }
    ConvForwardPass(const ConvForwardPass&) = delete;
    ConvForwardPass& operator=(const ConvForwardPass&) = delete;

    TBPTT_COLD void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range mine = split(unit_panels_, worker);
            for (int64_t p = mine.begin; p < mine.end && !apart_; ++p) pack(p);
        });
        for (int64_t step = 0; step < shape_.steps; step += run_) {
            const int64_t end = smaller(step + run_, shape_.steps);
            convolve_inputs(step, end);
            for (int64_t s = step; s < end && apart_; ++s) convolve_state(s, maps_of(s, step));
            if (apart_) continue;
            Tasks even(blocks_.count(rows_) * parts_, threads_), odd(blocks_.count(rows_) * parts_, threads_);
            run_parallel(threads_, [&](const Worker& worker) {
                for (int64_t s = step; s < end; ++s) {
                    Tasks &now = s % 2 ? odd : even, &next = s % 2 ? even : odd;
                    const Walk walk{worker, s, maps_of(s, step)};
                    next.reset(worker);
                    find_images(walk);
                    now.run(worker,
                            [&](int64_t i) { multiply(walk, i / parts_, split(unit_panels_, i % parts_, parts_)); });
                    wait_for_all(worker);
                }
            });
        }
        if (cell_.has_c) write_c();
    }

   private:
    struct Walk {
        const Worker& worker;
        int64_t step;
        T* maps;  // of this step
    };

    // Steps whose maps stay in cache from the convolution of the inputs to the cell.
    int64_t choose_run() const {
        constexpr int64_t bytes = int64_t{2} << 20;
        const int64_t step = rows_ * columns_ * static_cast<int64_t>(sizeof(T));
        return smaller(shape_.steps, larger<int64_t>(1, bytes / step));
    }

    TBPTT_COLD void add_biases() {
        const ConvRecurrentLayer<T>& layer = p_.layer;
        const auto value = [](const T* b, int64_t i) { return b ? b[i] : T(0); };
        const int64_t apart = cell_.candidate_apart ? columns_ - hidden_ : columns_;
        for (int64_t i = 0; i < columns_; ++i)
            bias_[i] = value(layer.b_ih, i) + (i < apart ? value(layer.b_hh, i) : T(0));
        for (int64_t i = 0; i < hidden_; ++i) candidate_bias_[i] = value(layer.b_hh, columns_ - hidden_ + i);
    }

    // [tap][channel][gate][unit vector][lane]
    void pack(int64_t p) {
        const int64_t width = panels_.width(), depth = panels_.depth;
        for (int g = 0; g < cell_.gates; ++g)
            for (int v = 0; v < unit_vectors_; ++v) {
                const int64_t unit = (p * unit_vectors_ + v) * L, count = hidden_ - unit;
                const T* from = p_.layer.w_hh + (g * hidden_ + (count > 0 ? unit : 0)) * depth;
                T* to = panels_.panel(p) + (g * unit_vectors_ + v) * L;
                int64_t channel = 0, tap = 0;
                for_columns<T>(from, depth, depth, count, [&](int64_t, Vec<T> values) {
                    store(to + (tap * hidden_ + channel) * width, values);
                    if (++tap < taps_count_) return;
                    tap = 0, ++channel;
                });
            }
    }

    T* maps_of(int64_t step, int64_t first) const {
        return keeps_ ? p_.tape.maps + step * rows_ * columns_ : run_maps_ + (step - first) * rows_ * columns_;
    }

    TBPTT_COLD void convolve_inputs(int64_t begin, int64_t end) {
        const int64_t images = (end - begin) * shape_.batch, size = pixels_ * shape_.inputs;
        const T* x = p_.layer.x + begin * shape_.batch * size;
        if (!same_order(shape_, shape_.inputs)) {
            turn_images<T>(images, pixels_, shape_.inputs, x, x_, true);
            x = x_;
        }
        const bool biased = p_.layer.b_ih || p_.layer.b_hh;
        convolution_forward(ConvolutionForward<T>{
            convolution_of(shape_, images, false), Activation::none, x, p_.layer.w_ih, input_weights_,
            biased ? static_cast<const T*>(bias_) : nullptr, maps_of(begin, begin)});
    }

    // One step whose products are made apart.
    TBPTT_COLD void convolve_state(int64_t step, T* maps) {
        const T* before = step > 0 ? h_of(step - 1) : h0_.data();
        if (before)
            convolution_forward(ConvolutionForward<T>{convolution_of(shape_, shape_.batch, true), Activation::none,
                                                      before, p_.layer.w_hh, state_weights_, nullptr, products_});
        Tasks tasks(blocks_.count(rows_), threads_);
        run_parallel(threads_, [&](const Worker& worker) {
            const Walk walk{worker, step, maps};
            find_images(walk);
            tasks.run(worker, [&](int64_t i) { finish_block(walk, i); });
        });
    }

    TBPTT_COLD void finish_block(const Walk& w, int64_t index) {
        const int64_t first = index * blocks_.size, count = smaller(blocks_.size, rows_ - first);
        const T* const* images = images_ + w.worker.index * shape_.batch;
        ForwardLine<T>* lines = lines_ + w.worker.index * blocks_.size;
        const bool with_state = find_lines(w, images, first, count, lines);
        T* product = products_ + first * columns_;
        if (with_state)
            for_images(pixels_, first, count, [&](int64_t row, int64_t image, int64_t, int64_t length) {
                if (!images[image]) fill<T>(product + row * columns_, length * columns_, 0);
            });
        apply_(ForwardTile<T>{lines, count, with_state ? product : nothing<T>, with_state ? columns_ : 0,
                              with_state ? hidden_ : 0, 0, static_cast<int>(ceil_div(hidden_, L)), hidden_,
                              candidate_bias_, peepholes_.gate(), keeps_});
        if (turns_) write_planes(w, first, count, {0, unit_panels_});
    }

    // h of a step with its channels together: in `out` where that is its order.
    T* h_of(int64_t step) const {
        return turns_ ? states_ + step % 2 * rows_ * hidden_ : p_.out + step * rows_ * hidden_;
    }
    T* c_of(int64_t step) const { return keeps_ ? p_.tape.beside + step * rows_ * hidden_ : static_cast<T*>(c_); }

    // An image of the state that enters a step; null for zeros. A reset selects: 0·NaN never enters.
    const T* image_before(const T* initial, const T* before, int64_t step, int64_t n) const {
        const T* state = step > 0 ? before : initial;
        const bool reset = p_.layer.is_init && p_.layer.is_init[step * shape_.batch + n];
        return state && !reset ? state + n * pixels_ * hidden_ : nullptr;
    }

    void find_images(const Walk& w) {
        const T** images = images_ + w.worker.index * shape_.batch;
        const T* before = w.step > 0 ? h_of(w.step - 1) : nullptr;
        for (int64_t n = 0; n < shape_.batch; ++n) images[n] = image_before(h0_.data(), before, w.step, n);
    }

    TBPTT_COLD void multiply(const Walk& w, int64_t index, Range panels) {
        const int64_t first = index * blocks_.size, count = smaller(blocks_.size, rows_ - first);
        const T* const* images = images_ + w.worker.index * shape_.batch;
        const T** pieces = pieces_ + w.worker.index * taps_count_ * blocks_.size;
        ForwardLine<T>* lines = lines_ + w.worker.index * blocks_.size;
        const bool with_state = find_lines(w, images, first, count, lines);
        const auto finish = [&](int64_t p, int64_t row, int64_t height, const T* c) {
            apply_(ForwardTile<T>{lines + row, height, c ? c : nothing<T>, c ? panels_.width() : 0,
                                  c ? unit_vectors_ * L : 0, p * unit_vectors_ * L, unit_vectors_, hidden_,
                                  candidate_bias_, peepholes_.gate(), keeps_});
        };
        if (with_state) {
            find_pieces<T>(shape_, taps_, images, hidden_, first, count, zeros_, pieces, blocks_.size);
            product<T>(Rows<T>{pieces, hidden_, taps_count_, blocks_.size}, count, panels_, panels, finish);
        } else {
            for (int64_t p = panels.begin; p < panels.end; ++p) finish(p, 0, count, nullptr);
        }
        if (turns_) write_planes(w, first, count, panels);
    }

    // Whether any of the rows has a state that is not zeros.
    TBPTT_COLD bool find_lines(const Walk& w, const T* const* images, int64_t first, int64_t count,
                               ForwardLine<T>* lines) const {
        const T* c_before = cell_.has_c && w.step > 0 ? c_of(w.step - 1) : nullptr;
        T* beside = cell_.has_c ? c_of(w.step) : p_.tape.beside ? p_.tape.beside + w.step * rows_ * hidden_ : nullptr;
        T* h = h_of(w.step);
        bool any = false;
        for_images(pixels_, first, count, [&](int64_t row, int64_t image, int64_t pixel, int64_t length) {
            any |= images[image] != nullptr;
            const T* c = image_before(c0_.data(), c_before, w.step, image);
            for (int64_t i = 0; i < length; ++i, ++row, ++pixel) {
                const int64_t at = first + row;
                lines[row] = {w.maps + at * columns_,
                              images[image] ? images[image] + pixel * hidden_ : static_cast<const T*>(zeros_),
                              c ? c + pixel * hidden_ : static_cast<const T*>(zeros_),
                              h + at * hidden_,
                              beside ? beside + at * hidden_ : nullptr,
                              peepholes_.at(pixel)};
            }
        });
        return any;
    }

    // The block's part of the output, where that is in planes.
    __attribute__((noinline)) void write_planes(const Walk& w, int64_t first, int64_t count, Range panels) const {
        const int64_t unit = panels.begin * unit_vectors_ * L;
        const int64_t units = smaller(panels.end * unit_vectors_ * L, hidden_) - unit;
        T* out = p_.out + w.step * rows_ * hidden_;
        const T* h = h_of(w.step);
        for_images(pixels_, first, count, [&](int64_t row, int64_t image, int64_t pixel, int64_t length) {
            pixels_to_planes<T>(h + (first + row) * hidden_ + unit, hidden_, length, units,
                                out + (image * hidden_ + unit) * pixels_ + pixel, pixels_);
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
    const int64_t pixels_, rows_, hidden_, columns_, taps_count_;  // rows: pixels of all images of a step
    const int threads_;
    const bool keeps_;  // a tape
    const bool turns_;  // the output is in planes
    const bool apart_;  // a step's products are made before the cell
    const ApplyForward<T> apply_;
    const Blocks blocks_;
    const int unit_vectors_;
    const int64_t unit_panels_, parts_;
    const int64_t run_;  // steps whose inputs are convolved at once
    Packed<T> panels_;
    Buffer<T> packed_, products_, bias_, candidate_bias_, zeros_, x_, run_maps_, states_, c_;
    Buffer<Tap> taps_;
    const StateImages<T> h0_, c0_;
    const Peepholes<T> peepholes_;
    Buffer<const T*> pieces_, images_;
    Buffer<ForwardLine<T>> lines_;
    PackedWeights *const input_weights_, *const state_weights_;
};

template <class T>
void convrecurrent_forward(const ConvRecurrentForward<T>& p) {
    ConvForwardPass<T>(p).run();
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
