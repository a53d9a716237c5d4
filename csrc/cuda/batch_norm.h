// Batch normalization. Statistics are summed in double, part by part and each part in two passes, so that a mean far larger
// than the deviation costs no accuracy; parts are merged as Chan, Golub and LeVeque (1983) do, all about the mean of all.
#pragma once

#include "maths.h"
#include "normalization.h"

namespace tbptt {
namespace cuda {

template <class T>
struct Moments {
    ChannelCuts cuts;
    const T* x;
    double *sums, *squares;  // out = [parts, channels], Σ x and Σ (x - mean of the part)²
};

template <class T, int L, bool SideBySide>
__global__ void __launch_bounds__(channel_threads) find_moments(const Moments<T> p) {
    const ChannelPart part(p.cuts);
    double sum = 0, squares = 0;
    part.walk<SideBySide>(p.cuts, [&](std::int64_t offset, std::int64_t) {
        const auto x = load_vector<L>(p.x + offset);
#pragma unroll
        for (int k = 0; k < L; ++k) sum += static_cast<double>(x.value[k]);
    });
    sum = add_lanes(sum, p.cuts.lanes);
    const double mean = sum / p.cuts.values_of(part.index);
    part.walk<SideBySide>(p.cuts, [&](std::int64_t offset, std::int64_t) {
        const auto x = load_vector<L>(p.x + offset);
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const double difference = static_cast<double>(x.value[k]) - mean;
            squares += difference * difference;
        }
    });
    squares = add_lanes(squares, p.cuts.lanes);
    if (!part.inside || threadIdx.x >= static_cast<unsigned>(p.cuts.lanes)) return;
    p.sums[part.index * p.cuts.channels + part.channel] = sum;
    p.squares[part.index * p.cuts.channels + part.channel] = squares;
}

// What normalizes each channel, [channels] each: out = (x - high - low)·scale + shift forward, and backward
// dy·scale + (x - high - low)·slope + shift.
template <class T>
struct ChannelLines {
    T *high, *low, *scale, *shift, *slope;

    static constexpr std::int64_t count = 5;

    ChannelLines(T* memory, std::int64_t channels)
        : high(memory), low(high + channels), scale(low + channels), shift(scale + channels), slope(shift + channels) {}

    TBPTT_DEVICE void set(std::int64_t channel, double mean, double new_scale, double new_shift,
                          double new_slope) const {
        const Mean<T> parts = split_mean<T>(mean);
        high[channel] = parts.high;
        low[channel] = parts.low;
        scale[channel] = static_cast<T>(new_scale);
        shift[channel] = static_cast<T>(new_shift);
        slope[channel] = static_cast<T>(new_slope);
    }
};

template <class T>
TBPTT_DEVICE double weight_of(const T* weights, std::int64_t index) {
    return weights ? static_cast<double>(weights[index]) : 1.0;
}

template <class T>
struct BatchStatistics {
    BatchNormForward<T> p;
    ChannelCuts cuts;
    const double *sums, *squares;  // [parts, channels] when training
    ChannelLines<T> lines;         // out =
};

template <class T>
__global__ void __launch_bounds__(channel_threads) finish_statistics(const BatchStatistics<T> p) {
    const std::int64_t c = channel_of_lane(), channels = p.cuts.channels;
    const bool inside = c < channels;
    double mean = 0, variance = 0, unbiased = 0;
    if (p.p.training) {
        const double count = static_cast<double>(p.cuts.count * p.cuts.vector);
        mean = add_parts_of_lane(p.cuts.parts, inside, [&](std::int64_t part) { return p.sums[part * channels + c]; }) /
               count;
        const double squares = add_parts_of_lane(p.cuts.parts, inside, [&](std::int64_t part) {
            const double values = p.cuts.values_of(part), difference = p.sums[part * channels + c] / values - mean;
            return p.squares[part * channels + c] + values * difference * difference;
        });
        variance = squares / count;
        unbiased = squares / (count - 1);
    }
    if (!inside || warp_index() != 0) return;
    if (!p.p.training) {
        mean = static_cast<double>(p.p.running_mean[c]);
        variance = static_cast<double>(p.p.running_var[c]);
    } else if (p.p.new_running_mean) {
        const auto mixed = [&](T old, double now) {
            return static_cast<T>((1 - p.p.momentum) * static_cast<double>(old) + p.p.momentum * now);
        };
        p.p.new_running_mean[c] = mixed(p.p.running_mean[c], mean);
        p.p.new_running_var[c] = mixed(p.p.running_var[c], unbiased);
    }
    const double inv_std = 1 / square_root(variance + p.p.eps);
    p.p.mean[c] = mean;
    p.p.inv_std[c] = inv_std;
    p.lines.set(c, mean, inv_std * weight_of(p.p.weight, c), p.p.bias ? static_cast<double>(p.p.bias[c]) : 0.0, 0.0);
}

template <class T>
struct NormalizedChannels {
    ChannelCuts cuts;
    ChannelLines<T> lines;
    const T* grad_y;  // null in the forward pass
    const T* x;       // null in a backward pass to which it does not matter
    T* to;            // out =
};

template <class T, int L, bool SideBySide>
__global__ void __launch_bounds__(channel_threads) normalize_channels(const NormalizedChannels<T> p) {
    const ChannelPart part(p.cuts);
    if (!part.inside) return;
    const std::int64_t c = part.channel;
    const T high = p.lines.high[c], low = p.lines.low[c], scale = p.lines.scale[c], shift = p.lines.shift[c];
    part.walk<SideBySide>(p.cuts, [&](std::int64_t offset, std::int64_t) {
        auto x = load_vector<L>(p.x + offset);
#pragma unroll
        for (int k = 0; k < L; ++k) x.value[k] = (x.value[k] - high - low) * scale + shift;
        store_vector(p.to + offset, x);
    });
}

// x matters where mean and inv_std depend on it.
template <class T, int L, bool SideBySide>
__global__ void __launch_bounds__(channel_threads) normalize_channels_backward(const NormalizedChannels<T> p) {
    const ChannelPart part(p.cuts);
    if (!part.inside) return;
    const std::int64_t c = part.channel;
    const T high = p.lines.high[c], low = p.lines.low[c], scale = p.lines.scale[c], shift = p.lines.shift[c],
            slope = p.lines.slope[c];
    part.walk<SideBySide>(p.cuts, [&](std::int64_t offset, std::int64_t) {
        auto dy = load_vector<L>(p.grad_y + offset);
        Vector<T, L> through_x{};
        if (p.x) {
            const auto x = load_vector<L>(p.x + offset);
#pragma unroll
            for (int k = 0; k < L; ++k) through_x.value[k] = (x.value[k] - high - low) * slope + shift;
        }
#pragma unroll
        for (int k = 0; k < L; ++k) dy.value[k] = dy.value[k] * scale + through_x.value[k];
        store_vector(p.to + offset, dy);
    });
}

template <class T>
void batch_norm_forward(const BatchNormForward<T>& p, const Call& call) {
    const std::int64_t channels = p.shape.channels;
    with_cuts<T>(p.shape, all_aligned(p.x, p.y), [&](auto vector, auto side_by_side, const ChannelCuts& cuts) {
        constexpr int L = decltype(vector)::value;
        constexpr bool SideBySide = decltype(side_by_side)::value == 1;
        const std::int64_t parts = p.training ? cuts.parts * channels : 0;
        const Scratch<double> sums(parts, call.stream), squares(parts, call.stream);
        const Scratch<T> memory(ChannelLines<T>::count * channels, call.stream);
        const ChannelLines<T> lines(memory, channels);
        if (p.training)
            launch(&find_moments<T, L, SideBySide>, cuts.grid(), call.stream, Moments<T>{cuts, p.x, sums, squares});
        launch(&finish_statistics<T>, grid_of_channels(channels), call.stream,
               BatchStatistics<T>{p, cuts, sums, squares, lines});
        launch(&normalize_channels<T, L, SideBySide>, cuts.grid(), call.stream,
               NormalizedChannels<T>{cuts, lines, nullptr, p.x, p.y});
    });
}

template <class T>
struct BatchGradients {
    BatchNormBackward<T> p;
    ChannelCuts cuts;
    const double *sums, *products;  // [parts, channels], or null
    ChannelLines<T> lines;          // out =
};

// With x̂ = (x - mean)·inv_std: db = Σ dy, dw = Σ dy·x̂, and, where mean and inv_std depend on x,
// dx = weight·inv_std·(dy - db/n - x̂·dw/n) (Ioffe and Szegedy 2015).
template <class T>
__global__ void __launch_bounds__(channel_threads) finish_gradients(const BatchGradients<T> p) {
    const std::int64_t c = channel_of_lane(), channels = p.cuts.channels;
    const bool inside = c < channels;
    const auto total = [&](const double* of_parts) {
        const std::int64_t parts = of_parts ? p.cuts.parts : 0;
        return add_parts_of_lane(parts, inside, [&](std::int64_t part) { return of_parts[part * channels + c]; });
    };
    const double sum = total(p.sums), product = total(p.products);
    if (!inside || warp_index() != 0) return;
    const double count = static_cast<double>(p.cuts.count * p.cuts.vector), inv_std = p.p.inv_std[c];
    if (p.p.grad_b) p.p.grad_b[c] = static_cast<T>(sum);
    if (p.p.grad_w) p.p.grad_w[c] = static_cast<T>(product * inv_std);
    const double scale = inv_std * weight_of(p.p.weight, c);
    p.lines.set(c, p.p.mean[c], scale, -scale * sum / count, -scale * inv_std * inv_std * product / count);
}

template <class T>
void batch_norm_backward(const BatchNormBackward<T>& p, const Call& call) {
    const std::int64_t channels = p.shape.channels;
    const bool summed = p.grad_w || p.grad_b || (p.grad_x && p.training);
    const bool aligned = all_aligned(p.x, p.grad_y, p.grad_x);
    with_cuts<T>(p.shape, aligned, [&](auto vector, auto side_by_side, const ChannelCuts& cuts) {
        constexpr int L = decltype(vector)::value;
        constexpr bool SideBySide = decltype(side_by_side)::value == 1;
        const std::int64_t parts = summed ? cuts.parts * channels : 0;
        const Scratch<double> sums(parts, call.stream), products(parts, call.stream);
        const Scratch<T> memory(ChannelLines<T>::count * channels, call.stream);
        const ChannelLines<T> lines(memory, channels);
        if (summed)
            launch(&add_gradients<T, OfChannels, L, SideBySide>, cuts.grid(), call.stream,
                   GradientSums<T, OfChannels>{cuts, {p.mean}, p.grad_y, p.x, sums, products});
        launch(&finish_gradients<T>, grid_of_channels(channels), call.stream,
               BatchGradients<T>{p, cuts, sums, products, lines});
        if (p.grad_x)
            launch(&normalize_channels_backward<T, L, SideBySide>, cuts.grid(), call.stream,
                   NormalizedChannels<T>{cuts, lines, p.grad_y, p.training ? p.x : nullptr, p.grad_x});
    });
}

}  // namespace cuda
}  // namespace tbptt
