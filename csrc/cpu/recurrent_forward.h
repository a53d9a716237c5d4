// The forward pass of a recurrent layer, for every cell.
//
// Segments walk side by side. The product of the inputs is made for a run of steps at once, as long as its result stays
// in cache; then each step multiplies the state by panels that hold all gates of the same units, so that a tile ends with
// everything the cell needs and no gate matrix is written and read again.
#pragma once

#include "few_rows.h"
#include "recurrent.h"

namespace tbptt {
namespace TBPTT_ISA {

// OtherOf: a cell of the same shape, which `other` asks for; all but the maths is compiled once.
template <class T, template <class> class CellOf, template <class> class OtherOf = CellOf>
class ForwardPass {
    static constexpr int N = units_together;
    using Cell = CellOf<VecMath<T, N>>;
    using Other = OtherOf<VecMath<T, N>>;
    static constexpr bool two_cells = !std::is_same_v<Cell, Other>;
    using V = Wide<T, N>;
    static constexpr CellShape cell = Cell::shape;
    static constexpr int kept = cell.kept();
    static constexpr int L = lanes<T>;
    static constexpr int64_t run_bytes = int64_t{1} << 20;

   public:
    TBPTT_COLD explicit ForwardPass(const RecurrentForward<T>& p, bool other = false)
        : p_(p),
          other_(other),
          shape_(p.layer.shape),
          saved_{shape_.batch, shape_.hidden, kept},
          plan_(choose_plan(p)),
          unit_vectors_(cell.gates == 1 ? vectors_for<T>(shape_.hidden, plan_) : 1),
          unit_panels_(ceil_div(shape_.hidden, static_cast<int64_t>(unit_vectors_) * L)),
          input_{nullptr, shape_.inputs, unit_panels_, cell.gates * unit_vectors_},
          recurrent_{nullptr, shape_.hidden, unit_panels_, cell.gates * unit_vectors_},
          few_(shape_.steps * shape_.batch <= few_rows),
          once_(!few_ && needed_once(shape_)),
          run_rows_(choose_run_rows()),
          scratches_(plan_.sharing == Sharing::rows ? plan_.threads : 1),
          packed_input_(few_ || once_ ? 0 : input_.size()),
          packed_recurrent_(few_ || once_ ? 0 : recurrent_.size()),
          own_panels_(once_ ? plan_.threads * own_panel() : 0),
          input_bias_(unit_panels_ * input_.width()),
          candidate_bias_(unit_panels_ * unit_vectors_ * L),
          zeros_(shape_.hidden),
          scratch_(scratches_ * run_rows_ * unit_panels_ * input_.width()),
          c_(scratches_ * rows_together * shape_.hidden),
          pointers_(plan_.threads * (run_rows_ + rows_together)),
          segments_(plan_.threads * p.segment_count) {
        input_.data = packed_input_;
        recurrent_.data = packed_recurrent_;
        fill<T>(zeros_, shape_.hidden, 0);
    }

    void run() {
        run_parallel(plan_.threads, [this](const Worker& worker) {
            pack(split(unit_panels_, worker));
            wait_for_all(worker);
            walk(worker);
        });
    }

   private:
    static Plan choose_plan(const RecurrentForward<T>& p) {
        const RecurrentShape& s = p.layer.shape;
        const double columns = static_cast<double>(cell.gates) * static_cast<double>(s.hidden);
        const double depth = static_cast<double>(s.inputs + s.hidden);
        const int threads = threads_for(2.0 * static_cast<double>(s.steps * s.batch) * columns * depth);
        if (needed_once(s)) return {threads, Sharing::units};
        return make_plan(threads, static_cast<double>(p.segment_count), depth, columns,
                         static_cast<double>(s.hidden) * columns * sizeof(T));
    }

    int64_t choose_run_rows() const {
        const int64_t row_bytes = unit_panels_ * input_.width() * static_cast<int64_t>(sizeof(T));
        int64_t rows = run_bytes / row_bytes;
        rows = rows < 48 ? 48 : rows > 512 ? 512 : rows;
        const int64_t together = smaller(rows_together, p_.segment_count);
        return smaller(rows < together ? together : rows, shape_.steps * shape_.batch);
    }

    void pack(Range panels) {
        const RecurrentLayer<T>& layer = p_.layer;
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            if (!few_ && !once_) {
                pack_gates(input_, p, layer.w_ih, cell.gates, shape_.hidden);
                pack_gates(recurrent_, p, layer.w_hh, cell.gates, shape_.hidden);
            }
            for (int64_t j = 0; j < unit_vectors_ * L; ++j) {
                const int64_t unit = p * unit_vectors_ * L + j;
                const auto bias = [&](const T* b, int g) {
                    return b && unit < shape_.hidden ? b[g * shape_.hidden + unit] : T(0);
                };
                for (int g = 0; g < cell.gates; ++g) {
                    const bool apart = cell.candidate_apart && g == cell.gates - 1;
                    input_bias_[p * input_.width() + g * unit_vectors_ * L + j] =
                        apart ? bias(layer.b_ih, g) : bias(layer.b_ih, g) + bias(layer.b_hh, g);
                }
                candidate_bias_[p * unit_vectors_ * L + j] = bias(layer.b_hh, cell.gates - 1);
            }
        }
    }

    void walk(const Worker& worker) {
        const bool by_rows = plan_.sharing == Sharing::rows;
        Segment* mine = segments_ + worker.index * p_.segment_count;
        const int64_t count = take_segments(p_.segments, p_.segment_count, plan_.sharing, worker, mine);
        const Range panels = by_rows ? Range{0, unit_panels_} : split(unit_panels_, worker);
        const int64_t own = by_rows ? worker.index : 0;
        Walk walk{Lanes(mine, count),
                  panels,
                  scratch_ + own * run_rows_ * unit_panels_ * input_.width(),
                  c_ + own * rows_together * shape_.hidden,
                  pointers_ + worker.index * (run_rows_ + rows_together),
                  worker};
        walk_along(walk);
    }

    struct Walk {
        Lanes lanes;
        Range panels;
        T* scratch;          // [panels][run rows][width]: the input's product
        T* c;                // [rows together][H]
        const T** pointers;  // [run rows + rows together]
        const Worker& worker;
    };

    void walk_along(Walk& w) {
        for (int64_t begin = 0, end; w.lanes.count() > 0; begin = end) {
            const int64_t rows = gather_inputs(w, begin, end);
            multiply_inputs(w, rows);
            int64_t row = 0;
            for (int64_t step = begin; step < end; ++step) {
                multiply_state(w, step, row, rows);
                row += w.lanes.count();
                w.lanes.advance(step + 1);
                // Units of other workers feed this worker's next step.
                if (plan_.sharing == Sharing::units) wait_for_all(w.worker);
            }
        }
    }

    int64_t place(const Segment& segment, int64_t step) const {
        return (segment.origin + step) * shape_.batch + segment.batch;
    }

    // The rows of x for as many steps from `begin` as the scratch holds.
    int64_t gather_inputs(const Walk& w, int64_t begin, int64_t& end) {
        Lanes lanes = w.lanes;
        int64_t rows = 0;
        for (end = begin; lanes.count() > 0 && rows + lanes.count() <= run_rows_; lanes.advance(++end))
            for (int64_t i = 0; i < lanes.count(); ++i)
                w.pointers[rows++] = p_.layer.x + place(*lanes[i].segment, end - lanes[i].begin) * shape_.inputs;
        return rows;
    }

    int64_t own_panel() const { return larger(input_.panel_size(), recurrent_.panel_size()); }

    template <class Finish>
    void multiply(const Walk& w, const T* const* rows, int64_t count, const Packed<T>& b, const T* weights,
                  Finish&& finish, bool backwards = false) {
        if (few_) return product_of_few<T>(rows, count, b, weights, cell.gates, shape_.hidden, w.panels, finish);
        const auto pack = [&](const Packed<T>& to, int64_t p) {
            pack_gates(to, p, weights, cell.gates, shape_.hidden);
        };
        T* own = once_ ? own_panels_ + w.worker.index * own_panel() : nullptr;
        product_packing<T>(rows, count, b, w.panels, own, pack, finish, backwards);
    }

    void multiply_inputs(const Walk& w, int64_t rows) {
        const int64_t width = input_.width();
        const auto finish = [&](int64_t p, int64_t first, int height, const T* c) {
            T* to = w.scratch + (p * rows + first) * width;
            const T* bias = input_bias_ + p * width;
            for (int r = 0; r < height; ++r, to += width, c += width)
                for (int64_t j = 0; j < width; j += L) store(to + j, load(c + j) + load(bias + j));
        };
        multiply(w, w.pointers, rows, input_, p_.layer.w_ih, finish);
    }

    const T* state_before(const Segment& segment, int64_t step) const {
        if (step > 0) return p_.out + place(segment, step - 1) * shape_.hidden;
        return starts_from(p_.layer.h0, segment);
    }

    // The initial state of a segment: the layer's at step 0, unless that is reset too; zeros elsewhere.
    const T* starts_from(const T* initial, const Segment& segment) const {
        const bool given = initial && segment.origin == 0 && !(p_.layer.is_init && p_.layer.is_init[segment.batch]);
        return given ? initial + segment.batch * shape_.hidden : static_cast<const T*>(zeros_);
    }

    void multiply_state(const Walk& w, int64_t step, int64_t row, int64_t rows) {
        const T** before = w.pointers + run_rows_;
        const int64_t count = w.lanes.count();
        int64_t with_state = w.lanes.begun();
        for (int64_t i = 0; i < count; ++i) {
            before[i] = state_before(*w.lanes[i].segment, step - w.lanes[i].begin);
            if (before[i] != zeros_) with_state = larger(with_state, i + 1);
        }
        const auto finish = [&](int64_t p, int64_t first, int64_t height, const T* c) {
            const Tile tile{p, first, height, step, w.scratch + (p * rows + row + first) * input_.width(), c};
            if ((p + 1) * unit_vectors_ * L <= shape_.hidden)
                apply_cell<true>(w, tile);
            else
                apply_cell<false>(w, tile);
        };
        // Every other step goes through the panels backwards: those used last are still in cache.
        const bool backwards = step % 2 != 0;
        multiply(w, before, with_state, recurrent_, p_.layer.w_hh, finish, backwards);
        if (with_state < count)
            for (int64_t p = w.panels.begin; p < w.panels.end; ++p) finish(p, with_state, count - with_state, nullptr);
    }

    // One tile of the recurrent product, with the input's product beside it: [height][width] each.
    struct Tile {
        int64_t panel, first_row, height, step;
        const T *input, *recurrent;
    };

    // Where one vector of units of one row is found.
    struct Place {
        const T *input, *recurrent;  // of the first gate
        int64_t unit, count;         // in a row of H
        int64_t state;               // in [T, B, H]
        typename SavedLayout<T>::Place saved;
        const T *h_before, *c_before;
        T* c;
        T* c_n;  // null before the last step
    };

    Place find(const Walk& w, const Tile& tile, int64_t row, int64_t unit_vector) const {
        const int64_t index = tile.first_row + row, hidden = shape_.hidden;
        const Lanes::Lane& lane = w.lanes[index];
        const Segment& segment = *lane.segment;
        const int64_t step = tile.step - lane.begin, in_tile = row * input_.width() + unit_vector * L;
        const int64_t unit = (tile.panel * unit_vectors_ + unit_vector) * L;
        const T* before = w.pointers[run_rows_ + index];
        T* c = w.c + lane.slot * hidden + unit;
        return {
            tile.input + in_tile,
            before == zeros_ ? nothing<T> : tile.recurrent + in_tile,
            unit,
            hidden - unit,
            place(segment, step) * hidden + unit,
            saved_.find(segment.origin + step, segment.batch, unit),
            before + unit,
            cell.has_c && step == 0 ? starts_from(p_.layer.c0, segment) + unit : c,
            c,
            cell.has_c && segment.origin + step == shape_.steps - 1 ? p_.c_n + segment.batch * hidden + unit : nullptr};
    }

    template <bool Full>
    void apply_cell(const Walk& w, const Tile& tile) {
        const int64_t vectors = tile.height * unit_vectors_;
        for (int64_t first = 0; first < vectors; first += N) {
            Place at[N];
            for (int n = 0; n < N; ++n) {
                // At the end the last vector is taken again: the same values are written twice.
                const int64_t i = first + n < vectors ? first + n : vectors - 1;
                at[n] = unit_vectors_ == 1 ? find(w, tile, i, 0) : find(w, tile, i / unit_vectors_, i % unit_vectors_);
            }
            apply_cell<Full>(at);
        }
    }

    template <bool Full>
    TBPTT_INLINE void apply_cell(const Place (&at)[N]) {
        const RecurrentTape<T>& tape = p_.tape;
        const int64_t stride = unit_vectors_ * L;
        V in[cell.gates], rec[cell.gates], saved[cell.saved + 1], h{}, c{};
#pragma GCC unroll 4
        for (int g = 0; g < cell.gates; ++g) {
            in[g] = each<T, N>([&](int n) { return load(at[n].input + g * stride); });
            rec[g] = each<T, N>([&](int n) { return load(at[n].recurrent + g * stride); });
        }
        if (cell.candidate_apart)
            rec[cell.gates - 1] =
                rec[cell.gates - 1] + each<T, N>([&](int n) { return load(candidate_bias_ + at[n].unit); });
        V h_before{}, c_before{};
        if (cell.candidate_apart)
            h_before = each<T, N>([&](int n) { return load_lanes<Full>(at[n].h_before, at[n].count); });
        if (cell.has_c) c_before = each<T, N>([&](int n) { return load_lanes<Full>(at[n].c_before, at[n].count); });
        if (two_cells && other_)
            Other::forward(in, rec, h_before, c_before, saved, h, c);
        else
            Cell::forward(in, rec, h_before, c_before, saved, h, c);
        if (cell.has_c) saved[cell.saved] = c;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const auto write = [&](T* to, Vec<T> value) { store_lanes<Full>(to, value, at[n].count); };
            write(p_.out + at[n].state, h.part[n]);
            if (cell.has_c) write(at[n].c, c.part[n]);
            if (cell.has_c && at[n].c_n) write(at[n].c_n, c.part[n]);
            if (!tape.h) continue;
            write(tape.h + at[n].state, h.part[n]);
#pragma GCC unroll 5
            for (int s = 0; s < kept; ++s)
                write(tape.saved + at[n].saved.first + s * at[n].saved.stride, saved[s].part[n]);
        }
    }

    const RecurrentForward<T>& p_;
    const bool other_;
    const RecurrentShape shape_;
    const SavedLayout<T> saved_;
    const Plan plan_;
    const int unit_vectors_;
    const int64_t unit_panels_;
    Packed<T> input_, recurrent_;
    const bool few_;   // rows: the weights are not packed
    const bool once_;  // is each panel used
    const int64_t run_rows_;
    const int64_t scratches_;
    Buffer<T> packed_input_, packed_recurrent_, own_panels_, input_bias_, candidate_bias_, zeros_, scratch_, c_;
    Buffer<const T*> pointers_;
    Buffer<Segment> segments_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
