// The backward pass of a recurrent layer, for every cell and every truncation.
//
// Windows and segments are rows of one batch. At lag j one product over all live rows carries the gates' gradients back
// by one step, with the cell's backward fused behind it. What it leaves, dgates [T·B, …], is summed over windows; then
// each weight gradient is one product over all rows, however many windows there were.
#pragma once

#include "recurrent.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T, template <class> class CellOf>
class BackwardPass {
    using Cell = CellOf<VecMath<T>>;
    using V = Vec<T>;
    static constexpr CellShape cell = Cell::shape;
    static constexpr int L = lanes<T>;

   public:
    explicit BackwardPass(const RecurrentBackward<T>& p)
        : p_(p),
          shape_(p.layer.shape),
          rows_(shape_.steps * shape_.batch),
          hidden_(shape_.hidden),
          ld_(row_stride(cell.gate_gradients * hidden_)),
          threads_(threads_for(2.0 * static_cast<double>(rows_) * cell.gates * static_cast<double>(hidden_) *
                               static_cast<double>(2 * shape_.inputs + 2 * hidden_))),
          plan_(choose_plan(p)),
          recurrent_(layout_panels<T>(cell.gates * hidden_, hidden_, vectors_for<T>(hidden_, plan_))),
          input_(layout_panels<T>(cell.gates * hidden_, shape_.inputs, choose_vectors<T>(shape_.inputs))),
          blocks_{},
          packed_recurrent_(recurrent_.size()),
          packed_input_(input_.size()),
          dgates_(rows_ * ld_),
          x_rows_(rows_),
          h_rows_(rows_),
          own_dgates_(p.overlapping ? 2 * rows_together * ld_ : 0),
          carry_(cell.has_carry ? scratches() * rows_together * hidden_ : 0),
          pointers_(threads_ * dx_rows),
          segments_(plan_.threads * p.segment_count),
          operands_{{x_rows_, shape_.inputs, p.grad_w_ih, p.grad_b_ih}, {h_rows_, hidden_, p.grad_w_hh, p.grad_b_hh}},
          gradient_(rows_, dgates_, ld_, blocks_, describe_blocks(), operands_, 2) {
        recurrent_.data = packed_recurrent_;
        input_.data = packed_input_;
    }

    void run() {
        run_parallel(plan_.threads, [this](const Worker& worker) {
            prepare(worker);
            wait_for_all(worker);
            walk(worker);
        });
        run_parallel(threads_, [this](const Worker& worker) {
            input_gradient(worker);
            gradient_.run(worker);
        });
    }

   private:
    static constexpr int64_t dx_rows = 96;  // rows of dgates that stay in the second-level cache for all panels of W_ih

    // Rows a power of two apart would all fall into the same cache sets.
    static int64_t row_stride(int64_t columns) {
        constexpr int64_t line = 64 / sizeof(T);
        return (ceil_div(columns, line) | 1) * line;
    }

    static Plan choose_plan(const RecurrentBackward<T>& p) {
        const RecurrentShape& s = p.layer.shape;
        const double hidden = static_cast<double>(s.hidden), depth = cell.gates * hidden;
        double steps = 0;
        for (int64_t i = 0; i < p.segment_count; ++i) steps += p.segments[i].length;
        const int threads = threads_for(2 * steps * depth * hidden);
        Plan plan = make_plan(threads, static_cast<double>(p.segment_count), depth, hidden, depth * hidden * sizeof(T));
        // Overlapping windows add to the same steps: each unit's sums must belong to one worker.
        if (p.overlapping) plan = {threads, Sharing::units};
        return plan;
    }

    int64_t scratches() const { return plan_.sharing == Sharing::rows ? plan_.threads : 1; }

    int describe_blocks() {
        const int64_t h = hidden_;
        if (!cell.candidate_apart) {
            blocks_[0] = {0, cell.gates * h, {0, 0}};
            return 1;
        }
        const int64_t others = (cell.gates - 1) * h;
        blocks_[0] = {0, h, {others, -1}};             // the candidate's input part
        blocks_[1] = {h, others, {0, 0}};              // the other gates
        blocks_[2] = {h + others, h, {-1, others}};    // the candidate's recurrent part
        return 3;
    }

    void prepare(const Worker& worker) {
        const Range recurrent = split(recurrent_.panels, worker), input = split(input_.panels, worker);
        for (int64_t p = recurrent.begin; p < recurrent.end; ++p)
            pack_rows(recurrent_, p, p_.layer.w_hh, hidden_, hidden_);
        for (int64_t p = input.begin; p < input.end; ++p)
            pack_rows(input_, p, p_.layer.w_ih, shape_.inputs, shape_.inputs, cell.input_rotation() * hidden_);
        const Range rows = split(rows_, worker), initial = split(shape_.batch * hidden_, worker);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            x_rows_[i] = p_.layer.x + i * shape_.inputs;
            h_rows_[i] = h_before(i);
        }
        if (p_.overlapping) fill<T>(dgates_ + rows.begin * ld_, (rows.end - rows.begin) * ld_, 0);
        fill<T>(p_.grad_h0 + initial.begin, initial.end - initial.begin, 0);
        if (cell.has_c) fill<T>(p_.grad_c0 + initial.begin, initial.end - initial.begin, 0);
    }

    // The state that entered step and row `place`; null for zeros. A reset selects: 0·NaN never enters.
    const T* before(int64_t place, const T* initial, const T* history) const {
        if (p_.layer.is_init && p_.layer.is_init[place]) return nullptr;
        if (place >= shape_.batch) return history + (place - shape_.batch) * hidden_;
        return initial ? initial + place * hidden_ : nullptr;
    }
    const T* h_before(int64_t place) const { return before(place, p_.layer.h0, p_.tape.h); }
    const T* c_before(int64_t place) const { return before(place, p_.layer.c0, p_.tape.c); }

    struct Walk {
        const Segment* segments;
        int64_t count;
        Range panels;
        T* carry;            // [rows together][H]
        const T** pointers;  // [rows together]
        const Worker& worker;
    };

    void walk(const Worker& worker) {
        const bool by_rows = plan_.sharing == Sharing::rows;
        Segment* mine = segments_ + worker.index * p_.segment_count;
        const int64_t count = take_segments(p_.segments, p_.segment_count, plan_.sharing, worker, mine);
        const T* pointers[rows_together];
        Walk w{mine,
               0,
               by_rows ? Range{0, recurrent_.panels} : split(recurrent_.panels, worker),
               carry_ + (by_rows ? worker.index : 0) * rows_together * hidden_,
               pointers,
               worker};
        for (int64_t first = 0; first < count; first += rows_together) {
            w.segments = mine + first;
            w.count = smaller(rows_together, count - first);
            walk_together(w);
        }
    }

    void walk_together(const Walk& w) {
        int64_t live = w.count;
        for (int64_t lag = 0;; ++lag) {
            while (live > 0 && w.segments[live - 1].length <= lag) --live;
            if (live == 0) break;
            lag == 0 ? start(w) : carry_back(w, lag, live);
            // dgates of other workers' units enter this worker's next product.
            if (plan_.sharing == Sharing::units) wait_for_all(w.worker);
        }
    }

    // Lag 0: nothing comes from later steps but the gradient of the final state.
    void start(const Walk& w) {
        alignas(64) const T nothing[max_vectors * L] = {};
        for (int64_t p = w.panels.begin; p < w.panels.end; ++p)
            for (int64_t i = 0; i < w.count; ++i) apply_cell(w, p, i, 0, nothing);
    }

    void carry_back(const Walk& w, int64_t lag, int64_t live) {
        for (int64_t i = 0; i < live; ++i) w.pointers[i] = gradients_of(w, i, lag - 1) + cell.recurrent_first() * hidden_;
        product<T>(
            w.pointers, live, recurrent_, w.panels,
            [&](int64_t p, int64_t first, int height, const T* c) {
                for (int r = 0; r < height; ++r, c += recurrent_.width()) apply_cell(w, p, first + r, lag, c);
            },
            lag % 2 != 0);
    }

    // Where the row's own dgates of this lag lie: in the sum itself if no other window adds to it.
    T* gradients_of(const Walk& w, int64_t row, int64_t lag) const {
        if (p_.overlapping) return own_dgates_ + ((lag % 2) * rows_together + row) * ld_;
        return dgates_ + place(w.segments[row], lag) * ld_;
    }

    int64_t place(const Segment& segment, int64_t lag) const {
        return (segment.origin - lag) * shape_.batch + segment.batch;
    }

    void apply_cell(const Walk& w, int64_t p, int64_t row, int64_t lag, const T* product) {
        const Segment& segment = w.segments[row];
        const int64_t step = segment.origin - lag, place = this->place(segment, lag);
        const T factor = lag > 0 && p_.carry_scale ? p_.carry_scale[place + shape_.batch] : T(1);
        for (int v = 0; v < recurrent_.vectors; ++v) {
            const int64_t unit = (p * recurrent_.vectors + v) * L, count = hidden_ - unit;
            if (count <= 0) break;
            const V dh = load(product + v * L) * factor;
            T* carry_row = carry_ ? w.carry + row * hidden_ + unit : nullptr;
            const V carry = cell.has_carry && lag > 0 ? load_partial(carry_row, count) * factor : V{};
            if (step < 0)
                into_initial_state(segment.batch * hidden_ + unit, count, dh, carry);
            else
                into_gates(w, segment, row, lag, place, unit, count, dh, carry, carry_row);
        }
    }

    void into_initial_state(int64_t at, int64_t count, V dh, V carry) {
        V grad_h = load_partial(p_.grad_h0 + at, count) + dh;
        if (cell.has_carry && !cell.has_c) grad_h += carry;
        store_partial(p_.grad_h0 + at, grad_h, count);
        if (cell.has_c) store_partial(p_.grad_c0 + at, load_partial(p_.grad_c0 + at, count) + carry, count);
    }

    TBPTT_INLINE void into_gates(const Walk& w, const Segment& segment, int64_t row, int64_t lag, int64_t place,
                                 int64_t unit, int64_t count, V dh, V carry, T* carry_row) {
        const int64_t step = segment.origin - lag, at = place * hidden_ + unit;
        const RecurrentTape<T>& tape = p_.tape;
        if (p_.grad_out && step >= segment.inject_from) dh += load_partial(p_.grad_out + at, count);
        if (lag == 0 && step == shape_.steps - 1) {
            const int64_t final = segment.batch * hidden_ + unit;
            if (p_.grad_h_n) dh += load_partial(p_.grad_h_n + final, count);
            if (cell.has_c && p_.grad_c_n) carry += load_partial(p_.grad_c_n + final, count);
        }
        V saved[cell.saved + 1], gates[cell.gate_gradients], carry_out{};
        for (int s = 0; s < cell.saved; ++s)
            saved[s] = load_partial(tape.saved + (place * cell.saved + s) * hidden_ + unit, count);
        const auto entering = [&](const T* state) { return state ? load_partial(state + unit, count) : V{}; };
        const V h = cell.saved == 0 ? load_partial(tape.h + at, count) : V{};
        const V c = cell.has_c ? load_partial(tape.c + at, count) : V{};
        const V h_old = cell.candidate_apart ? entering(h_rows_[place]) : V{};
        const V c_old = cell.has_c ? entering(c_before(place)) : V{};
        Cell::backward(saved, h, h_old, c_old, c, dh, carry, gates, carry_out);
        if (cell.has_carry) store_partial(carry_row, carry_out, count);
        T* own = gradients_of(w, row, lag) + unit;
        for (int g = 0; g < cell.gate_gradients; ++g) store_partial(own + g * hidden_, gates[g], count);
        if (!p_.overlapping) return;
        T* sum = dgates_ + place * ld_ + unit;
        for (int g = 0; g < cell.gate_gradients; ++g)
            store_partial(sum + g * hidden_, load_partial(sum + g * hidden_, count) + gates[g], count);
    }

    void input_gradient(const Worker& worker) {
        const Range blocks = split(ceil_div(rows_, dx_rows), worker);
        const T** pointers = pointers_ + worker.index * dx_rows;
        const int64_t inputs = shape_.inputs;
        for (int64_t first = blocks.begin * dx_rows; first < smaller(blocks.end * dx_rows, rows_); first += dx_rows) {
            const int64_t count = smaller(dx_rows, rows_ - first);
            for (int64_t i = 0; i < count; ++i) pointers[i] = dgates_ + (first + i) * ld_ + cell.input_first() * hidden_;
            product<T>(pointers, count, input_, Range{0, input_.panels},
                       [&](int64_t p, int64_t row, int height, const T* c) {
                           const int64_t column = p * input_.width();
                           T* to = p_.grad_x + (first + row) * inputs + column;
                           for (int r = 0; r < height; ++r, to += inputs, c += input_.width())
                               for (int64_t j = 0; j < input_.width() && column + j < inputs; j += L)
                                   store_partial(to + j, load(c + j), inputs - column - j);
                       });
        }
    }

    const RecurrentBackward<T>& p_;
    const RecurrentShape shape_;
    const int64_t rows_, hidden_, ld_;
    const int threads_;
    const Plan plan_;
    Packed<T> recurrent_, input_;
    GradientBlock blocks_[3];
    Buffer<T> packed_recurrent_, packed_input_, dgates_;
    Buffer<const T*> x_rows_, h_rows_;
    Buffer<T> own_dgates_, carry_;
    Buffer<const T*> pointers_;
    Buffer<Segment> segments_;
    GradientOperand<T> operands_[max_operands];
    WeightGradient<T> gradient_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
