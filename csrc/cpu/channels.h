// Sums over all elements of each channel of images, in either layout, by vectors and over blocks that depend on the problem's
// sizes only.
#pragma once

#include "normalization.h"

namespace tbptt {
namespace TBPTT_ISA {

// How x [outer, channels, inner] is cut into tasks. The elements of a channel, counted over outer and inner together, are
// cut into blocks. Where channels lie side by side (inner = 1), a task is a block of some of them, else of one; and where
// they are few, several rows pass for one row of so many times the channels, whose parts are merged in the end.
struct ChannelCuts {
    ChannelShape shape;            // with rows folded
    int64_t channels;              // as given
    int64_t count, block, blocks;  // elements of a channel, of a block; number of blocks
    int64_t width, groups;         // channels of a task; number of such groups
    TBPTT_INLINE bool side_by_side() const { return shape.inner == 1; }
    TBPTT_INLINE int64_t tasks() const { return blocks * groups; }
    TBPTT_INLINE int64_t parts() const { return blocks * shape.channels; }
    // How far ahead of its sums a worker asks for elements: the same run of the next image, or some rows below.
    TBPTT_INLINE int64_t ahead() const { return shape.channels * (side_by_side() ? 8 : shape.inner); }
};

struct ChannelTask {
    int64_t block;
    Range elements, channels;
};

TBPTT_INLINE ChannelCuts cut_channels(ChannelShape shape) {
    constexpr int64_t rows = 128, run = 8192, columns = 64;
    if (shape.channels == 1) shape = {1, 1, shape.outer * shape.inner};
    ChannelCuts cuts{shape, shape.channels, shape.outer * shape.inner, run, 0, 1, shape.channels};
    if (cuts.side_by_side()) {
        while (cuts.shape.outer % 2 == 0 && cuts.shape.outer > 0 && 2 * cuts.shape.channels <= columns) {
            cuts.shape.outer /= 2;
            cuts.shape.channels *= 2;
        }
        cuts.count = cuts.shape.outer;
        cuts.block = rows;
        cuts.width = columns;
        cuts.groups = ceil_div(cuts.shape.channels, columns);
    }
    cuts.blocks = ceil_div(cuts.count, cuts.block);
    return cuts;
}

TBPTT_INLINE ChannelTask task_of(const ChannelCuts& cuts, int64_t index) {
    const int64_t block = index / cuts.groups, first = index % cuts.groups * cuts.width;
    return {block,
            {block * cuts.block, smaller((block + 1) * cuts.block, cuts.count)},
            {first, smaller(first + cuts.width, cuts.shape.channels)}};
}

// Calls visit(channel, offset of the first, number) for the runs that hold the task's elements, in the order of memory.
template <class Visit>
TBPTT_INLINE void for_each_run(const ChannelShape& shape, const ChannelTask& task, Visit visit) {
    for (int64_t i = task.elements.begin; i < task.elements.end;) {
        const int64_t image = i / shape.inner, offset = i % shape.inner;
        const int64_t number = smaller(shape.inner - offset, task.elements.end - i);
        for (int64_t c = task.channels.begin; c < task.channels.end; ++c)
            visit(c, (image * shape.channels + c) * shape.inner + offset, number);
        i += number;
    }
}

// What a vector of elements adds to N sums.
template <int N>
struct Terms {
    Vec<double> of[N];
};

// to[s][channel] = Σ terms(offset, count, at).of[s] over the task's elements. `at(values)` are the values of the channels
// [C] that the vector at `offset` belongs to.
template <int N, class Function>
TBPTT_INLINE void sum_channels(const ChannelCuts& cuts, const ChannelTask& task, double* const (&to)[N],
                               Function terms) {
    constexpr int L = lanes<double>;
    const int64_t channels = cuts.shape.channels;
    if (!cuts.side_by_side()) {
        Sum<double> sums[N];
        const auto at = [&](const double* values) { return broadcast(values[task.channels.begin]); };
        for_each_run(cuts.shape, task, [&](int64_t, int64_t first, int64_t number) {
            walk<double>({first, first + number}, [&](int64_t offset, int64_t count, int k) {
                const Terms<N> found = terms(offset, count, at);
                for (int s = 0; s < N; ++s) sums[s].part[k] += first_lanes<double>(found.of[s], count);
            });
        });
        for (int s = 0; s < N; ++s) to[s][task.channels.begin] = sums[s].total();
        return;
    }
    // Channels c …: several full vectors, or one of which the first `left` lanes count.
    const auto sum_vectors = [&](int64_t c, int64_t left, auto vectors) {
        constexpr int V = decltype(vectors)::value;
        Vec<double> sums[N][V]{};
        for (int64_t row = task.elements.begin; row < task.elements.end; ++row) {
#pragma GCC unroll 4
            for (int k = 0; k < V; ++k) {
                const int64_t channel = c + k * L, count = V > 1 ? L : left;
                const auto at = [&](const double* values) { return load_partial(values + channel, count); };
                const Terms<N> found = terms(row * channels + channel, count, at);
                for (int s = 0; s < N; ++s) sums[s][k] += found.of[s];
            }
        }
        for (int s = 0; s < N; ++s)
            for (int k = 0; k < V; ++k) store_partial(to[s] + c + k * L, sums[s][k], V > 1 ? L : left);
    };
    int64_t c = task.channels.begin;
    for (; c + sums_together * L <= task.channels.end; c += sums_together * L)
        sum_vectors(c, L, std::integral_constant<int, sums_together>());
    for (; c < task.channels.end; c += L) sum_vectors(c, task.channels.end - c, std::integral_constant<int, 1>());
}

// Calls body(offset, count, at) for vectors of T over the task's elements.
template <class T, class Body>
TBPTT_INLINE void for_each_vector(const ChannelCuts& cuts, const ChannelTask& task, Body body) {
    if (!cuts.side_by_side()) {
        for_each_run(cuts.shape, task, [&](int64_t channel, int64_t first, int64_t number) {
            const auto at = [&](const T* values) { return broadcast(values[channel]); };
            cover<T>(number, [&](int64_t i, int64_t count) { body(first + i, count, at); });
        });
        return;
    }
    for (int64_t row = task.elements.begin; row < task.elements.end; ++row)
        cover<T>(task.channels.end - task.channels.begin, [&](int64_t i, int64_t count) {
            const int64_t c = task.channels.begin + i;
            const auto at = [&](const T* values) { return load_partial(values + c, count); };
            body(row * cuts.shape.channels + c, count, at);
        });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
