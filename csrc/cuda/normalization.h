// What batch and layer normalization share: sums over the elements of channels in double, and means that lose nothing in T.
//
// The elements of a channel are cut into parts, by the problem's sizes alone; a block adds up a part of one channel or, where
// channels lie side by side, of several, and the parts are added up in their order.
#pragma once

#include "api.h"
#include "reduce.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

constexpr unsigned channel_threads = 256;
constexpr std::int64_t part_values = 4096;  // of all channels of a block

// A mean as two numbers of T: x - high is exact where it matters, and - low then restores what rounding took.
template <class T>
struct Mean {
    T high, low;
};

template <class T>
TBPTT_DEVICE Mean<T> split_mean(double mean) {
    const T high = static_cast<T>(mean);
    const double rest = mean - static_cast<double>(high);
    return {high, rest == rest ? static_cast<T>(rest) : T(0)};  // an infinite mean has no rest
}

// Of x [outer, channels, inner]. An item is what one access reads: values of one channel, neighbours in a plane; or a single
// value where channels lie side by side (inner = 1), which threads then share by lanes.
struct ChannelCuts {
    bool side_by_side;
    int vector, lanes;              // values of an item; channels of a block, a power of two
    std::int64_t channels, groups;  // how many; how many times as many as `lanes`
    std::int64_t count, part;       // items of a channel, of a part
    std::int64_t parts;
    Divider plane;  // items of a plane

    ChannelCuts(const ChannelShape& s, int vector_of_planes)
        : side_by_side(s.inner == 1),
          vector(side_by_side ? 1 : vector_of_planes),
          lanes(1),
          channels(s.channels),
          count(s.outer * (s.inner / vector)),
          plane(s.inner > vector ? s.inner / vector : 1) {
        while (side_by_side && lanes < warp_size && lanes < channels) lanes *= 2;
        groups = divide_up(channels, lanes);
        part = part_values / vector / lanes;
        parts = divide_up(count, part);
    }

    // A block for each part of each group.
    Grid grid() const {
        Grid grid;
        grid.x = static_cast<unsigned>(parts * groups);
        grid.threads = channel_threads;
        grid.shared_bytes = channel_threads * sizeof(double);
        return grid;
    }

    TBPTT_DEVICE double values_of(std::int64_t index) const {
        const std::int64_t left = count - index * part;
        return static_cast<double>((left < part ? left : part) * vector);
    }
};

// What a thread has: items of one channel.
struct ChannelPart {
    std::int64_t index, channel;
    bool inside;  // is there such a channel

    TBPTT_DEVICE explicit ChannelPart(const ChannelCuts& cuts)
        : index(blockIdx.x / cuts.groups),
          channel((blockIdx.x - index * cuts.groups) * cuts.lanes + threadIdx.x % static_cast<unsigned>(cuts.lanes)),
          inside(channel < cuts.channels) {}

    // Calls body(offset of the first value, item).
    template <bool SideBySide, class Body>
    TBPTT_DEVICE void walk(const ChannelCuts& cuts, Body body) const {
        const std::int64_t begin = index * cuts.part, left = cuts.count - begin;
        const unsigned size = static_cast<unsigned>(left < cuts.part ? left : cuts.part);
        if (!inside) return;
        if constexpr (SideBySide) {
            const unsigned lanes = static_cast<unsigned>(cuts.lanes);
#pragma unroll 4
            for (unsigned i = threadIdx.x / lanes; i < size; i += channel_threads / lanes)
                body((begin + i) * cuts.channels + channel, begin + i);
        } else {
            const Places places(begin, cuts.plane);
#pragma unroll 4
            for (unsigned i = threadIdx.x; i < size; i += channel_threads) {
                const Place place = places[i];
                const std::int64_t plane = place.row * cuts.channels + channel;
                body((plane * cuts.plane.divisor + place.column) * cuts.vector, begin + i);
            }
        }
    }
};

// Over the threads of the block whose numbers are the same modulo `lanes`, a power of two up to 32; known to all of them.
TBPTT_DEVICE double add_lanes(double value, int lanes) {
    double* const shared = shared_memory<double>();  // [warps, lanes]
    for (int step = warp_size / 2; step >= lanes; step /= 2) value += from_lane(value, lane_index() ^ step);
    if (lane_index() < lanes) shared[warp_index() * lanes + lane_index()] = value;
    __syncthreads();
    value = 0;
    for (int warp = 0; warp < warp_count(); ++warp) value += shared[warp * lanes + lane_index() % lanes];
    __syncthreads();
    return value;
}

// The last stage has a lane for each channel, too: Σ term(part) over the parts, known to all threads of the lane.
inline Grid grid_of_channels(std::int64_t channels) {
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(channels, warp_size));
    grid.threads = channel_threads;
    grid.shared_bytes = channel_threads * sizeof(double);
    return grid;
}

TBPTT_DEVICE std::int64_t channel_of_lane() { return std::int64_t{blockIdx.x} * warp_size + lane_index(); }

template <class Term>
TBPTT_DEVICE double add_parts_of_lane(std::int64_t parts, bool inside, Term term) {
    double sum = 0;
    for (std::int64_t part = warp_index(); inside && part < parts; part += warp_count()) sum += term(part);
    return add_lanes(sum, warp_size);
}

// Calls f(Constant<values of an item>, Constant<side by side>, cuts).
template <class T, class F>
void with_cuts(const ChannelShape& shape, bool aligned, F f) {
    constexpr int L = vector_values<T>;
    const ChannelCuts cuts(shape, aligned && shape.inner % L == 0 ? L : 1);
    if (cuts.side_by_side)
        f(Constant<1>(), Constant<1>(), cuts);
    else if (cuts.vector == L)
        f(Constant<L>(), Constant<0>(), cuts);
    else
        f(Constant<1>(), Constant<0>(), cuts);
}

// x̂ = (x - mean)·scale, where the statistics are those of channels, or of items: the rows of a matrix.
struct OfChannels {
    const double* mean;

    TBPTT_DEVICE double normal(double x, std::int64_t channel, std::int64_t) const { return x - mean[channel]; }
};

struct OfRows {
    const double *mean, *inv_std;

    TBPTT_DEVICE double normal(double x, std::int64_t, std::int64_t row) const {
        return (x - mean[row]) * inv_std[row];
    }
};

template <class T, class Statistics>
struct GradientSums {
    ChannelCuts cuts;
    Statistics statistics;
    const T *grad_y, *x;
    double *sums, *products;  // out = [parts, channels], Σ dy and Σ dy·x̂
};

template <class T, class Statistics, int L, bool SideBySide>
__global__ void __launch_bounds__(channel_threads) add_gradients(const GradientSums<T, Statistics> p) {
    const ChannelPart part(p.cuts);
    double sum = 0, product = 0;
    part.walk<SideBySide>(p.cuts, [&](std::int64_t offset, std::int64_t item) {
        const auto dy = load_vector<L>(p.grad_y + offset), x = load_vector<L>(p.x + offset);
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const double gradient = static_cast<double>(dy.value[k]);
            sum += gradient;
            product += gradient * p.statistics.normal(static_cast<double>(x.value[k]), part.channel, item);
        }
    });
    sum = add_lanes(sum, p.cuts.lanes);
    product = add_lanes(product, p.cuts.lanes);
    if (!part.inside || threadIdx.x >= static_cast<unsigned>(p.cuts.lanes)) return;
    p.sums[part.index * p.cuts.channels + part.channel] = sum;
    p.products[part.index * p.cuts.channels + part.channel] = product;
}

}  // namespace cuda
}  // namespace tbptt
