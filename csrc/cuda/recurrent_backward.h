// The backward pass of a recurrent layer, for every cell and every truncation.
//
// Windows and segments are rows of one batch. At lag j one product over all live rows carries the gates' gradients back by one
// step, with the cell's backward behind it. What it leaves, dgates [T·B, …], is summed over windows; then each weight gradient
// is one product over all rows, however many windows there were.
#pragma once

#include "api.h"
#include "column_sums.h"
#include "product.h"
#include "recurrent_launch.h"
#include "states_before.h"
#include "transpose.h"

namespace tbptt {
namespace cuda {

template <class T>
struct BackwardWalk {
    WalkProduct<T> product;
    const T *h0, *c0;  // or null
    const std::uint8_t* is_init;
    const T* carry_scale;                     // or null
    const T *out, *saved;                     // the tape
    const T *grad_out, *grad_h_n, *grad_c_n;  // or null
    T* dgates;                                // out = [T·B, gate gradients · H], unless windows overlap
    T* own;                                   // where they do: [2, rows, gate gradients · H], by the lag's parity
    Real<T>* sums;                            // and out += dgates of all windows; or null
    std::int64_t own_rows;
    Real<T>* carry;             // [rows, H]
    Real<T>*grad_h0, *grad_c0;  // out +=
};

template <class T, template <class> class CellOf>
struct BackwardPass {
    using V = Real<T>;
    using Cell = CellOf<ScalarMath<V>>;
    static constexpr CellShape cell = Cell::shape;
    static constexpr int kept = cell.kept(), recurrent_first = cell.recurrent_first();

    const BackwardWalk<T>& p;

    // What a row's step has of its own.
    struct Row {
        std::int64_t at;  // step·B + b
        int row, batch;
        bool initial, injects, runs, ends;  // behind step 0; a loss; a later step went before; this is the last of all
        bool resets;                        // the state before is zeros
        V factor;                           // of what the later step passes back
        const T* source;                    // the later step's dgates, or null
        T* to;                              // where this one's go: in the sum itself if no other window adds to it
    };

    TBPTT_DEVICE Row row(int row, int lag) const {
        const Segment s = p.product.rows[row];
        const int step = s.origin - lag;
        const bool runs = lag > 0, initial = step < 0;
        const std::int64_t batch = p.product.rows.batch, at = initial ? s.batch : step * batch + s.batch,
                           later = initial ? at : at + batch;
        return {at,
                row,
                s.batch,
                initial,
                p.grad_out && step >= s.inject_from && !initial,
                runs,
                !runs && step == p.product.rows.steps - 1,
                p.is_init && p.is_init[at] != 0,
                runs && p.carry_scale ? V(p.carry_scale[later]) : V(1),
                runs ? gradients_of(row, lag - 1, later) + recurrent_first * p.product.hidden : nullptr,
                gradients_of(row, lag, at)};
    }
    TBPTT_DEVICE bool begins_in_memory() const { return false; }

    static constexpr int left = cell.gates;
    struct Fetched {
        V dh, carry;  // from the loss, or behind the last step; the carry by the later step, too
        V saved[cell.saved + 1], h, c, h_before, c_before;
    };

    // Of the initial state only the carry is looked at.
    TBPTT_DEVICE Fetched fetch(const Row& r, int unit) const {
        const std::int64_t hidden = p.product.hidden, state = r.batch * hidden + unit;
        Fetched f{};
        if (cell.has_carry && r.runs) f.carry = p.carry[r.row * hidden + unit] * r.factor;
        if (r.injects) f.dh = p.grad_out[r.at * hidden + unit];
        if (r.ends && p.grad_h_n) f.dh += p.grad_h_n[state];
        if (cell.has_c && r.ends && p.grad_c_n) f.carry += p.grad_c_n[state];
        const T* from = p.saved + r.at * kept * hidden + unit;
#pragma unroll
        for (int v = 0; v < cell.saved; ++v) f.saved[v] = from_tape(from[v * hidden], cell.sigmoids >> v & 1u);
        if (cell.saved == 0) f.h = p.out[r.at * hidden + unit];
        if (cell.candidate_apart) f.h_before = before(r, unit, p.h0, p.out, hidden);
        if (cell.has_c) {
            f.c = from[cell.saved * hidden];
            f.c_before = before(r, unit, p.c0, p.saved + cell.saved * hidden, kept * hidden);
        }
        return f;
    }

    TBPTT_DEVICE void finish(const Row& r, int unit, const V (&sums)[1], const Fetched& f, V (&next)[left]) const {
        const std::int64_t hidden = p.product.hidden, state = r.batch * hidden + unit;
        const V dh = r.runs ? f.dh + sums[0] * r.factor : f.dh;
        if (r.initial) {
            // Other windows may have added, in other blocks.
            const V by_h = cell.has_carry && !cell.has_c ? dh + f.carry : dh;
            p.grad_h0[state] = load_shared_by_grid(p.grad_h0 + state) + by_h;
            if (cell.has_c) p.grad_c0[state] = load_shared_by_grid(p.grad_c0 + state) + f.carry;
            for (int g = 0; g < left; ++g) next[g] = V(0);
            return;
        }
        V gates[cell.gate_gradients], carry_out = 0;
        Cell::backward(f.saved, f.h, f.h_before, f.c_before, f.c, dh, f.carry, gates, carry_out);
        if (cell.has_carry) p.carry[r.row * hidden + unit] = carry_out;
#pragma unroll
        for (int g = 0; g < cell.gate_gradients; ++g) r.to[g * hidden + unit] = T(gates[g]);
#pragma unroll
        for (int g = 0; g < left; ++g) next[g] = gates[recurrent_first + g];
        if (!p.sums) return;
        // Another block may have written it at an earlier lag. All are read before one is written: they wait together.
        V* sum = p.sums + r.at * cell.gate_gradients * hidden + unit;
#pragma unroll
        for (int g = 0; g < cell.gate_gradients; ++g) gates[g] += load_shared_by_grid(sum + g * hidden);
#pragma unroll
        for (int g = 0; g < cell.gate_gradients; ++g) sum[g * hidden] = gates[g];
    }

   private:
    TBPTT_DEVICE T* gradients_of(int row, int lag, std::int64_t at) const {
        const std::int64_t size = cell.gate_gradients * p.product.hidden;
        return p.own ? p.own + (lag % 2 * p.own_rows + row) * size : p.dgates + at * size;
    }

    // The state that entered this step: what the caller gave, or in `others` [T·B], in rows of `stride`.
    TBPTT_DEVICE V before(const Row& r, int unit, const T* initial, const T* others, std::int64_t stride) const {
        const std::int64_t batch = p.product.rows.batch;
        if (r.resets) return V(0);
        if (r.at < batch) return initial ? V(initial[r.batch * p.product.hidden + unit]) : V(0);
        return others[(r.at - batch) * stride + unit];
    }
};

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void walk_backward(const BackwardWalk<T> p) {
    using Pass = BackwardPass<T, CellOf>;
    walk_in_grid<T, Shape, 1, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void slices_backward(const BackwardWalk<T> p) {
    using Pass = BackwardPass<T, CellOf>;
    walk_in_slices<T, Shape, 1, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf, class Tiles, bool Exact>
__global__ __launch_bounds__(Tiles::Tile::threads, Tiles::blocks) void tiles_backward(const BackwardWalk<T> p) {
    walk_in_tiles<typename Tiles::Tile, 1, Exact>(p.product, BackwardPass<T, CellOf>{p});
}

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void cluster_backward(const BackwardWalk<T> p) {
    using Pass = BackwardPass<T, CellOf>;
    walk_in_cluster<T, Shape, 1, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf>
struct BackwardKernels {
    template <bool Exact>
    struct With {
        using Walk = BackwardWalk<T>;
        using Pass = BackwardPass<T, CellOf>;
        static constexpr int gates = 1;
        template <class Shapes>
        using ShapeOf = typename Shapes::Backward;
        using Tiles = WalkTiles<T, gates, Exact>;

        template <class Shape>
        static auto cluster() {
            return &cluster_backward<T, CellOf, Shape, Exact>;
        }
        template <class Shape>
        static auto slices() {
            return &slices_backward<T, CellOf, Shape, Exact>;
        }
        template <class Shape>
        static auto grid() {
            return &walk_backward<T, CellOf, Shape, Exact>;
        }
        static auto tiles() { return &tiles_backward<T, CellOf, Tiles, Exact>; }
    };
};

// After the walk: every gradient by weights and by x is one product over all steps.
template <class T>
class RecurrentGradients {
   public:
    RecurrentGradients(const RecurrentBackward<T>& p, const CellShape& cell, const T* dgates, const Call& call)
        : p_(p),
          shape_(p.layer.shape),
          cell_(cell),
          dgates_(dgates),
          stride_(cell.gate_gradients * shape_.hidden),
          places_(shape_.steps * shape_.batch),
          call_(call) {}

    void run() {
        const std::int64_t hidden = shape_.hidden, columns = cell_.gates * hidden, others = columns - hidden;
        by_x();
        if (cell_.candidate_apart) {
            // dgates begin with the candidate's input part, which is the weights' last block
            by_inputs(hidden, others, 0);
            by_inputs(0, hidden, others);
        } else {
            by_inputs(0, columns, 0);
        }
        by_states();
    }

   private:
    void by_x() {
        const std::int64_t inputs = shape_.inputs, columns = cell_.gates * shape_.hidden;
        // dgates begin with the candidate where it is apart: the weights' last block
        const Scratch<T> weights(columns * inputs, call_.stream);
        turn(
            Transposition<T>{columns, inputs, p_.layer.w_ih, columns - cell_.input_rotation() * shape_.hidden, weights},
            call_);
        Product<T> p{};
        p.rows = places_;
        p.columns = inputs;
        p.depth = columns;
        p.along = true;
        p.a = dgates_ + cell_.input_first() * shape_.hidden;
        p.a_stride = stride_;
        p.b = weights;
        p.b_stride = columns;
        p.c = p_.grad_x;
        p.c_stride = inputs;
        multiply(p, call_);
    }

    // By the rows `to` … of W_ih, from as many columns of dgates.
    void by_inputs(std::int64_t first, std::int64_t count, std::int64_t to) {
        by_weights(dgates_ + first, count, p_.layer.x, shape_.inputs, places_, p_.grad_w_ih + to * shape_.inputs);
        if (p_.grad_b_ih) by_bias(dgates_ + first, count, p_.grad_b_ih + to);
    }

    void by_states() {
        const std::int64_t hidden = shape_.hidden, columns = cell_.gates * hidden;
        const T* dgates = dgates_ + cell_.recurrent_first() * hidden;
        if (p_.grad_b_hh) by_bias(dgates, columns, p_.grad_b_hh);
        if (!p_.layer.h0 && !p_.layer.is_init) {
            // The states before are the output, a step later; zeros before step 0 add nothing.
            by_weights(dgates + shape_.batch * stride_, columns, p_.tape.h, hidden, places_ - shape_.batch,
                       p_.grad_w_hh);
            return;
        }
        const Scratch<T> states(places_ * hidden, call_.stream);
        const StatesBefore<T> before{places_, shape_.batch, hidden, p_.tape.h, p_.layer.h0, p_.layer.is_init, states};
        launch(&find_states_before<T>, grid_for(places_ * hidden), call_.stream, before);
        by_weights(dgates, columns, static_cast<const T*>(states), hidden, places_, p_.grad_w_hh);
    }

    void by_weights(const T* dgates, std::int64_t rows, const T* values, std::int64_t columns, std::int64_t places,
                    T* to) {
        Product<T> p{};
        p.rows = rows;
        p.columns = columns;
        p.depth = places;
        p.a = dgates;
        p.a_stride = stride_;
        p.b = values;
        p.b_stride = columns;
        p.c = to;
        p.c_stride = columns;
        multiply(p, call_);
    }

    void by_bias(const T* dgates, std::int64_t count, T* to) {
        ColumnSums<T> p{};
        p.rows = places_;
        p.columns = count;
        p.matrix = dgates;
        p.stride = stride_;
        p.sums = to;
        add_columns(p, call_);
    }

    const RecurrentBackward<T>& p_;
    const RecurrentShape& shape_;
    const CellShape cell_;
    const T* dgates_;
    const std::int64_t stride_, places_;
    const Call& call_;
};

template <class T, template <class> class CellOf>
void run_backward(const RecurrentBackward<T>& p, Truncation truncation, const Call& call) {
    constexpr CellShape cell = CellOf<ScalarMath<Real<T>>>::shape;
    const RecurrentLayer<T>& layer = p.layer;
    const RecurrentShape& shape = layer.shape;
    const std::int64_t places = shape.steps * shape.batch, hidden = shape.hidden, columns = cell.gates * hidden,
                       gradients = cell.gate_gradients * hidden;
    // A window with all losses is the sequence, whatever its reach; a reach of two sequences reaches the first step from all.
    const int steps = static_cast<int>(shape.steps);
    const bool overlapping = truncation.k1 < truncation.k2 && truncation.k1 < steps;
    const int k1 = truncation.k1 < steps ? static_cast<int>(truncation.k1) : steps,
              k2 = !overlapping                      ? k1
                   : truncation.k2 < 2 * shape.steps ? static_cast<int>(truncation.k2)
                                                     : 2 * steps;
    const SegmentRules<T> rules{steps, static_cast<int>(shape.batch), k1, k2, true, layer.is_init, p.carry_scale};
    const FoundRows<T> found(rules, call);

    const Scratch<T> weights(columns * hidden, call.stream), dgates(places * gradients, call.stream),
        own(overlapping ? 2 * found.most() * gradients : 0, call.stream);
    const Scratch<Real<T>> carry(cell.has_carry ? found.most() * hidden : 0, call.stream);
    const Scratch<unsigned> arrived(most_groups, call.stream);
    set_bytes(arrived, 0, most_groups * sizeof(unsigned), call.stream);
    const Sums<T> sums(dgates, overlapping ? places * gradients : 0, call),
        grad_h0(p.grad_h0, shape.batch * hidden, call), grad_c0(p.grad_c0, cell.has_c ? shape.batch * hidden : 0, call);

    turn(Transposition<T>{columns, hidden, layer.w_hh, 0, weights}, call);

    BackwardWalk<T> walk{};
    walk.product = {found.rows(), hidden, columns, weights, hidden % Four<T>::values == 0, overlapping, arrived, false};
    walk.h0 = layer.h0;
    walk.c0 = layer.c0;
    walk.is_init = layer.is_init;
    walk.carry_scale = p.carry_scale;
    walk.out = p.tape.h;
    walk.saved = p.tape.saved;
    walk.grad_out = p.grad_out;
    walk.grad_h_n = p.grad_h_n;
    walk.grad_c_n = p.grad_c_n;
    walk.dgates = dgates;
    walk.sums = sums.values();
    walk.own = own;
    walk.own_rows = found.most();
    walk.carry = carry;
    walk.grad_h0 = grad_h0.values();
    walk.grad_c0 = grad_c0.values();
    launch_walk<T, BackwardKernels<T, CellOf>::template With>(walk, found.expected(), call);
    for (const Sums<T>* each : {&sums, &grad_h0, &grad_c0}) each->finish();
    RecurrentGradients<T>(p, cell, dgates, call).run();
}

}  // namespace cuda
}  // namespace tbptt
