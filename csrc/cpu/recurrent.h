// What the forward and the backward pass of a recurrent layer share: how segments are shared out among the workers.
#pragma once

#include "../api.h"
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "pack.h"
#include "vector_math.h"

namespace tbptt {
namespace TBPTT_ISA {

// Rows walked together: enough to reuse the weights, few enough that their gradients stay in the second-level cache.
constexpr int64_t rows_together = 64;

// Rows walk independently of one another, so with enough of them each worker takes its own and never waits. With few,
// or with weights too large to stream for every worker, workers share the hidden units and wait once a step.
enum class Sharing { rows, units };

struct Plan {
    int threads;
    Sharing sharing;
};

// For `rows` segments whose every step multiplies [depth, columns] weights of `bytes`.
TBPTT_INLINE Plan make_plan(int threads, double rows, double depth, double columns, double bytes) {
    constexpr double flops = 100, bandwidth = 40, barrier = 1500;  // per ns, bytes per ns, ns: only their ratios matter
    const double work = 2 * depth * columns / flops;               // ns per row and step
    const auto stream = [&](double size) { return size > core_cache ? size / bandwidth : size / (4 * bandwidth); };
    const auto longer = [](double a, double b) { return a > b ? a : b; };
    const double alone = longer(work * rows, stream(bytes));
    const int useful = rows < threads ? static_cast<int>(rows) : threads;
    const double by_rows = useful > 1 ? longer(work * __builtin_ceil(rows / useful), stream(bytes)) : 1e300;
    const double by_units = longer(work * rows / threads, stream(bytes / threads)) + barrier;
    if (threads == 1 || (alone <= by_rows && alone <= by_units)) return {1, Sharing::rows};
    return by_rows <= by_units ? Plan{useful, Sharing::rows} : Plan{threads, Sharing::units};
}

// With one step and so few rows that packing the weights would take longer than the product, workers share the units and
// pack each panel when they come to it.
TBPTT_INLINE bool needed_once(const RecurrentShape& shape) { return shape.steps == 1 && shape.batch <= rows_together; }

// The segments of one worker: all of them, or every `count`-th, which keeps lengths and so the work even.
TBPTT_INLINE int64_t take_segments(const Segment* all, int64_t count, Sharing sharing, const Worker& worker,
                                   Segment* mine) {
    const int64_t stride = sharing == Sharing::rows ? worker.count : 1;
    int64_t taken = 0;
    for (int64_t i = sharing == Sharing::rows ? worker.index : 0; i < count; i += stride) mine[taken++] = all[i];
    return taken;
}

// How the tape orders what a cell saved: [step][block of units][row][value][unit], a block being a cache line of units.
// What a tile writes and reads is then one run of memory, which the hardware fetches ahead; lines scattered over rows and
// values held up the stores behind them.
template <class T>
struct SavedLayout {
    static constexpr int64_t block = 64 / sizeof(T);
    int64_t batch, hidden;
    int kept;

    struct Place {
        int64_t first, stride;  // where the first value lies, and how far apart the values are
    };

    Place find(int64_t step, int64_t row, int64_t unit) const {
        const int64_t begin = unit - unit % block, width = smaller(block, hidden - begin);
        return {((step * batch * hidden) + begin * batch + row * width) * kept + (unit - begin), width};
    }
};

// Vectors of units that go through a cell's maths at once: its chains are long, but with three the registers spill.
constexpr int units_together = 2;

// The segments at work, one a lane. When one ends, the next takes its lane, so that as many rows as possible are at work in
// every step; with fewer lanes than segments, the longest (which come first) do not outlast the others.
class Lanes {
   public:
    struct Lane {
        const Segment* segment;
        int64_t begin;  // the walk's step at which it started
        int64_t slot;   // where its state lies, of rows_together
    };

    // at most `most` lanes, which is at most rows_together
    Lanes(const Segment* segments, int64_t count, int64_t most = rows_together)
        : next_(segments), end_(segments + count) {
        int64_t total = 0;
        for (int64_t i = 0; i < count; ++i) total += segments[i].length;
        count_ = count ? smaller(most, ceil_div(total, segments[0].length)) : 0;
        for (int64_t i = 0; i < count_; ++i) lanes_[i] = {next_++, 0, i};
    }

    int64_t count() const { return count_; }
    int64_t begun() const { return begun_; }  // lanes before this one are amid their segments, the others at the start
    const Lane& operator[](int64_t i) const { return lanes_[i]; }

    void advance(int64_t step) {
        int64_t free[rows_together], freed = 0;
        begun_ = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const Lane lane = lanes_[i];
            if (step - lane.begin < lane.segment->length)
                lanes_[begun_++] = lane;
            else
                free[freed++] = lane.slot;
        }
        count_ = begun_;
        for (int64_t i = 0; i < freed && next_ < end_; ++i) lanes_[count_++] = {next_++, step, free[i]};
    }

   private:
    Lane lanes_[rows_together];
    int64_t count_, begun_ = 0;
    const Segment *next_, *end_;
};

// With few panels, narrower ones give every worker some.
template <class T>
TBPTT_INLINE int vectors_for(int64_t columns, const Plan& plan) {
    int vectors = choose_vectors<T>(columns);
    if (plan.sharing == Sharing::units)
        while (vectors > 1 && ceil_div(columns, static_cast<int64_t>(vectors) * lanes<T>) < plan.threads) --vectors;
    return vectors;
}

// The product of one row with zeros.
template <class T>
alignas(64) constexpr T nothing[max_vectors * lanes<T>] = {};

}  // namespace TBPTT_ISA
}  // namespace tbptt
