// Segments on the device (../segments.h tells what they are): the masks lie there, and reading them back would make the host
// wait. The same cuts as on the CPU, by one thread for each step and row; the order is by length, longest first.
#pragma once

#include "../segments.h"
#include "runtime.h"

namespace tbptt {
namespace cuda {

// What rows the walk has. Where nothing parts windows and they do not overlap, they follow from the row's number alone.
struct Rows {
    const Segment* segments;  // or null
    const int* live_at;       // [steps + 2], how many segments go on to that lag
    int steps, batch, window;
    bool backward;

    // How many rows are at work `lag` steps after their begin: a prefix.
    TBPTT_DEVICE int live(int lag) const {
        if (segments) return lag < steps + 2 ? load_shared_by_grid(live_at + lag) : 0;
        if (!backward) return lag < steps ? batch : 0;
        // All windows have `window` steps but the last, which may have fewer; the first goes on into the initial state.
        const int windows = (steps + window - 1) / window, last = steps - (windows - 1) * window;
        if (windows == 1) return lag <= steps ? batch : 0;
        if (lag < last) return windows * batch;
        if (lag < window) return (windows - 1) * batch;
        return lag == window ? batch : 0;
    }

    TBPTT_DEVICE Segment operator[](int row) const {
        if (segments) return segments[row];
        if (!backward) return {row % batch, 0, steps, 0};
        const int index = row / batch, first = index * window;
        const int end = first + window < steps ? first + window : steps;
        return {row % batch, end - 1, end - first + (index == 0), first};
    }
};

template <class T>
struct SegmentRules {
    int steps, batch, k1, k2;
    bool backward;
    const std::uint8_t* is_init;  // [T, B] or null
    const T* carry_scale;         // [T, B] or null; backward
    bool whole = false;           // a cut between the losses of a window does not part it; backward

    // Whether nothing passes between step t and the step before.
    TBPTT_DEVICE bool cut(int t, int b) const {
        const std::int64_t place = std::int64_t{t} * batch + b;
        return (is_init && is_init[place] != 0) || (backward && carry_scale && carry_scale[place] == T(0));
    }

    // The segment whose origin is step t of row b; of length 0 where there is none.
    TBPTT_DEVICE Segment at(int t, int b) const {
        Segment s{b, t, 0, 0};
        if (!backward) {
            if (t > 0 && !cut(t, b)) return s;
            int end = t + 1;
            while (end < steps && !cut(end, b)) ++end;
            s.length = end - t;
            return s;
        }
        const int losses = t / k1 * k1, end = losses + k1 < steps ? losses + k1 : steps;
        if (t != end - 1 && (whole || !cut(t + 1, b))) return s;
        const int reach = losses + k1 > k2 ? losses + k1 - k2 : 0;
        int first = whole ? losses : t;
        while (first > reach && !cut(first, b)) --first;
        s.length = t - first + 1 + (first == 0 && !cut(0, b));
        s.inject_from = losses;
        return s;
    }
};

template <class T>
struct SegmentWork {
    SegmentRules<T> rules;
    Segment* segments;  // out = [T·B] at most
    int* live;          // out = [T + 2]
    unsigned* counts;   // [T + 2], of each length; zeros
    unsigned* placed;   // [T + 2], of each length; zeros
};

template <class T>
__global__ void count_lengths(const SegmentWork<T> w) {
    const std::int64_t places = std::int64_t{w.rules.steps} * w.rules.batch;
    for (std::int64_t i = global_index(); i < places; i += global_count()) {
        const int length = w.rules.at(static_cast<int>(i / w.rules.batch), static_cast<int>(i % w.rules.batch)).length;
        if (length > 0) add_and_get_old(w.counts + length, 1);
    }
}

// live[lag]: the sum of the counts of all lengths above. One block; each thread sums a run of lengths.
template <class T>
__global__ void sum_lengths(const SegmentWork<T> w) {
    unsigned* sums = shared_memory<unsigned>();
    const int lengths = w.rules.steps + 2, threads = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
    const int run = (lengths + threads - 1) / threads;
    const int begin = me * run < lengths ? me * run : lengths, end = begin + run < lengths ? begin + run : lengths;
    unsigned mine = 0;
    for (int i = begin; i < end; ++i) mine += w.counts[i];
    sums[me] = mine;
    __syncthreads();
    unsigned above = 0;
    for (int i = me + 1; i < threads; ++i) above += sums[i];
    for (int i = end - 1; i >= begin; --i) {
        w.live[i] = static_cast<int>(above);
        above += w.counts[i];
    }
}

// Segments of one length follow one another in any order: no value depends on it.
template <class T>
__global__ void place_segments(const SegmentWork<T> w) {
    const std::int64_t places = std::int64_t{w.rules.steps} * w.rules.batch;
    for (std::int64_t i = global_index(); i < places; i += global_count()) {
        const Segment s = w.rules.at(static_cast<int>(i / w.rules.batch), static_cast<int>(i % w.rules.batch));
        if (s.length > 0) w.segments[w.live[s.length] + static_cast<int>(add_and_get_old(w.placed + s.length, 1))] = s;
    }
}

// The rows of one call, with the memory they lie in.
template <class T>
class FoundRows {
   public:
    FoundRows(const SegmentRules<T>& rules, const Call& call)
        : masks_(!rules.whole &&
                 ((rules.is_init && (rules.backward || rules.steps > 1)) || (rules.backward && rules.carry_scale))),
          analytic_(!masks_ && (!rules.backward || rules.k1 == rules.k2)),
          places_(std::int64_t{rules.steps} * rules.batch),
          expected_(divide_up(rules.steps, rules.backward ? rules.k1 : rules.steps) * rules.batch),
          most_(masks_ ? places_ : expected_),
          segments_(analytic_ ? 0 : most_, call.stream),
          numbers_(analytic_ ? 0 : 3 * (std::int64_t{rules.steps} + 2), call.stream),
          rows_{segments_,   reinterpret_cast<const int*>(static_cast<unsigned*>(numbers_)),
                rules.steps, rules.batch,
                rules.k1,    rules.backward} {
        if (analytic_) return;
        const std::int64_t lengths = std::int64_t{rules.steps} + 2;
        unsigned* numbers = numbers_;
        set_bytes(numbers, 0, static_cast<std::size_t>(3 * lengths) * sizeof(unsigned), call.stream);
        const SegmentWork<T> work{rules, segments_, reinterpret_cast<int*>(numbers), numbers + lengths,
                                  numbers + 2 * lengths};
        launch(&count_lengths<T>, grid_for(places_), call.stream, work);
        Grid one;
        one.shared_bytes = one.threads * sizeof(unsigned);
        launch(&sum_lengths<T>, one, call.stream, work);
        launch(&place_segments<T>, grid_for(places_), call.stream, work);
    }

    const Rows& rows() const { return rows_; }
    // The most rows that there can be, which only the device knows better where masks cut.
    std::int64_t most() const { return most_; }
    // Rows if masks cut nothing.
    std::int64_t expected() const { return expected_; }

   private:
    const bool masks_;     // cuts make rows of their own; a single step forward has none
    const bool analytic_;  // but for a cut before the first step, behind which nothing comes
    const std::int64_t places_, expected_, most_;
    Scratch<Segment> segments_;
    Scratch<unsigned> numbers_;
    const Rows rows_;
};

}  // namespace cuda
}  // namespace tbptt
