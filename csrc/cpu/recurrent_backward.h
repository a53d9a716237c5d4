// The backward pass of a recurrent layer, for every cell and every truncation.
//
// Windows and segments are rows of one batch. At lag j one product over all live rows carries the gates' gradients back
// by one step, with the cell's backward fused behind it. What it leaves, dgates [T·B, …], is summed over windows; then
// each weight gradient is one product over all rows, however many windows there were.
//
// The same walk measures how gradients decay: with windows of one loss, what reaches a cell is the gradient of one loss by
// the state that left the cell. Then only the states' norms are written, and nothing behind the walk is done.
#pragma once

#include "few_rows.h"
#include "lag_norms.h"
#include "recurrent.h"
#include "weight_gradient.h"

namespace tbptt {
namespace TBPTT_ISA {

// out [count][columns] = rows·b, where `few` rows meet the lines of w as they are, and others the panels of w, packed into
// `own` one at a time if that is given.
template <class T>
__attribute__((noinline)) void multiply_to_rows(const T* const* rows, int64_t count, const Packed<T>& b, bool few,
                                                const T* w, int64_t columns, int64_t rotation, T* own, T* out) {
    const Range panels{0, b.panels};
    const auto finish = [&](int64_t p, int64_t row, int height, const T* c) {
        const int64_t column = p * b.width();
        T* to = out + row * columns + column;
        for (int r = 0; r < height; ++r, to += columns, c += b.width())
            for (int64_t j = 0; j < b.width() && column + j < columns; j += lanes<T>)
                store_partial(to + j, load(c + j), columns - column - j);
    };
    const auto pack = [&](const Packed<T>& to, int64_t p) { pack_rows(to, p, w, columns, columns, rotation); };
    few ? product_of_few_lines<T>(rows, count, b, w, columns, rotation, panels, finish)
        : product_packing<T>(rows, count, b, panels, own, pack, finish);
}

// OtherOf: a cell of the same shape, which `other` asks for; all but the maths is compiled once.
template <class T, template <class> class CellOf, template <class> class OtherOf = CellOf>
class BackwardPass {
    static constexpr int N = units_together;
    using Cell = CellOf<VecMath<T, N>>;
    using Other = OtherOf<VecMath<T, N>>;
    static constexpr bool two_cells = !std::is_same_v<Cell, Other>;
    using V = Wide<T, N>;
    static constexpr CellShape cell = Cell::shape;
    static constexpr int kept = cell.kept();
    static constexpr int L = lanes<T>;

   public:
    TBPTT_COLD explicit BackwardPass(const RecurrentBackward<T>& p, bool other = false)
        : p_(p),
          other_(other),
          shape_(p.layer.shape),
          rows_(shape_.steps * shape_.batch),
          hidden_(shape_.hidden),
          ld_(row_stride(cell.gate_gradients * hidden_)),
          saved_{shape_.batch, hidden_, kept},
          threads_(threads_for(2.0 * static_cast<double>(rows_) * cell.gates * static_cast<double>(hidden_) *
                               static_cast<double>(2 * shape_.inputs + 2 * hidden_))),
          plan_(choose_plan(p)),
          recurrent_(layout_panels<T>(cell.gates * hidden_, hidden_, vectors_for<T>(hidden_, plan_))),
          input_(layout_panels<T>(cell.gates * hidden_, shape_.inputs, choose_vectors<T>(shape_.inputs))),
          blocks_{},
          few_(rows_ <= few_rows),
          once_(!few_ && needed_once(shape_)),
          measuring_(p.lag_norms != nullptr),
          adding_(p.overlapping && !measuring_),
          packed_recurrent_(few_ || once_ ? 0 : recurrent_.size()),
          packed_input_(few_ || once_ || measuring_ ? 0 : input_.size()),
          own_panels_(once_ ? threads_ * own_panel() : 0),
          dgates_(measuring_ ? 0 : rows_ * ld_),
          x_rows_(rows_),
          h_rows_(rows_),
          own_dgates_(p.overlapping ? 2 * rows_together * ld_ : 0),
          states_(measuring_ ? 2 * rows_together * state_size() : 0),
          carry_(cell.has_carry ? scratches() * rows_together * hidden_ : 0),
          pointers_(threads_ * dx_rows),
          segments_(plan_.threads * p.segment_count),
          operands_{{x_rows_, shape_.inputs, p.grad_w_ih, p.grad_b_ih, 0, shape_.inputs, 1},
                    {h_rows_, hidden_, p.grad_w_hh, p.grad_b_hh, 1, hidden_, 1}},
          gradient_(rows_, dgates_, ld_, blocks_, describe_blocks(), operands_, 2, threads_),
          dx_tasks_(ceil_div(rows_, dx_rows), threads_) {
        recurrent_.data = packed_recurrent_;
        input_.data = packed_input_;
    }

    void run() {
        run_parallel(plan_.threads, [this](const Worker& worker) {
            prepare(worker);
            wait_for_all(worker);
            walk(worker);
        });
        if (measuring_) return;
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
        // Overlapping windows add to the same steps: each unit's sums must belong to one worker.
        if (p.overlapping || needed_once(s)) return {threads, Sharing::units};
        return make_plan(threads, static_cast<double>(p.segment_count), depth, hidden, depth * hidden * sizeof(T));
    }

    int64_t own_panel() const { return larger(input_.panel_size(), recurrent_.panel_size()); }
    T* own_panel(const Worker& worker) { return once_ ? own_panels_ + worker.index * own_panel() : nullptr; }

    // Of a row: h and behind it c.
    int64_t state_size() const { return (1 + cell.has_c) * hidden_; }

    int64_t scratches() const { return plan_.sharing == Sharing::rows ? plan_.threads : 1; }

    int describe_blocks() {
        const int64_t h = hidden_;
        if (!cell.candidate_apart) {
            blocks_[0] = {0, cell.gates * h, {0, 0}};
            return 1;
        }
        const int64_t others = (cell.gates - 1) * h;
        blocks_[0] = {0, h, {others, -1}};           // the candidate's input part
        blocks_[1] = {h, others, {0, 0}};            // the other gates
        blocks_[2] = {h + others, h, {-1, others}};  // the candidate's recurrent part
        return 3;
    }

    void pack_recurrent(const Packed<T>& to, int64_t p) const { pack_rows(to, p, p_.layer.w_hh, hidden_, hidden_); }
    void pack_input(const Packed<T>& to, int64_t p) const {
        pack_rows(to, p, p_.layer.w_ih, shape_.inputs, shape_.inputs, cell.input_rotation() * hidden_);
    }

    void prepare(const Worker& worker) {
        const Range recurrent = split(recurrent_.panels, worker), input = split(input_.panels, worker);
        const bool now = !few_ && !once_;
        for (int64_t p = recurrent.begin; p < recurrent.end && now; ++p) pack_recurrent(recurrent_, p);
        for (int64_t p = input.begin; p < input.end && now && !measuring_; ++p) pack_input(input_, p);
        const Range rows = split(rows_, worker), initial = split(shape_.batch * hidden_, worker);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            x_rows_[i] = p_.layer.x + i * shape_.inputs;
            h_rows_[i] = h_before(i);
        }
        if (measuring_) return;
        if (adding_) fill<T>(dgates_ + rows.begin * ld_, (rows.end - rows.begin) * ld_, 0);
        fill<T>(p_.grad_h0 + initial.begin, initial.end - initial.begin, 0);
        if (cell.has_c) fill<T>(p_.grad_c0 + initial.begin, initial.end - initial.begin, 0);
    }

    // The h that entered step and row `place`; null for zeros. A reset selects: 0·NaN never enters.
    const T* h_before(int64_t place) const {
        if (p_.layer.is_init && p_.layer.is_init[place]) return nullptr;
        if (place >= shape_.batch) return p_.tape.h + (place - shape_.batch) * hidden_;
        return p_.layer.h0 ? p_.layer.h0 + place * hidden_ : nullptr;
    }

    struct Walk {
        Lanes lanes;
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
        Walk w{Lanes(mine, count), by_rows ? Range{0, recurrent_.panels} : split(recurrent_.panels, worker),
               carry_ + (by_rows ? worker.index : 0) * rows_together * hidden_, pointers, worker};
        for (int64_t step = 0; w.lanes.count() > 0; w.lanes.advance(++step)) {
            carry_back(w, step);
            // dgates of other workers' units enter this worker's next product.
            if (plan_.sharing == Sharing::units) wait_for_all(w.worker);
            if (measuring_)
                measure_states<T>(w.lanes, step, states_ + step % 2 * rows_together * state_size(), state_size(), p_,
                                  worker);
        }
    }

    // One tile of the carried product, [height][width].
    struct Tile {
        int64_t panel, first_row, height, step;
        const T* product;
    };

    void carry_back(const Walk& w, int64_t step) {
        const int64_t begun = w.lanes.begun(), starting = w.lanes.count() - begun;
        for (int64_t i = 0; i < begun; ++i)
            w.pointers[i] = gradients_of(w.lanes[i], step - 1) + cell.recurrent_first() * hidden_;
        const auto finish = [&](int64_t p, int64_t first, int64_t height, const T* c) {
            apply_cell(w, Tile{p, first, height, step, c});
        };
        const auto pack = [&](const Packed<T>& to, int64_t p) { pack_recurrent(to, p); };
        if (few_)
            product_of_few_lines<T>(w.pointers, begun, recurrent_, p_.layer.w_hh, hidden_, 0, w.panels, finish);
        else
            product_packing<T>(w.pointers, begun, recurrent_, w.panels, own_panel(w.worker), pack, finish,
                               step % 2 != 0);
        // Where a segment starts, nothing comes from later steps.
        if (starting > 0)
            for (int64_t p = w.panels.begin; p < w.panels.end; ++p) finish(p, begun, starting, nullptr);
    }

    // Where the row's own dgates of this step of the walk lie: in the sum itself if no other window adds to it.
    T* gradients_of(const Lanes::Lane& lane, int64_t step) const {
        if (p_.overlapping) return own_dgates_ + ((step % 2) * rows_together + lane.slot) * ld_;
        return dgates_ + place(*lane.segment, step - lane.begin) * ld_;
    }

    int64_t place(const Segment& segment, int64_t lag) const {
        return (segment.origin - lag) * shape_.batch + segment.batch;
    }

    // Where one vector of units of one row is found.
    struct Place {
        const Segment* segment;
        int64_t lag;          // from where the segment begins
        int64_t step;         // -1 in the initial state
        int64_t place;        // row of [T·B]
        int64_t unit, count;  // in a row of H
        T factor;             // of the carry
        T *carry, *gates;     // the row's own
        const T* product;
    };

    Place find(const Walk& w, const Tile& tile, int64_t row, int64_t vector) const {
        const int64_t index = tile.first_row + row;
        const Lanes::Lane& lane = w.lanes[index];
        const Segment& segment = *lane.segment;
        const int64_t lag = tile.step - lane.begin, step = segment.origin - lag, at = place(segment, lag);
        const int64_t unit = (tile.panel * recurrent_.vectors + vector) * L;
        return {&segment,
                lag,
                step,
                at,
                unit,
                hidden_ - unit,
                lag > 0 && p_.carry_scale ? p_.carry_scale[at + shape_.batch] : T(1),
                w.carry + lane.slot * hidden_ + unit,
                step >= 0 ? gradients_of(lane, tile.step) + unit : nullptr,
                lag > 0 ? tile.product + row * recurrent_.width() + vector * L : nothing<T>};
    }

    void apply_cell(const Walk& w, const Tile& tile) {
        const bool full = (tile.panel + 1) * recurrent_.width() <= hidden_;
        const int vectors = recurrent_.vectors;
        Place at[N];
        int found = 0;
        for (int64_t row = 0; row < tile.height; ++row)
            for (int v = 0; v < vectors; ++v) {
                at[found] = find(w, tile, row, v);
                if (at[found].count <= 0) continue;
                if (at[found].step < 0) {
                    if (!measuring_) into_initial_state(at[found]);
                    continue;
                }
                if (measuring_) keep_state(at[found], w.lanes[tile.first_row + row].slot, tile.step);
                if (++found < N) continue;
                full ? into_gates<true>(at) : into_gates<false>(at);
                found = 0;
            }
        if (found == 0) return;
        // The last vector again: the same values are written twice, or added once.
        for (int n = found; n < N; ++n) at[n] = at[found - 1];
        full ? into_gates<true>(at, found) : into_gates<false>(at, found);
    }

    // The gradient of the state that left this step, for `measure_states`. Apart from `into_gates`, and called, not inlined:
    // what is rare shall not weigh on the rest.
    __attribute__((noinline)) void keep_state(const Place& at, int64_t slot, int64_t step) const {
        T* to = states_ + (step % 2 * rows_together + slot) * state_size() + at.unit;
        Vec<T> of_h = load(at.product), beside{};
        if (at.lag == 0) of_h += load_partial(p_.grad_out + at.place * hidden_ + at.unit, at.count);
        if (cell.has_carry && at.lag > 0) beside = load_partial(static_cast<const T*>(at.carry), at.count);
        store_partial(to, cell.has_c ? of_h : of_h + beside, at.count);
        if (cell.has_c) store_partial(to + hidden_, beside, at.count);
    }

    void into_initial_state(const Place& at) {
        const int64_t state = at.segment->batch * hidden_ + at.unit;
        Vec<T> grad_h = load_partial(p_.grad_h0 + state, at.count) + load(at.product) * at.factor;
        if (cell.has_carry) {
            const Vec<T> carry = load_partial(static_cast<const T*>(at.carry), at.count) * at.factor;
            if (cell.has_c)
                store_partial(p_.grad_c0 + state, load_partial(p_.grad_c0 + state, at.count) + carry, at.count);
            else
                grad_h += carry;
        }
        store_partial(p_.grad_h0 + state, grad_h, at.count);
    }

    template <bool Full>
    TBPTT_INLINE Vec<T> h_before(const Place& at) const {
        const T* row = h_rows_[at.place];
        return row ? load_lanes<Full>(row + at.unit, at.count) : Vec<T>{};
    }

    template <bool Full>
    TBPTT_INLINE Vec<T> c_before(const Place& at) const {
        const int64_t row = at.segment->batch;
        if (p_.layer.is_init && p_.layer.is_init[at.place]) return Vec<T>{};
        if (at.step == 0)
            return p_.layer.c0 ? load_lanes<Full>(p_.layer.c0 + row * hidden_ + at.unit, at.count) : Vec<T>{};
        const auto saved = saved_.find(at.step - 1, row, at.unit);
        return load_lanes<Full>(static_cast<const T*>(p_.tape.saved) + saved.first + cell.saved * saved.stride,
                                at.count);
    }

    template <bool Full>
    __attribute__((noinline)) void into_gates(const Place (&at)[N], int different = N) {
        const RecurrentTape<T>& tape = p_.tape;
        const auto read = [&](const T* from, int n) { return load_lanes<Full>(from, at[n].count); };
        typename SavedLayout<T>::Place tape_at[N];
        if (kept > 0)
            for (int n = 0; n < N; ++n) tape_at[n] = saved_.find(at[n].step, at[n].segment->batch, at[n].unit);
        V dh = each<T, N>([&](int n) { return load(at[n].product) * at[n].factor; }), carry = V::all(0);
        if (cell.has_carry)
            carry = each<T, N>([&](int n) { return at[n].lag > 0 ? read(at[n].carry, n) * at[n].factor : Vec<T>{}; });
        add_losses<Full>(at, dh, carry);
        V saved[cell.saved + 1], gates[cell.gate_gradients], carry_out{}, h{}, c{}, h_old{}, c_old{};
#pragma GCC unroll 5
        for (int s = 0; s < kept; ++s)
            saved[s] =
                each<T, N>([&](int n) { return read(tape.saved + tape_at[n].first + s * tape_at[n].stride, n); });
        if (cell.saved == 0)
            h = each<T, N>([&](int n) { return read(tape.h + at[n].place * hidden_ + at[n].unit, n); });
        if (cell.has_c) c = saved[cell.saved];
        if (cell.candidate_apart) h_old = each<T, N>([&](int n) { return h_before<Full>(at[n]); });
        if (cell.has_c) c_old = each<T, N>([&](int n) { return c_before<Full>(at[n]); });
        if (two_cells && other_)
            Other::backward(saved, h, h_old, c_old, c, dh, carry, gates, carry_out);
        else
            Cell::backward(saved, h, h_old, c_old, c, dh, carry, gates, carry_out);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const auto write = [&](T* to, Vec<T> value) { store_lanes<Full>(to, value, at[n].count); };
            if (cell.has_carry) write(at[n].carry, carry_out.part[n]);
#pragma GCC unroll 4
            for (int g = 0; g < cell.gate_gradients; ++g) write(at[n].gates + g * hidden_, gates[g].part[n]);
            if (!adding_ || n >= different) continue;
            T* sum = dgates_ + at[n].place * ld_ + at[n].unit;
            for (int g = 0; g < cell.gate_gradients; ++g)
                write(sum + g * hidden_, read(sum + g * hidden_, n) + gates[g].part[n]);
        }
    }

    // What enters at this step: the gradient of its loss, and at the end of the sequence that of the final state.
    template <bool Full>
    TBPTT_INLINE void add_losses(const Place (&at)[N], V& dh, V& carry) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const Segment& segment = *at[n].segment;
            const auto read = [&](const T* from) { return load_lanes<Full>(from, at[n].count); };
            if (p_.grad_out && at[n].step >= segment.inject_from)
                dh.part[n] += read(p_.grad_out + at[n].place * hidden_ + at[n].unit);
            if (at[n].lag > 0 || at[n].step < shape_.steps - 1) continue;
            const int64_t final = segment.batch * hidden_ + at[n].unit;
            if (p_.grad_h_n) dh.part[n] += read(p_.grad_h_n + final);
            if (cell.has_c && p_.grad_c_n) carry.part[n] += read(p_.grad_c_n + final);
        }
    }

    void input_gradient(const Worker& worker) {
        const T** pointers = pointers_ + worker.index * dx_rows;
        const int64_t inputs = shape_.inputs;
        dx_tasks_.run(worker, [&](int64_t block) {
            const int64_t first = block * dx_rows, count = smaller(dx_rows, rows_ - first);
            for (int64_t i = 0; i < count; ++i)
                pointers[i] = dgates_ + (first + i) * ld_ + cell.input_first() * hidden_;
            multiply_to_rows<T>(pointers, count, input_, few_, p_.layer.w_ih, inputs, cell.input_rotation() * hidden_,
                                own_panel(worker), p_.grad_x + first * inputs);
        });
    }

    const RecurrentBackward<T>& p_;
    const bool other_;
    const RecurrentShape shape_;
    const int64_t rows_, hidden_, ld_;
    const SavedLayout<T> saved_;
    const int threads_;
    const Plan plan_;
    Packed<T> recurrent_, input_;
    GradientBlock blocks_[3];
    const bool few_;        // rows: the weights are not packed
    const bool once_;       // is each panel used
    const bool measuring_;  // states' gradients, and nothing else
    const bool adding_;     // the gates' gradients of several windows
    Buffer<T> packed_recurrent_, packed_input_, own_panels_, dgates_;
    Buffer<const T*> x_rows_, h_rows_;
    Buffer<T> own_dgates_, states_, carry_;
    Buffer<const T*> pointers_;
    Buffer<Segment> segments_;
    GradientOperand<T> operands_[2];
    WeightGradient<T> gradient_;
    Tasks dx_tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
