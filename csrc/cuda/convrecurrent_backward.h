// The backward pass of a convolutional recurrent layer, for every cell and every truncation.
//
// Windows are rows of one batch, as in recurrent_backward.h. At lag j one transposed convolution over the images of all windows
// that reach so far carries the gates' gradients back by one step, with the cell's backward behind it. What it leaves, dgates,
// is summed over windows; then the gradients by the weights and by x are one call each. How many steps the longest window has
// is known to the host, which makes a launch for each; where masks cut is known to the device alone. Before its losses a window
// ends with the first cut it meets: windows are ordered by length, and launches leave the images behind the live ones alone.
// Between its losses every step is needed anyway, and what comes from behind a cut is left out there by selection.
#pragma once

#include "convrecurrent_gradients.h"
#include "rounding.h"
#include "segments.h"

namespace tbptt {
namespace cuda {

// How far the windows of a truncation go where nothing cuts; the first goes on into the initial state.
struct ConvWindows {
    int steps, k1, k2;

    int count() const { return (steps + k1 - 1) / k1; }
    int length(int n) const {
        const int losses = n * k1, end = losses + k1 < steps ? losses + k1 : steps;
        return losses + k1 > k2 ? end - (losses + k1 - k2) : end + 1;
    }
};

// A window with all losses is the sequence, whatever its reach; a reach of two sequences reaches the first step from all.
inline ConvWindows windows_of(std::int64_t steps, Truncation truncation) {
    const std::int64_t k1 = truncation.k1 < steps ? truncation.k1 : steps, most = 2 * steps;
    const std::int64_t k2 = k1 == steps ? steps : truncation.k2 < most ? truncation.k2 : most;
    return {to_index(steps), static_cast<int>(k1), static_cast<int>(k2)};
}

// One lag.
template <class T>
struct ConvBackStep {
    ImageRows rows;
    Rows windows;
    SegmentRules<T> rules;
    int lag;
    const Real<T>* products;  // [windows·B, pixels, H]: by the state that entered the later step; not read at lag 0
    const T *maps, *beside;   // the tape
    const T *out, *h0, *c0;   // out [T·B, pixels, H], the others [B, pixels, H] or null
    const T *grad_out, *grad_h_n, *grad_c_n;  // like these, or null
    Peepholes<T> peepholes;
    Real<T>* carry;  // [windows·B, pixels, H]
    T* own;          // out = [windows·B, pixels, G·H] for the next product; or null: dgates are the only window's
    // out = [T·B, pixels, G·H], unless windows overlap: what meets W_hh, and what meets W_ih where that differs. Either may
    // be where `maps` are.
    T *dgates, *dgates_x;
    Real<T>*sums, *sums_x;      // where they do: out += these of all windows; or null
    Real<T>*grad_h0, *grad_c0;  // out += [B, pixels, H]
};

// Found on the host: no function of the shape can be called on a device.
template <class Cell>
constexpr int first_recurrent = Cell::shape.recurrent_first();

template <class T>
TBPTT_DEVICE void add_or_set(Real<T>* sums, T* values, std::int64_t at, Real<T> value) {
    if (sums)
        sums[at] += value;
    else
        values[at] = T(value);
}

template <class T, template <class> class CellOf>
__global__ void __launch_bounds__(256, 2) carry_back(const ConvBackStep<T> p) {
    using V = Real<T>;
    using Cell = CellOf<ScalarMath<V>>;
    constexpr CellShape cell = Cell::shape;
    constexpr int gates = cell.gates;
    const int hidden = p.rows.hidden, values = p.rows.image(), batch = p.rows.batch, live = p.windows.live(p.lag);
    for (std::int64_t row = blockIdx.y; row < live; row += gridDim.y) {
        const Segment window = p.windows[static_cast<int>(row)];
        const int b = window.batch, step = window.origin - p.lag;
        const std::int64_t place = std::int64_t{step} * batch + b, later = place + batch;
        const bool carried = p.lag > 0 && !p.rules.cut(step + 1, b), injects = p.grad_out && step >= window.inject_from;
        const bool final = p.lag == 0 && step == p.rules.steps - 1, initial = step < 0;
        const bool reset = !initial && p.rules.is_init && p.rules.is_init[place] != 0;
        const V factor = carried && p.rules.carry_scale ? V(p.rules.carry_scale[later]) : V(1);
        const auto before = [&](const T* given, const T* others, int i) {
            if (reset) return V(0);
            if (step == 0) return given ? V(given[std::int64_t{b} * values + i]) : V(0);
            return V(others[(place - batch) * values + i]);
        };
        for (int i = static_cast<int>(global_index()); i < values; i += static_cast<int>(global_count())) {
            const int pixel = i / hidden, unit = i - pixel * hidden;
            const std::int64_t state = std::int64_t{b} * values + i, at = place * values + i;
            V dh = carried ? p.products[row * values + i] * factor : V(0);
            V carry = cell.has_carry && carried ? p.carry[row * values + i] * factor : V(0);
            if (initial) {
                p.grad_h0[state] += cell.has_carry && !cell.has_c ? dh + carry : dh;
                if (cell.has_c) p.grad_c0[state] += carry;
                continue;
            }
            if (injects) dh += p.grad_out[at];
            if (final && p.grad_h_n) dh += p.grad_h_n[state];
            if (cell.has_c && final && p.grad_c_n) carry += p.grad_c_n[state];
            const std::int64_t gate = (place * p.rows.pixels + pixel) * (gates * hidden) + unit;
            V saved[cell.saved + 1], dgates[cell.gate_gradients], carry_out = 0;
#pragma unroll
            for (int g = 0; g < gates; ++g)
                if (cell.saved > 0) saved[g] = from_tape(p.maps[gate + g * hidden], cell.sigmoids >> g & 1u);
            if (cell.candidate_apart) saved[gates] = p.beside[at];
            const V h = cell.saved == 0 ? V(p.out[at]) : V(0), c = cell.has_c ? V(p.beside[at]) : V(0);
            const V h_before = cell.candidate_apart ? before(p.h0, p.out, i) : V(0);
            const V c_before = cell.has_c ? before(p.c0, p.beside, i) : V(0);
            if (cell.has_c && p.peepholes.weights) {
                if constexpr (cell.has_c) {
                    V weights[3];
                    p.peepholes.load(p.rows, i, unit, weights);
                    Cell::backward(saved, h, h_before, c_before, c, dh, carry, dgates, carry_out, weights);
                }
            } else {
                Cell::backward(saved, h, h_before, c_before, c, dh, carry, dgates, carry_out);
            }
            if (cell.has_carry) p.carry[row * values + i] = carry_out;
            const std::int64_t own = (row * p.rows.pixels + pixel) * (gates * hidden) + unit;
#pragma unroll
            for (int g = 0; g < gates; ++g) {
                const std::int64_t to = gate + g * hidden;
                const V by_state = dgates[first_recurrent<Cell> + g];
                if (p.own) p.own[own + g * hidden] = T(by_state);
                add_or_set(p.sums, p.dgates, to, by_state);
                if (!cell.candidate_apart) continue;
                const V by_x = dgates[(g + 1) % gates];  // which begin with the weights' last block
                add_or_set(p.sums_x, p.dgates_x, to, by_x);
            }
        }
    }
}

template <class T>
using CarryBack = void (*)(ConvBackStep<T>);

template <class T>
CarryBack<T> find_carry_back(Cell cell) {
    switch (cell) {
        case Cell::rnn_tanh: return &carry_back<T, RnnTanh>;
        case Cell::rnn_relu: return &carry_back<T, RnnRelu>;
        case Cell::gru: return &carry_back<T, Gru>;
        default: return &carry_back<T, Lstm>;
    }
}

template <class T>
class ConvBackwardPass {
   public:
    ConvBackwardPass(const ConvRecurrentBackward<T>& p, Truncation truncation, const Call& call)
        : p_(p),
          shape_(p.layer.shape),
          cell_(shape_of(shape_.cell)),
          call_(call),
          windows_(windows_of(shape_.steps, truncation)),
          rules_{windows_.steps, to_index(shape_.batch), windows_.k1,   windows_.k2,
                 true,           p.layer.is_init,        p.carry_scale, true},
          found_(rules_, call),
          operands_(p.layer, call),
          state_(operands_.step),
          maps_(state_ * cell_.gates),
          adds_(windows_.count() > 1 && windows_.k1 < windows_.k2),
          remakes_(cell_.saved > 0 && !p.tape.maps),
          out_(shape_, places(), shape_.hidden, p.out, call.stream),
          grad_out_(shape_, places(), shape_.hidden, p.grad_out, call.stream),
          grad_h_n_(shape_, shape_.batch, shape_.hidden, p.grad_h_n, call.stream),
          grad_c_n_(shape_, shape_.batch, shape_.hidden, p.grad_c_n, call.stream),
          dgates_(shape_.steps * maps_, call.stream),
          dgates_x_(cell_.candidate_apart ? shape_.steps * maps_ : 0, call.stream),
          again_(remakes_ && adds_ ? shape_.steps * maps_ : 0, call.stream),
          candidate_(remakes_ && cell_.candidate_apart ? shape_.steps * state_ : 0, call.stream),
          own_(windows_.count() > 1 ? windows_.count() * maps_ : 0, call.stream),
          carry_(cell_.has_carry ? windows_.count() * state_ : 0, call.stream),
          products_(windows_.count() * state_, call.stream),
          grad_h0_(shape_, shape_.batch, shape_.hidden, p.grad_h0, call.stream),
          grad_c0_(shape_, shape_.batch, shape_.hidden, p.grad_c0, call.stream),
          sums_(dgates_, adds_ ? shape_.steps * maps_ : 0, call),
          sums_x_(dgates_x_, dgates_x_ && adds_ ? shape_.steps * maps_ : 0, call),
          sums_h0_(grad_h0_.data(), state_, call),
          sums_c0_(grad_c0_.data(), cell_.has_c ? state_ : 0, call) {}

    void run() const {
        // Where windows do not overlap, gates are read for the last time where their gradients are written.
        T* again = again_ ? static_cast<T*>(again_) : static_cast<T*>(dgates_);
        if (remakes_) make_again(again);
        walk(remakes_ ? again : p_.tape.maps);
        for (const Sums<T>* each : {&sums_, &sums_x_, &sums_h0_, &sums_c0_}) each->finish();
        grad_h0_.finish();
        grad_c0_.finish();
        const T* by_inputs = dgates_x_ ? static_cast<const T*>(dgates_x_) : static_cast<const T*>(dgates_);
        ConvGradients<T>(p_, {out_, operands_.h0, operands_.c0, dgates_, by_inputs}, call_).run();
    }

   private:
    std::int64_t places() const { return shape_.steps * shape_.batch; }

    // What a tape without gates does not hold, step by step as in the forward pass.
    void make_again(T* maps) const {
        const ConvGates<T> gates(operands_, call_);
        for (std::int64_t first = 0; first < shape_.steps; first += gates.run()) {
            const std::int64_t left = shape_.steps - first, count = left < gates.run() ? left : gates.run();
            gates.convolve_inputs(first, count, maps + first * maps_);
            for (std::int64_t t = first; t < first + count; ++t) {
                ConvStep<T> to{};
                to.maps = maps + t * maps_;
                to.keeps = true;
                if (candidate_) to.candidate = candidate_ + t * state_;
                const T* c = t > 0 ? p_.tape.beside + (t - 1) * state_ : operands_.c0;
                gates.apply(t, t > 0 ? out_ + (t - 1) * state_ : operands_.h0, cell_.has_c ? c : nullptr, to);
            }
        }
    }

    void walk(const T* maps) const {
        ConvBackStep<T> s{};
        s.rows = operands_.rows;
        s.windows = found_.rows();
        s.rules = rules_;
        s.products = products_;
        s.maps = maps;
        s.beside = candidate_ ? static_cast<const T*>(candidate_) : p_.tape.beside;
        s.out = out_;
        s.h0 = operands_.h0;
        s.c0 = operands_.c0;
        s.grad_out = grad_out_;
        s.grad_h_n = grad_h_n_;
        s.grad_c_n = grad_c_n_;
        s.peepholes = operands_.peepholes();
        s.carry = carry_;
        s.own = own_;
        s.dgates = dgates_;
        s.dgates_x = dgates_x_;
        s.sums = sums_.values();
        s.sums_x = sums_x_.values();
        s.grad_h0 = sums_h0_.values();
        s.grad_c0 = sums_c0_.values();
        ConvolutionShape transpose = convolution_of(shape_, cell_.gates, shape_.batch, true);
        transpose.transposed = true;
        const PackedConvolution<T> back(transpose, p_.layer.w_hh, nullptr, call_);
        const CarryBack<T> kernel = find_carry_back<T>(shape_.cell);
        // Of those that reach a lag where nothing cuts, which follow one another: the first windows end with the sequence, and
        // the last one may be short.
        int first = 0, end = windows_.count();
        for (;; ++s.lag) {
            while (first < end && windows_.length(first) <= s.lag) ++first;
            while (end > first && windows_.length(end - 1) <= s.lag) --end;
            if (first == end) return;
            const std::int64_t most = (end - first) * shape_.batch;
            const int* live = s.windows.segments ? s.windows.live_at + s.lag : nullptr;
            if (s.lag > 0) back.run(most, live, own_ ? own_ : dgates_ + (shape_.steps - s.lag) * maps_, products_);
            launch(kernel, grid_for_images(s.rows, most), call_.stream, s);
        }
    }

    const ConvRecurrentBackward<T>& p_;
    const ConvRecurrentShape& shape_;
    const CellShape cell_;
    const Call& call_;
    const ConvWindows windows_;
    const SegmentRules<T> rules_;
    const FoundRows<T> found_;
    const ConvOperands<T> operands_;
    const std::int64_t state_, maps_;  // values of one step
    const bool adds_;                  // windows overlap
    const bool remakes_;               // gates that the tape does not hold
    const ChannelsLast<T> out_, grad_out_, grad_h_n_, grad_c_n_;
    const Scratch<T> dgates_, dgates_x_, again_, candidate_, own_;
    const Scratch<Real<T>> carry_, products_;
    const WrittenChannelsLast<T> grad_h0_, grad_c0_;
    const Sums<T> sums_, sums_x_, sums_h0_, sums_c0_;
};

}  // namespace cuda
}  // namespace tbptt
