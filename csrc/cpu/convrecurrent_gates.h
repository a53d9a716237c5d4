// The gates of a convolutional recurrent layer where the states before them are known: those of one step in the forward pass,
// those of many steps at once where the backward pass makes them again. Both give the same bits.
//
// The convolution of the inputs is made for a run of steps, into the place where the gates go. The states are convolved with
// panels that hold all gates of the same units, so that a tile ends with everything the cell needs: it takes the inputs' part
// from that place and leaves the gates there.
#pragma once

#include "convrecurrent_cells.h"
#include "convrecurrent_states.h"

namespace tbptt {
namespace TBPTT_ISA {

// Images and the states that entered them.
template <class T>
struct GateImages {
    int64_t count;
    const T* const* h;  // [count], null for zeros
    const T* const* c;  // [count], null for zeros; LSTM only
    T* maps;            // [count, pixels, G·H]: the convolution of x; out = the gates, where `keeps`
    T* out;             // out = [count, pixels, H], or null where h and c are known
    T* beside;  // out = `beside_pixel` elements from one pixel to the next: c, if not known; of the GRU what the tape
    int64_t beside_pixel;  // keeps beside the gates, or null
    bool keeps;

    GateImages part(int64_t first, int64_t images, int64_t pixels, int64_t columns, int64_t hidden) const {
        return {images,
                h + first,
                c + first,
                maps + first * pixels * columns,
                out ? out + first * pixels * hidden : nullptr,
                beside ? beside + first * pixels * beside_pixel : nullptr,
                beside_pixel,
                keeps};
    }
};

template <class T>
class ConvGates {
    static constexpr int L = lanes<T>;

   public:
    // Rows of some images, and panels.
    struct Part {
        int64_t first, count;
        Range panels;
    };

    // for at most `images` at a time
    TBPTT_COLD ConvGates(const ConvRecurrentLayer<T>& layer, int64_t images)
        : layer_(layer),
          shape_(layer.shape),
          cell_(shape_of(shape_.cell)),
          pixels_(pixels_of(shape_)),
          hidden_(shape_.hidden),
          columns_(cell_.gates * hidden_),
          taps_count_(taps_of_state(shape_)),
          apart_(stands_apart<T>(shape_)),
          run_(choose_run()),
          together_(choose_together()),
          threads_(threads_for(2.0 * static_cast<double>(images * pixels_ * taps_count_) *
                               static_cast<double>(columns_ * hidden_))),
          input_way_(way_of<T>(convolution_of(shape_, run_ * shape_.batch, false))),
          state_way_(way_of<T>(convolution_of(shape_, shape_.batch, true))),
          apply_(find_forward<T>(shape_.cell)),
          blocks_(images * pixels_, threads_),
          unit_vectors_(cell_.gates == 1 ? choose_vectors<T>(hidden_) : 1),
          unit_panels_(ceil_div(hidden_, unit_vectors_ * L)),
          panels_{nullptr, taps_count_ * hidden_, unit_panels_, cell_.gates * unit_vectors_},
          packed_(apart_ ? 0 : panels_.size()),
          products_(apart_ ? together_ * pixels_ * columns_ + L : 0),
          bias_(columns_),
          candidate_bias_(hidden_),
          zeros_(hidden_),
          x_(same_order(shape_, shape_.inputs) ? 0 : run_ * shape_.batch * pixels_ * shape_.inputs),
          taps_(taps_count_),
          peepholes_(layer),
          pieces_(threads_ * taps_count_ * blocks_.size),
          lines_(threads_ * blocks_.size),
          input_weights_(make_packed_weights()),
          state_weights_(make_packed_weights()) {
        panels_.data = packed_;
        fill<T>(zeros_, hidden_, 0);
        find_taps(shape_, false, taps_);
        add_biases();
        run_parallel(threads_, [this](const Worker& worker) {
            const Range mine = split(unit_panels_, worker);
            for (int64_t p = mine.begin; p < mine.end && !apart_; ++p) pack(p);
        });
    }
    ~ConvGates() {
        destroy_packed_weights(input_weights_);
        destroy_packed_weights(state_weights_);
    }
    ConvGates(const ConvGates&) = delete;
    ConvGates& operator=(const ConvGates&) = delete;

    int threads() const { return threads_; }
    int64_t run() const { return run_; }  // steps whose inputs are convolved at once
    int64_t units_of_panel() const { return unit_vectors_ * L; }
    bool apart() const { return apart_; }  // the states' products are made before the cell, by `multiply_apart`

    // maps [end - begin, B, pixels, G·H]
    TBPTT_COLD void convolve_inputs(int64_t begin, int64_t end, T* maps) {
        const int64_t images = (end - begin) * shape_.batch, size = pixels_ * shape_.inputs;
        const T* x = layer_.x + begin * shape_.batch * size;
        if (!same_order(shape_, shape_.inputs)) {
            turn_images<T>(images, pixels_, shape_.inputs, x, x_, true);
            x = x_;
        }
        const bool biased = layer_.b_ih || layer_.b_hh;
        ConvolutionShape shape = convolution_of(shape_, images, false);
        shape.algorithm = input_way_;
        convolution_forward(ConvolutionForward<T>{shape, Activation::none, x, layer_.w_ih, input_weights_,
                                                  biased ? static_cast<const T*>(bias_) : nullptr, maps});
    }

    // How many parts the rows of so many images make.
    int64_t parts(int64_t images) const { return blocks_.count(images * pixels_) * parts_of_panels(images); }
    Part part(int64_t images, int64_t index) const {
        const int64_t of_panels = parts_of_panels(images), first = index / of_panels * blocks_.size;
        return {first, smaller(blocks_.size, images * pixels_ - first),
                split(unit_panels_, index % of_panels, of_panels)};
    }

    TBPTT_COLD void multiply(const Worker& worker, const GateImages<T>& images, const Part& part) {
        const T** pieces = pieces_ + worker.index * taps_count_ * blocks_.size;
        ForwardLine<T>* lines = lines_ + worker.index * blocks_.size;
        const bool with_state = find_lines(images, part.first, part.count, lines);
        const auto finish = [&](int64_t p, int64_t row, int64_t height, const T* c) {
            apply_(ForwardTile<T>{lines + row, height, c ? c : nothing<T>, c ? panels_.width() : 0,
                                  c ? unit_vectors_ * L : 0, p * unit_vectors_ * L, unit_vectors_, hidden_,
                                  candidate_bias_, peepholes_.gate(), images.keeps, !images.out});
        };
        if (with_state) {
            find_pieces<T>(shape_, taps_, images.h, hidden_, part.first, part.count, zeros_, pieces, blocks_.size);
            product<T>(Rows<T>{pieces, hidden_, taps_count_, blocks_.size}, part.count, panels_, part.panels, finish);
        } else {
            for (int64_t p = part.panels.begin; p < part.panels.end; ++p) finish(p, 0, part.count, nullptr);
        }
    }

    // All images of one step, a few at a time. `before` [B] is the states' memory, or null for zeros: those that are zeros
    // among `step.h` may hold anything. Calls done(part, first image).
    template <class Done>
    void multiply_apart(const GateImages<T>& step, const T* before, Done done) {
        for (int64_t first = 0; first < step.count; first += together_) {
            const GateImages<T> images =
                step.part(first, smaller(together_, step.count - first), pixels_, columns_, hidden_);
            if (before) convolve_states(before + first * pixels_ * hidden_, images.count);
            Tasks tasks(blocks_.count(images.count * pixels_), threads_);
            run_parallel(threads_, [&](const Worker& worker) {
                tasks.run(worker, [&](int64_t i) {
                    const int64_t row = i * blocks_.size;
                    const Part part{row, smaller(blocks_.size, images.count * pixels_ - row), {0, unit_panels_}};
                    finish_apart(worker, images, part);
                    done(part, first);
                });
            });
        }
    }

    // maps [steps, B, pixels, G·H] and, of the GRU, what lies beside them, again as the forward pass made them.
    TBPTT_COLD void make_again(Range steps, const StatesBefore<T>& before, T* maps, T* beside, int64_t beside_pixel) {
        const int64_t most = smaller(run_, steps.end - steps.begin) * shape_.batch;
        Buffer<const T*> h(most), c(most);
        for (int64_t step = steps.begin; step < steps.end; step += run_) {
            const int64_t end = smaller(step + run_, steps.end), skipped = (step - steps.begin) * shape_.batch;
            const int64_t first = step * shape_.batch, count = (end - step) * shape_.batch;
            for (int64_t i = 0; i < count; ++i) {
                h[i] = before.h_or_null(first + i);
                c[i] = cell_.has_c ? before.c(first + i) : nullptr;
            }
            const GateImages<T> images{count,
                                       h,
                                       c,
                                       maps + skipped * pixels_ * columns_,
                                       nullptr,
                                       beside ? beside + skipped * pixels_ * beside_pixel : nullptr,
                                       beside_pixel,
                                       true};
            convolve_inputs(step, end, images.maps);
            for (int64_t i = 0; i < count && apart_; i += shape_.batch)
                multiply_apart(images.part(i, shape_.batch, pixels_, columns_, hidden_), before.h(first + i),
                               [](const Part&, int64_t) {});
            if (apart_) continue;
            Tasks tasks(parts(count), threads_);
            run_parallel(threads_, [&](const Worker& worker) {
                tasks.run(worker, [&](int64_t i) { multiply(worker, images, part(count, i)); });
            });
        }
    }

   private:
    // Steps whose maps stay in cache from the convolution of the inputs to the cell.
    int64_t choose_run() const {
        constexpr int64_t bytes = int64_t{2} << 20;
        const int64_t step = shape_.batch * pixels_ * columns_ * static_cast<int64_t>(sizeof(T));
        return smaller(shape_.steps, larger<int64_t>(1, bytes / step));
    }

    // Images whose products stand apart from the cell at a time: they stay in cache, and take little memory.
    int64_t choose_together() const {
        constexpr int64_t bytes = int64_t{1} << 20;
        const int64_t image = pixels_ * columns_ * static_cast<int64_t>(sizeof(T));
        return smaller(shape_.batch, larger<int64_t>(1, bytes / image));
    }

    int64_t parts_of_panels(int64_t images) const {
        return Blocks::parts(blocks_.count(images * pixels_), unit_panels_, threads_);
    }

    TBPTT_COLD void add_biases() {
        const auto value = [](const T* b, int64_t i) { return b ? b[i] : T(0); };
        const int64_t apart = cell_.candidate_apart ? columns_ - hidden_ : columns_;
        for (int64_t i = 0; i < columns_; ++i)
            bias_[i] = value(layer_.b_ih, i) + (i < apart ? value(layer_.b_hh, i) : T(0));
        for (int64_t i = 0; i < hidden_; ++i) candidate_bias_[i] = value(layer_.b_hh, columns_ - hidden_ + i);
    }

    // [tap][channel][gate][unit vector][lane]
    void pack(int64_t p) {
        const int64_t width = panels_.width(), depth = panels_.depth;
        for (int g = 0; g < cell_.gates; ++g)
            for (int v = 0; v < unit_vectors_; ++v) {
                const int64_t unit = (p * unit_vectors_ + v) * L, count = hidden_ - unit;
                const T* from = layer_.w_hh + (g * hidden_ + (count > 0 ? unit : 0)) * depth;
                T* to = panels_.panel(p) + (g * unit_vectors_ + v) * L;
                int64_t channel = 0, tap = 0;
                for_columns<T>(from, depth, depth, count, [&](int64_t, Vec<T> values) {
                    store(to + (tap * hidden_ + channel) * width, values);
                    if (++tap < taps_count_) return;
                    tap = 0, ++channel;
                });
            }
    }

    TBPTT_COLD void convolve_states(const T* before, int64_t images) {
        ConvolutionShape shape = convolution_of(shape_, images, true);
        shape.algorithm = state_way_;
        convolution_forward(
            ConvolutionForward<T>{shape, Activation::none, before, layer_.w_hh, state_weights_, nullptr, products_});
    }

    TBPTT_COLD void finish_apart(const Worker& worker, const GateImages<T>& images, const Part& part) {
        ForwardLine<T>* lines = lines_ + worker.index * blocks_.size;
        const bool with_state = find_lines(images, part.first, part.count, lines);
        T* product = products_ + part.first * columns_;
        if (with_state)
            for_images(pixels_, part.first, part.count, [&](int64_t row, int64_t image, int64_t, int64_t length) {
                if (!images.h[image]) fill<T>(product + row * columns_, length * columns_, 0);
            });
        apply_(ForwardTile<T>{lines, part.count, with_state ? product : nothing<T>, with_state ? columns_ : 0,
                              with_state ? hidden_ : 0, 0, static_cast<int>(ceil_div(hidden_, L)), hidden_,
                              candidate_bias_, peepholes_.gate(), images.keeps, !images.out});
    }

    // Whether any of the rows has a state that is not zeros.
    TBPTT_COLD bool find_lines(const GateImages<T>& images, int64_t first, int64_t count, ForwardLine<T>* lines) const {
        const T* none = zeros_;
        bool any = false;
        for_images(pixels_, first, count, [&](int64_t row, int64_t image, int64_t pixel, int64_t length) {
            const T *h = images.h[image], *c = images.c[image];
            any |= h != nullptr;
            for (int64_t i = 0; i < length; ++i, ++row, ++pixel) {
                const int64_t at = first + row;
                lines[row] = {images.maps + at * columns_,
                              h ? h + pixel * hidden_ : none,
                              c ? c + pixel * hidden_ : none,
                              images.out ? images.out + at * hidden_ : nullptr,
                              images.beside ? images.beside + at * images.beside_pixel : nullptr,
                              peepholes_.at(pixel)};
            }
        });
        return any;
    }

    const ConvRecurrentLayer<T>& layer_;
    const ConvRecurrentShape shape_;
    const CellShape cell_;
    const int64_t pixels_, hidden_, columns_, taps_count_;
    const bool apart_;
    const int64_t run_, together_;
    const int threads_;
    const Algorithm input_way_, state_way_;
    const ApplyForward<T> apply_;
    const Blocks blocks_;
    const int unit_vectors_;
    const int64_t unit_panels_;
    Packed<T> panels_;
    Buffer<T> packed_, products_, bias_, candidate_bias_, zeros_, x_;
    Buffer<Tap> taps_;
    const Peepholes<T> peepholes_;
    Buffer<const T*> pieces_;
    Buffer<ForwardLine<T>> lines_;
    PackedWeights *const input_weights_, *const state_weights_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
