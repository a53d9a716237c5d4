// The backward pass of a convolutional recurrent layer, for every cell and every truncation.
//
// Images of all windows and segments walk side by side. At lag j one transposed convolution over all live images carries the
// gates' gradients back by one step, with the cell's backward behind it. What it leaves, dgates, is summed over windows; then
// the gradients by the weights and by x are one call each. Unless windows overlap, that is done for a run of steps at a time,
// from the last to the first, so that dgates takes a part of the tape's memory: a segment that reaches further goes on from
// what the run before left at its first step. Gates that the tape does not hold are made again for each run where its dgates
// will be: a step's gates are read for the last time where its dgates are written. Overlapping windows read them again, so
// that they have memory of their own.
#pragma once

#include "convrecurrent_gates.h"
#include "convrecurrent_gradients.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
class ConvBackwardPass {
    static constexpr int L = lanes<T>;

   public:
    // gates: to make them again, or null where the tape holds them or the cell has none
    TBPTT_COLD ConvBackwardPass(const ConvRecurrentBackward<T>& p, ConvGates<T>* gates)
        : p_(p),
          gates_(gates),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          pixels_(pixels_of(shape_)),
          hidden_(shape_.hidden),
          image_(pixels_ * hidden_),
          columns_(cell_.gates * hidden_),
          taps_count_(taps_of_state(shape_)),
          own_columns_(p.overlapping ? (cell_.candidate_apart ? 2 : 1) * columns_ : columns_),
          most_lanes_(smaller(rows_together, larger<int64_t>(1, ceil_div(most_rows, pixels_)))),
          most_live_(smaller(most_lanes_, p.segment_count)),
          run_(choose_run()),
          threads_(threads_for(2.0 * static_cast<double>(most_live_ * pixels_ * taps_count_) *
                               static_cast<double>(columns_ * hidden_))),
          turns_(!same_order(shape_, hidden_)),
          apart_(own_columns_ == columns_ && stands_apart<T>(shape_)),
          apply_(find_backward<T>(shape_.cell)),
          blocks_(most_live_ * pixels_, threads_),
          panels_(layout_panels<T>(taps_count_ * columns_, hidden_, choose_vectors<T>(hidden_))),
          packed_(apart_ ? 0 : panels_.size()),
          products_(apart_ ? most_live_ * image_ + L : 0),
          zeros_(columns_),
          dgates_(run_ * shape_.batch * pixels_ * columns_),
          later_(run_ < shape_.steps ? shape_.batch * pixels_ * columns_ : 0),
          dgates_x_(cell_.candidate_apart ? run_ * shape_.batch * pixels_ * columns_ : 0),
          again_(!p.tape.maps && p.overlapping ? run_ * shape_.batch * pixels_ * columns_ : 0),
          beside_again_(!p.tape.maps && p.overlapping && cell_.candidate_apart ? run_ * shape_.batch * image_ : 0),
          own_(p.overlapping ? 2 * most_live_ * pixels_ * own_columns_ : 0),
          carry_(cell_.has_carry ? most_live_ * image_ : 0),
          carries_(cell_.has_carry && run_ < shape_.steps ? 2 * shape_.batch * image_ : 0),
          grad_scratch_(turns_ && p.grad_out ? threads_ * blocks_.size * hidden_ : 0),
          turned_h0_(turns_ ? shape_.batch * image_ : 0),
          turned_c0_(turns_ && cell_.has_c ? shape_.batch * image_ : 0),
          grad_h0_(turns_ ? static_cast<T*>(turned_h0_) : p.grad_h0),
          grad_c0_(turns_ ? static_cast<T*>(turned_c0_) : p.grad_c0),
          taps_(taps_count_),
          before_(p, run_),
          gradients_(p, before_, run_),
          grad_h_n_(shape_, p.grad_h_n),
          grad_c_n_(shape_, p.grad_c_n),
          peepholes_(p.layer),
          pieces_(threads_ * taps_count_ * blocks_.size),
          lines_(threads_ * blocks_.size),
          segments_(p.segment_count),
          continued_(p.segment_count),
          weights_(make_packed_weights()) {
        panels_.data = packed_;
        fill<T>(zeros_, columns_, 0);
        fill<T>(grad_h0_, shape_.batch * image_, 0);
        if (cell_.has_c) fill<T>(grad_c0_, shape_.batch * image_, 0);
        find_taps(shape_, true, taps_);
    }

    ~ConvBackwardPass() { destroy_packed_weights(weights_); }
    ConvBackwardPass(const ConvBackwardPass&) = delete;
    ConvBackwardPass& operator=(const ConvBackwardPass&) = delete;

    TBPTT_COLD void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range mine = split(columns_, worker);
            for (int64_t row = mine.begin; row < mine.end && !apart_; ++row) pack(row);
        });
        if (p_.overlapping) clear_sums();
        for (int64_t i = ceil_div(shape_.steps, run_) - 1; i >= 0; --i) {
            steps_ = {i * run_, smaller((i + 1) * run_, shape_.steps)};
            cut_segments();
            before_.prepare(steps_);
            find_gates();
            apart_ ? walk_apart() : walk();
            gradients_.add(steps_, dgates_, cell_.candidate_apart ? dgates_x_ : dgates_);
            // The next run's segments go on from here.
            if (i > 0)
                __builtin_memcpy(later_, dgates_,
                                 static_cast<std::size_t>(shape_.batch * pixels_ * columns_) * sizeof(T));
        }
        if (turns_) {
            turn_images<T>(shape_.batch, pixels_, hidden_, grad_h0_, p_.grad_h0, false);
            if (cell_.has_c) turn_images<T>(shape_.batch, pixels_, hidden_, grad_c0_, p_.grad_c0, false);
        }
        gradients_.finish();
    }

   private:
    static constexpr int64_t most_rows = 32768;             // of one lag
    static constexpr int64_t run_bytes = int64_t{4} << 20;  // of dgates

    // Steps whose dgates are kept at a time: the problem alone decides, as sums are added run by run. Windows are not cut where
    // a run holds several.
    int64_t choose_run() const {
        const int64_t step = shape_.batch * pixels_ * columns_ * static_cast<int64_t>(sizeof(T));
        int64_t run = smaller(shape_.steps, larger<int64_t>(1, run_bytes / step));
        if (p_.overlapping) return shape_.steps;
        if (run >= p_.window) run -= run % p_.window;
        return run;
    }

    // Where the gates of this run lie, and what a tape has beside them.
    TBPTT_COLD void find_gates() {
        saved_ = {p_.tape.maps, p_.tape.beside, 0, hidden_};
        if (p_.tape.maps) return;
        const int64_t first = steps_.begin * shape_.batch, images = (steps_.end - steps_.begin) * shape_.batch;
        T* maps = p_.overlapping ? again_ : dgates_;
        saved_.maps = maps;
        saved_.first = first;
        if (!gates_) {  // a plain cell, which keeps its h
            if (turns_)
                turn_images<T>(images, pixels_, hidden_, p_.out + first * image_, maps, true);
            else
                saved_.maps = p_.out + first * image_;
            return;
        }
        T* of_candidate = p_.overlapping ? beside_again_ : dgates_x_;
        T* beside = cell_.candidate_apart ? of_candidate : nullptr;
        saved_.beside = cell_.has_c ? p_.tape.beside + first * image_ : beside;
        if (beside && !p_.overlapping) saved_.beside_pixel = columns_;
        gates_->make_again(steps_, before_, maps, beside, saved_.beside_pixel);
    }

    void clear_sums() {
        share_elements<T>(run_ * shape_.batch * pixels_ * columns_, [&](int64_t begin, int64_t count) {
            fill<T>(dgates_ + begin, count, 0);
            if (cell_.candidate_apart) fill<T>(dgates_x_ + begin, count, 0);
        });
    }

    // The segments' parts in the steps of this run, longest first. The initial state belongs to step 0.
    TBPTT_COLD void cut_segments() {
        Buffer<int64_t> places(steps_.end - steps_.begin + 3);
        fill<int64_t>(places, steps_.end - steps_.begin + 3, 0);
        const int64_t longest = steps_.end - steps_.begin + 1;
        const auto for_parts = [&](auto found) {
            for (int64_t i = 0; i < p_.segment_count; ++i) {
                const Segment& s = p_.segments[i];
                const int64_t first = smaller<int64_t>(s.origin, steps_.end - 1);
                const int64_t last = larger<int64_t>(s.origin - s.length + 1, steps_.begin > 0 ? steps_.begin : -1);
                if (first >= last && first >= steps_.begin) found(s, first, first - last + 1);
            }
        };
        count_ = 0;
        for_parts([&](const Segment&, int64_t, int64_t length) { ++places[longest - length + 1], ++count_; });
        for (int64_t i = 0; i <= longest; ++i) places[i + 1] += places[i];
        for_parts([&](const Segment& s, int64_t first, int64_t length) {
            const int64_t at = places[longest - length]++;
            segments_[at] = {s.batch, static_cast<std::int32_t>(first), static_cast<std::int32_t>(length),
                             s.inject_from};
            continued_[at] = first < s.origin;
        });
    }

    // Row k [tap][gate][unit of the later step] of the panels, as many as there are taps: columns are units of the state.
    void pack(int64_t row) {
        const int64_t width = panels_.width();
        for (int64_t unit = 0; unit < panels_.panels * width; unit += L) {
            const int64_t count = hidden_ - unit;
            const T* from = p_.layer.w_hh + (row * hidden_ + (count > 0 ? unit : 0)) * taps_count_;
            T* to = panels_.panel(unit / width) + row * width + unit % width;
            for_columns<T>(from, taps_count_, taps_count_, count,
                           [&](int64_t tap, Vec<T> values) { store(to + tap * columns_ * width, values); });
        }
    }

    // What one image does in one step of the walk.
    struct Live {
        int64_t step, place;  // -1 in the initial state; of the image in [T, B]
        bool carried;         // something comes from the later step
        bool injects;
        T factor;  // of that
        const T *carry, *more_grad_h;
        T *carry_out, *dgates, *dgates_x;
    };

    struct Walk {
        int64_t step, count;
        Live live[rows_together];
        const T* sources[rows_together];  // the later step's dgates
    };

    void walk() {
        Tasks even(blocks_.count(most_live_ * pixels_), threads_), odd(blocks_.count(most_live_ * pixels_), threads_);
        run_parallel(threads_, [&](const Worker& worker) { walk(worker, even, odd); });
    }

    // The product of each lag for itself, in runs of images that lie one after the other.
    TBPTT_COLD void walk_apart() {
        Lanes lanes(segments_, count_, most_lanes_);
        Walk w{0, 0, {}, {}};
        while (lanes.count() > 0) {
            find_live(lanes, w);
            for (int64_t i = 0, end; i < w.count; i = end) {
                for (end = i + 1; end < w.count && w.live[i].carried && w.live[end].carried &&
                                  w.sources[end] == w.sources[i] + (end - i) * pixels_ * columns_;)
                    ++end;
                if (w.live[i].carried)
                    convolve_back(w.sources[i], end - i, products_ + i * image_);
                else
                    fill<T>(products_ + i * image_, image_, 0);
            }
            const int64_t blocks = blocks_.count(w.count * pixels_);
            Tasks tasks(blocks, threads_);
            run_parallel(threads_, [&](const Worker& worker) {
                tasks.run(worker, [&](int64_t i) { finish_block(worker, w, i); });
                if (!p_.overlapping) return;
                wait_for_all(worker);
                add_own(worker, w);
            });
            lanes.advance(++w.step);
        }
    }

    void convolve_back(const T* dgates, int64_t images, T* to) {
        ConvolutionShape shape = convolution_of(shape_, images, true);
        shape.transposed = true;
        convolution_forward(
            ConvolutionForward<T>{shape, Activation::none, dgates, p_.layer.w_hh, weights_, nullptr, to});
    }

    TBPTT_COLD void finish_block(const Worker& worker, const Walk& w, int64_t index) {
        const int64_t first = index * blocks_.size, count = smaller(blocks_.size, w.count * pixels_ - first);
        BackwardLine<T>* lines = lines_ + worker.index * blocks_.size;
        find_lines(worker, w, first, count, lines);
        apply_(BackwardTile<T>{lines, count, products_ + first * hidden_, hidden_, 0, 0,
                               static_cast<int>(ceil_div(hidden_, L)), hidden_, nullptr, peepholes_.gate(), false,
                               false});
    }

    void walk(const Worker& worker, Tasks& even, Tasks& odd) {
        Lanes lanes(segments_, count_, most_lanes_);
        Walk w{0, 0, {}, {}};
        while (lanes.count() > 0) {
            Tasks &now = w.step % 2 ? odd : even, &next = w.step % 2 ? even : odd;
            next.reset(worker);
            find_live(lanes, w);
            const int64_t blocks = blocks_.count(w.count * pixels_);
            const int64_t parts = Blocks::parts(blocks, panels_.panels, threads_);
            now.run(worker, blocks * parts,
                    [&](int64_t i) { carry_back(worker, w, i / parts, split(panels_.panels, i % parts, parts)); });
            // dgates of other workers' rows enter this worker's next product.
            wait_for_all(worker);
            if (p_.overlapping) add_own(worker, w);
            lanes.advance(++w.step);
        }
    }

    T* own(int64_t step, int64_t slot) const { return own_ + (step % 2 * most_live_ + slot) * pixels_ * own_columns_; }
    T* dgates(int64_t place) const { return dgates_ + (place - steps_.begin * shape_.batch) * pixels_ * columns_; }
    T* dgates_x(int64_t place) const { return dgates_x_ + (place - steps_.begin * shape_.batch) * pixels_ * columns_; }
    // The carry that a run leaves to the one before it; they take turns.
    T* carry_between(bool written, int64_t batch) const {
        const int64_t turn = (steps_.begin / run_ + (written ? 0 : 1)) % 2;
        return carries_ + (turn * shape_.batch + batch) * image_;
    }

    TBPTT_COLD void find_live(const Lanes& lanes, Walk& w) const {
        w.count = lanes.count();
        for (int64_t i = 0; i < w.count; ++i) {
            const Lanes::Lane& lane = lanes[i];
            const Segment& segment = *lane.segment;
            const int64_t lag = w.step - lane.begin, step = segment.origin - lag;
            const int64_t place = step * shape_.batch + segment.batch, later = place + shape_.batch;
            const bool goes_on = lag == 0 && continued_[lane.segment - segments_], carried = lag > 0 || goes_on;
            const bool final = !carried && step == shape_.steps - 1, initial = step < 0;
            T* slot = carry_ + lane.slot * image_;
            Live& live = w.live[i];
            live.step = step;
            live.place = place;
            live.carried = carried;
            live.injects = p_.grad_out && step >= segment.inject_from;
            live.factor = carried && p_.carry_scale ? p_.carry_scale[later] : T(1);
            live.more_grad_h = final && grad_h_n_.data() ? grad_h_n_.data() + segment.batch * image_ : nullptr;
            live.carry = goes_on                     ? carry_between(false, segment.batch)
                         : carried                   ? slot
                         : final && grad_c_n_.data() ? grad_c_n_.data() + segment.batch * image_
                                                     : nullptr;
            live.carry_out = step == steps_.begin && step > 0 ? carry_between(true, segment.batch) : slot;
            if (p_.overlapping) {
                live.dgates = own(w.step, lane.slot);
                live.dgates_x = live.dgates + columns_;
                if (initial) live.carry_out = live.dgates + hidden_;
            } else if (initial) {
                live.dgates = grad_h0_ + segment.batch * image_;
                live.dgates_x = nullptr;
                live.carry_out = cell_.has_c ? grad_c0_ + segment.batch * image_ : slot;
            } else {
                live.dgates = dgates(place);
                live.dgates_x = cell_.candidate_apart ? dgates_x(place) : nullptr;
            }
            w.sources[i] = !carried         ? nullptr
                           : goes_on        ? later_ + segment.batch * pixels_ * columns_
                           : p_.overlapping ? own(w.step + 1, lane.slot)
                                            : dgates(later);
        }
    }

    TBPTT_COLD void carry_back(const Worker& worker, const Walk& w, int64_t index, Range panels) {
        const int64_t first = index * blocks_.size, count = smaller(blocks_.size, w.count * pixels_ - first);
        const T** pieces = pieces_ + worker.index * taps_count_ * blocks_.size;
        BackwardLine<T>* lines = lines_ + worker.index * blocks_.size;
        const bool carried = find_lines(worker, w, first, count, lines);
        const auto finish = [&](int64_t p, int64_t row, int64_t height, const T* c) {
            apply_(BackwardTile<T>{lines + row, height, c ? c : nothing<T>, c ? panels_.width() : 0, 0,
                                   p * panels_.width(), panels_.vectors, hidden_, nullptr, peepholes_.gate(), false,
                                   false});
        };
        if (carried) {
            find_pieces<T>(shape_, taps_, w.sources, own_columns_, first, count, zeros_, pieces, blocks_.size);
            product<T>(Rows<T>{pieces, columns_, taps_count_, blocks_.size}, count, panels_, panels, finish);
        } else {
            for (int64_t p = panels.begin; p < panels.end; ++p) finish(p, 0, count, nullptr);
        }
    }

    // Whether anything is carried to any of the rows.
    TBPTT_COLD bool find_lines(const Worker& worker, const Walk& w, int64_t first, int64_t count,
                               BackwardLine<T>* lines) const {
        bool any = false;
        for_images(pixels_, first, count, [&](int64_t row, int64_t image, int64_t pixel, int64_t length) {
            const Live& live = w.live[image];
            const bool initial = live.step < 0;
            any |= live.carried;
            const int64_t place = initial ? 0 : live.place;
            const T *h = initial || !cell_.candidate_apart ? nullptr : before_.h(place),
                    *c = initial || !cell_.has_c ? nullptr : before_.c(place);
            const T* grad = live.injects ? find_losses(worker, place, pixel, length, row) : nullptr;
            // elements from one pixel to the next
            const int64_t dgates_stride = initial && !p_.overlapping ? hidden_ : own_columns_;
            const int64_t carry_stride = initial && p_.overlapping ? own_columns_ : hidden_;
            const auto part = [&](const T* from, int64_t at) {
                return from ? from + at : static_cast<const T*>(zeros_);
            };
            for (int64_t i = 0; i < length; ++i, ++row, ++pixel) {
                const int64_t at = (place - saved_.first) * pixels_ + pixel;
                lines[row] = {saved_.maps + at * columns_,
                              part(saved_.beside, at * saved_.beside_pixel),
                              part(h, pixel * hidden_),
                              part(c, pixel * hidden_),
                              part(grad, i * hidden_),
                              part(live.more_grad_h, pixel * hidden_),
                              part(live.carry, pixel * hidden_),
                              live.carry_out + pixel * carry_stride,
                              live.dgates + pixel * dgates_stride,
                              live.dgates_x ? live.dgates_x + pixel * dgates_stride : nullptr,
                              peepholes_.at(pixel),
                              live.factor,
                              initial};
            }
        });
        return any;
    }

    // The gradients of the losses by some pixels' outputs, their channels together.
    __attribute__((noinline)) const T* find_losses(const Worker& worker, int64_t place, int64_t pixel, int64_t count,
                                                   int64_t row) const {
        if (!turns_) return p_.grad_out + place * image_ + pixel * hidden_;
        T* to = grad_scratch_ + (worker.index * blocks_.size + row) * hidden_;
        planes_to_pixels<T>(p_.grad_out + place * image_ + pixel, pixels_, count, hidden_, to, hidden_);
        return to;
    }

    // Overlapping windows add to the same steps: each element's sums belong to one worker, in the order of the lanes.
    TBPTT_COLD void add_own(const Worker& worker, const Walk& w) {
        const Range pixels = split(pixels_, worker);
        for (int64_t i = 0; i < w.count; ++i) {
            const Live& live = w.live[i];
            for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
                const T* from = live.dgates + pixel * own_columns_;
                if (live.step < 0) {
                    const int64_t state = (live.place + shape_.batch) * image_ + pixel * hidden_;
                    add_to<T>(grad_h0_ + state, from, hidden_);
                    if (cell_.has_c) add_to<T>(grad_c0_ + state, from + hidden_, hidden_);
                    continue;
                }
                add_to<T>(dgates(live.place) + pixel * columns_, from, columns_);
                if (cell_.candidate_apart)
                    add_to<T>(dgates_x(live.place) + pixel * columns_, from + columns_, columns_);
            }
        }
    }

    // What the cells read of the steps from place `first` of [T, B] on.
    struct Saved {
        const T *maps, *beside;
        int64_t first, beside_pixel;
    };

    const ConvRecurrentBackward<T>& p_;
    ConvGates<T>* const gates_;
    const ConvRecurrentShape shape_;
    const CellShape cell_;
    const int64_t pixels_, hidden_, image_, columns_, taps_count_;
    const int64_t own_columns_;  // of a pixel's dgates during the walk
    const int64_t most_lanes_, most_live_;
    const int64_t run_;  // steps at a time
    const int threads_;
    const bool turns_;  // the output is in planes
    const bool apart_;  // the product of a lag is made before the cell
    const ApplyBackward<T> apply_;
    const Blocks blocks_;
    Packed<T> panels_;
    Buffer<T> packed_, products_, zeros_, dgates_, later_, dgates_x_, again_, beside_again_, own_, carry_, carries_,
        grad_scratch_, turned_h0_, turned_c0_;
    T *const grad_h0_, *const grad_c0_;
    Buffer<Tap> taps_;
    StatesBefore<T> before_;
    ConvGradients<T> gradients_;
    const StateImages<T> grad_h_n_, grad_c_n_;
    const Peepholes<T> peepholes_;
    Buffer<const T*> pieces_;
    Buffer<BackwardLine<T>> lines_;
    Buffer<Segment> segments_;
    Buffer<bool> continued_;
    PackedWeights* const weights_;
    int64_t count_ = 0;  // of the run's segments
    Range steps_{0, 0};  // of the run
    Saved saved_{nullptr, nullptr, 0, 0};
};

template <class T>
void convrecurrent_backward(const ConvRecurrentBackward<T>& p) {
    if (p.tape.maps || shape_of(p.layer.shape.cell).saved == 0) return ConvBackwardPass<T>(p, nullptr).run();
    ConvGates<T> gates(p.layer, p.layer.shape.steps * p.layer.shape.batch);
    ConvBackwardPass<T>(p, &gates).run();
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
