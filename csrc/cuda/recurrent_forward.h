// The forward pass of a recurrent layer, for every cell: the product of all inputs at once, then the walk over the steps with
// the cell behind the recurrent product.
#pragma once

#include "api.h"
#include "product.h"
#include "recurrent_launch.h"

namespace tbptt {
namespace cuda {

template <class T>
struct ForwardWalk {
    WalkProduct<T> product;
    const T *h0, *c0;  // or null
    const std::uint8_t* is_init;
    T* gates;                   // the inputs' part with the biases [T·B, gates · H], in rows of `gates_stride`
    std::int64_t gates_stride;  //
    const T* candidate_bias;    // [H] or null, of a candidate apart
    T* out;                     // out =
    T* saved;                   // out = [T·B, kept, H], or null. The gates may lie there.
    Real<T>* state_rows;        // [rows, H]: the running state where neither the tape nor the output has it as it is
    T* c_n;                     // out =
};

template <class T, template <class> class CellOf>
struct ForwardPass {
    using V = Real<T>;
    using Cell = CellOf<ScalarMath<V>>;
    static constexpr CellShape cell = Cell::shape;
    static constexpr int kept = cell.kept();

    const ForwardWalk<T>& p;

    // What a row's step has of its own.
    struct Row {
        std::int64_t at;  // step·B + b
        int row, batch;
        bool resets, runs, ends;  // the state before is zeros; a step went before; this is the last
        const T* source;          // h before, or null: zeros, which meet no weights, as 0·NaN must not enter
    };

    TBPTT_DEVICE Row row(int row, int lag) const {
        const Segment s = p.product.rows[row];
        const int step = s.origin + lag;
        Row r{std::int64_t{step} * p.product.rows.batch + s.batch,
              row,
              s.batch,
              false,
              lag > 0,
              step == p.product.rows.steps - 1,
              nullptr};
        r.resets = p.is_init && p.is_init[r.at] != 0;
        r.source = before(r, p.h0, p.out, p.product.hidden);
        return r;
    }
    TBPTT_DEVICE bool begins_in_memory() const { return p.h0; }

    static constexpr int left = 1;
    struct Fetched {
        V input[cell.gates], h_before, c_before;
    };

    TBPTT_DEVICE Fetched fetch(const Row& r, int unit) const {
        const std::int64_t hidden = p.product.hidden;
        Fetched f{};
#pragma unroll
        for (int g = 0; g < cell.gates; ++g) f.input[g] = p.gates[r.at * p.gates_stride + g * hidden + unit];
        const V* running = p.state_rows && r.runs ? p.state_rows + r.row * hidden : nullptr;
        if (cell.candidate_apart) f.h_before = running ? running[unit] : r.source ? V(r.source[unit]) : V(0);
        if (cell.has_c) {
            const T* state = before(r, p.c0, p.saved ? p.saved + cell.saved * hidden : nullptr, kept * hidden);
            f.c_before = running ? running[unit] : state ? V(state[unit]) : V(0);
        }
        return f;
    }

    TBPTT_DEVICE void finish(const Row& r, int unit, V (&recurrent)[cell.gates], const Fetched& f,
                             V (&next)[left]) const {
        const std::int64_t hidden = p.product.hidden;
#pragma unroll
        for (int g = 0; g < cell.gates; ++g) recurrent[g] = r.source ? recurrent[g] : V(0);
        if (cell.candidate_apart && p.candidate_bias) recurrent[cell.gates - 1] += p.candidate_bias[unit];
        V saved[cell.saved + 1] = {}, h = 0, c = 0;
        Cell::forward(f.input, recurrent, f.h_before, f.c_before, saved, h, c);
        next[0] = h;
        p.out[r.at * hidden + unit] = T(h);
        if (p.saved) {
            T* to = p.saved + r.at * kept * hidden + unit;
#pragma unroll
            for (int v = 0; v < cell.saved; ++v) to[v * hidden] = to_tape<T>(saved[v], cell.sigmoids >> v & 1u);
            if (cell.has_c) to[cell.saved * hidden] = T(c);
        }
        if ((cell.has_c || cell.candidate_apart) && p.state_rows)
            p.state_rows[r.row * hidden + unit] = cell.has_c ? c : h;
        if (cell.has_c && r.ends) p.c_n[r.batch * hidden + unit] = T(c);
    }

   private:
    // A state before this step: what the caller gave, or in `others` [T·B], in rows of `stride`; null: zeros.
    TBPTT_DEVICE const T* before(const Row& r, const T* initial, const T* others, std::int64_t stride) const {
        const std::int64_t batch = p.product.rows.batch;
        if (r.resets) return nullptr;
        if (r.at < batch) return initial ? initial + r.batch * p.product.hidden : nullptr;
        return others ? others + (r.at - batch) * stride : nullptr;
    }
};

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void walk_forward(const ForwardWalk<T> p) {
    using Pass = ForwardPass<T, CellOf>;
    walk_in_grid<T, Shape, Pass::cell.gates, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void cluster_forward(const ForwardWalk<T> p) {
    using Pass = ForwardPass<T, CellOf>;
    walk_in_cluster<T, Shape, Pass::cell.gates, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf, class Shape, bool Exact>
__global__ __launch_bounds__(walk_threads, 1) void slices_forward(const ForwardWalk<T> p) {
    using Pass = ForwardPass<T, CellOf>;
    walk_in_slices<T, Shape, Pass::cell.gates, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf, class Tiles, bool Exact>
__global__ __launch_bounds__(Tiles::Tile::threads, Tiles::blocks) void tiles_forward(const ForwardWalk<T> p) {
    using Pass = ForwardPass<T, CellOf>;
    walk_in_tiles<typename Tiles::Tile, Pass::cell.gates, Exact>(p.product, Pass{p});
}

template <class T, template <class> class CellOf>
struct ForwardKernels {
    template <bool Exact>
    struct With {
        using Walk = ForwardWalk<T>;
        using Pass = ForwardPass<T, CellOf>;
        static constexpr int gates = Pass::cell.gates;
        template <class Shapes>
        using ShapeOf = typename Shapes::Forward;
        using Tiles = WalkTiles<T, gates, Exact>;

        template <class Shape>
        static auto cluster() {
            return &cluster_forward<T, CellOf, Shape, Exact>;
        }
        template <class Shape>
        static auto slices() {
            return &slices_forward<T, CellOf, Shape, Exact>;
        }
        template <class Shape>
        static auto grid() {
            return &walk_forward<T, CellOf, Shape, Exact>;
        }
        static auto tiles() { return &tiles_forward<T, CellOf, Tiles, Exact>; }
    };
};

template <class T, template <class> class CellOf>
void run_forward(const RecurrentForward<T>& p, const Call& call) {
    constexpr CellShape cell = CellOf<ScalarMath<Real<T>>>::shape;
    const RecurrentLayer<T>& layer = p.layer;
    const RecurrentShape& shape = layer.shape;
    const std::int64_t places = shape.steps * shape.batch, hidden = shape.hidden, columns = cell.gates * hidden;
    const SegmentRules<T> rules{static_cast<int>(shape.steps),
                                static_cast<int>(shape.batch),
                                static_cast<int>(shape.steps),
                                static_cast<int>(shape.steps),
                                false,
                                layer.is_init,
                                nullptr};
    const FoundRows<T> found(rules, call);

    // The inputs' part goes where the walk leaves what it keeps: to the tape, or with one gate to the output.
    const bool in_tape = p.tape.saved && cell.saved >= cell.gates, in_out = cell.gates == 1;
    const Scratch<T> own_gates(in_tape || in_out ? 0 : places * columns, call.stream);
    const bool running = is_narrow<T> ? cell.has_c || cell.candidate_apart : cell.has_c && !p.tape.saved;
    const Scratch<Real<T>> state_rows(running ? found.most() * hidden : 0, call.stream);
    const std::int64_t counters = shape.steps > 1 ? most_groups : 0;
    const Scratch<unsigned> arrived(counters, call.stream);
    if (counters > 0) set_bytes(arrived, 0, counters * sizeof(unsigned), call.stream);

    ForwardWalk<T> walk{};
    walk.product = {found.rows(), hidden, hidden, layer.w_hh, false, false, arrived, false};
    walk.product.aligned = hidden % Four<T>::values == 0 && is_aligned(layer.w_hh) && is_aligned(p.out) &&
                           (!layer.h0 || is_aligned(layer.h0));
    walk.h0 = layer.h0;
    walk.c0 = layer.c0;
    walk.is_init = layer.is_init;
    walk.gates = in_tape ? p.tape.saved : in_out ? p.out : static_cast<T*>(own_gates);
    walk.gates_stride = in_tape ? cell.kept() * hidden : columns;
    walk.candidate_bias = cell.candidate_apart && layer.b_hh ? layer.b_hh + (cell.gates - 1) * hidden : nullptr;
    walk.out = p.out;
    walk.saved = cell.kept() > 0 ? p.tape.saved : nullptr;
    walk.state_rows = state_rows;
    walk.c_n = p.c_n;

    Product<T> inputs{};
    inputs.rows = places;
    inputs.columns = columns;
    inputs.depth = shape.inputs;
    inputs.along = true;
    inputs.a = layer.x;
    inputs.b = layer.w_ih;
    inputs.a_stride = inputs.b_stride = shape.inputs;
    inputs.bias = layer.b_ih;
    inputs.bias_2 = layer.b_hh;
    inputs.bias_2_count = cell.candidate_apart ? columns - hidden : columns;
    inputs.c = walk.gates;
    inputs.c_stride = walk.gates_stride;
    multiply(inputs, call);

    launch_walk<T, ForwardKernels<T, CellOf>::template With>(walk, found.expected(), call);
}

}  // namespace cuda
}  // namespace tbptt
