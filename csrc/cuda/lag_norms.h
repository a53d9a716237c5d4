// Norms of the states' gradients by lag, of every loss by itself: the backward walk with windows of one loss, as on the CPU
// (../cpu/lag_norms.h). Losses are rows of one batch, the last step's first, so that those which have so many steps before them
// are a prefix. There are as many as steps, so a lag is a launch: one product carries the gates' gradients of all losses back,
// then a warp has the cells of a row, and the norm of what reaches them. How many losses there are only the device knows.
#pragma once

#include "maths.h"
#include "recurrent_backward.h"
#include "reduce.h"

namespace tbptt {
namespace cuda {

template <class T>
struct FoundLosses {
    std::int64_t places, batch, hidden;
    std::int64_t lags;            // how many are asked for
    const T* grad_out;            // [T, B, H]
    const std::uint8_t* is_init;  // [T, B] or null
    int* lengths;                 // out = [T·B], to how many lags a loss has a gradient
    Segment* segments;            // out = [T·B] at most, the losses that have any
    int* live;                    // out = [T + 1], how many of them have so many steps before theirs
};

// One warp for each loss.
template <class T>
__global__ void find_lengths(const FoundLosses<T> p) {
    const std::int64_t warps = global_count() / warp_size;
    for (std::int64_t place = global_index() / warp_size; place < p.places; place += warps) {
        bool any = false;
        for (std::int64_t k = lane_index(); k < p.hidden; k += warp_size)
            any = any || p.grad_out[place * p.hidden + k] != Real<T>(0);
        any = any_lane(any);
        if (lane_index() != 0) continue;
        const std::int64_t before = place / p.batch, most = before + 1 < p.lags ? before + 1 : p.lags;
        std::int64_t length = any;
        while (length > 0 && length < most && !(p.is_init && p.is_init[place - (length - 1) * p.batch] != 0)) ++length;
        p.lengths[place] = static_cast<int>(length);
    }
}

// One block, whose threads each have a run of places. The order is fixed: sums over losses follow it.
template <class T>
__global__ void order_losses(const FoundLosses<T> p) {
    int* counts = shared_memory<int>();
    const int threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
    const std::int64_t run = (p.places + threads - 1) / threads, end = p.places - me * run,
                       begin = end > run ? end - run : 0;
    int mine = 0;
    for (std::int64_t place = begin; place < end; ++place) mine += p.lengths[place] > 0;
    counts[me] = mine;
    __syncthreads();
    int row = 0;
    for (int i = 0; i < me; ++i) row += counts[i];
    for (std::int64_t place = end - 1; place >= begin; --place) {
        const int step = static_cast<int>(place / p.batch), b = static_cast<int>(place % p.batch);
        if (b == p.batch - 1) p.live[step + 1] = row;
        if (p.lengths[place] > 0) p.segments[row++] = {b, step, p.lengths[place], step};
    }
    if (begin == 0 && end > 0) p.live[0] = row;
}

// Before step 0 nothing is known; elsewhere zeros, until a gradient is found.
template <class T>
struct BlankNorms {
    std::int64_t count, places, batch;
    T* norms;  // out = [lags, T, B]
};

template <class T>
__global__ void blank_norms(const BlankNorms<T> p) {
    for (std::int64_t i = global_index(); i < p.count; i += global_count())
        p.norms[i] = T(i % p.places < i / p.places * p.batch ? not_a_number<Real<T>>() : Real<T>(0));
}

template <class T>
struct LagStep {
    BackwardWalk<T> walk;
    int lag;
    const T* carried;  // [rows, H], by the product with the later step's gates' gradients; at lag 0 not read
    T* norms;          // out = [T, B], of this lag
    Real<T>* states;   // out = [rows, states, H], the gradients; or null
};

template <class T, template <class> class CellOf>
__global__ void step_back(const LagStep<T> p) {
    using Pass = BackwardPass<T, CellOf>;
    using V = Real<T>;
    constexpr CellShape cell = Pass::cell;
    const Pass pass{p.walk};
    const Rows& rows = p.walk.product.rows;
    const int hidden = static_cast<int>(p.walk.product.hidden), live = rows.live(p.lag),
              warps = static_cast<int>(global_count() / warp_size);
    for (int row = static_cast<int>(global_index() / warp_size); row < live; row += warps) {
        const Segment s = rows[row];
        if (p.lag >= s.length) continue;
        const typename Pass::Row step = pass.row(row, p.lag);
        double squares = 0;  // of float's they would overflow or vanish
        for (int unit = lane_index(); unit < hidden; unit += warp_size) {
            const std::int64_t at = std::int64_t{row} * hidden + unit;
            const auto fetched = pass.fetch(step, unit);
            const V carried[1] = {p.lag > 0 ? V(p.carried[at]) : V(0)};
            const V by_h = fetched.dh + carried[0] + (cell.has_c ? V(0) : fetched.carry), by_c = fetched.carry;
            squares += static_cast<double>(by_h) * by_h;
            if (cell.has_c) squares += static_cast<double>(by_c) * by_c;
            if (p.states) {
                V* to = p.states + (at - unit) * (1 + cell.has_c) + unit;
                to[0] = by_h;
                if (cell.has_c) to[hidden] = by_c;
            }
            V left[Pass::left];
            pass.finish(step, unit, carried, fetched, left);
        }
        squares = combine_lanes(squares, warp_size, Sum());
        if (lane_index() == 0)
            p.norms[std::int64_t{s.origin} * rows.batch + s.batch] = T(static_cast<V>(square_root(squares)));
    }
}

// The sums of the states' gradients over all losses, in double precision: one thread a column, one row of blocks a part.
template <class T>
struct StateSums {
    Rows rows;
    int lag;
    std::int64_t columns;
    const Real<T>* states;  // [rows, columns]
    int parts;              // of the rows
    double* partial;        // out = [parts, columns]
};

template <class T>
__global__ void sum_states(const StateSums<T> p) {
    const std::int64_t live = p.rows.live(p.lag), begin = live * blockIdx.y / p.parts,
                       end = live * (blockIdx.y + 1) / p.parts, column = global_index();
    if (column >= p.columns) return;
    double sum = 0;
    for (std::int64_t row = begin; row < end; ++row)
        if (p.lag < p.rows[static_cast<int>(row)].length) sum += p.states[row * p.columns + column];
    p.partial[blockIdx.y * p.columns + column] = sum;
}

template <class T>
void add_states(StateSums<T> p, double* sums, const Call& call) {
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(p.columns, grid.threads));
    grid.y = static_cast<unsigned>(p.parts);
    launch(&sum_states<T>, grid, call.stream, p);
    ColumnSums<double> all{};
    all.columns = p.columns;
    all.sums = sums;
    all.parts = p.parts;
    all.partial = p.partial;
    grid.y = 1;
    launch(&sum_column_parts<double>, grid, call.stream, all);
}

template <class T, template <class> class CellOf>
void run_lag_norms(const RecurrentBackward<T>& p, std::int64_t lags, const Call& call) {
    constexpr CellShape cell = CellOf<ScalarMath<Real<T>>>::shape;
    const RecurrentShape& shape = p.layer.shape;
    const std::int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden, places = steps * batch,
                       columns = cell.gates * hidden, gradients = cell.gate_gradients * hidden,
                       states = (1 + cell.has_c) * hidden;
    if (p.lag_sums) set_bytes(p.lag_sums, 0, static_cast<std::size_t>(lags * states) * sizeof(double), call.stream);
    if (places == 0) return;
    const BlankNorms<T> blank{lags * places, places, batch, p.lag_norms};
    launch(&blank_norms<T>, grid_for(blank.count), call.stream, blank);

    const Scratch<int> lengths(places, call.stream), live(steps + 1, call.stream);
    const Scratch<Segment> segments(places, call.stream);
    const FoundLosses<T> losses{places, batch, hidden, lags, p.grad_out, p.layer.is_init, lengths, segments, live};
    launch(&find_lengths<T>, grid_for(places * warp_size), call.stream, losses);
    Grid one;
    one.shared_bytes = one.threads * sizeof(int);
    launch(&order_losses<T>, one, call.stream, losses);

    const Scratch<T> weights(columns * hidden, call.stream), carried(places * hidden, call.stream),
        dgates(places * gradients, call.stream);
    const Scratch<Real<T>> carry(cell.has_carry ? places * hidden : 0, call.stream),
        by_states(p.lag_sums ? places * states : 0, call.stream);
    const std::int64_t parts = divide_up(places, 128);
    const Rows rows{segments, live, static_cast<int>(steps), static_cast<int>(batch), 1, true};
    StateSums<T> sums{rows, 0, states, by_states, static_cast<int>(parts < 256 ? parts : 256), nullptr};
    const Scratch<double> partial(p.lag_sums ? sums.parts * states : 0, call.stream);
    sums.partial = partial;

    turn(Transposition<T>{columns, hidden, p.layer.w_hh, 0, weights}, call);
    Product<T> back{};
    back.columns = hidden;
    back.depth = columns;
    back.along = true;
    back.a = dgates + cell.recurrent_first() * hidden;
    back.a_stride = gradients;
    back.b = weights;
    back.b_stride = columns;
    back.c = carried;
    back.c_stride = hidden;
    LagStep<T> step{};
    step.walk.product.rows = rows;
    step.walk.product.hidden = hidden;
    step.walk.h0 = p.layer.h0;
    step.walk.c0 = p.layer.c0;
    step.walk.is_init = p.layer.is_init;
    step.walk.out = p.tape.h;
    step.walk.saved = p.tape.saved;
    step.walk.grad_out = p.grad_out;
    step.walk.own = dgates;  // of both parities: the product has read a lag's before the next one's are written
    step.walk.carry = carry;
    step.carried = carried;
    step.states = by_states;
    for (std::int64_t lag = 0; lag < lags && lag < steps; ++lag) {
        if (lag > 0) {
            back.rows = places - lag * batch;
            back.live = live + lag;
            multiply<true>(back, call);
        }
        step.lag = sums.lag = static_cast<int>(lag);
        step.norms = p.lag_norms + lag * places;
        launch(&step_back<T, CellOf>, grid_for((places - lag * batch) * warp_size), call.stream, step);
        if (p.lag_sums) add_states(sums, p.lag_sums + lag * states, call);
    }
}

}  // namespace cuda
}  // namespace tbptt
