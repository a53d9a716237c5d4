// Batch normalization. Statistics are summed in double, block by block and each block in two passes, so that a mean far
// larger than the deviation costs no accuracy; parts are merged in the order of the blocks (Chan, Golub and LeVeque 1983).
#pragma once

#include "channels.h"

namespace tbptt {
namespace TBPTT_ISA {

// Mean and Σ (x - mean)² of each block of a channel [blocks, C].
struct Moments {
    double *mean, *squares;
};

template <class T>
TBPTT_INLINE void find_moments(const ChannelCuts& cuts, const ChannelTask& task, const T* x, const Moments& to) {
    const int64_t ahead = cuts.ahead();
    double *const mean = to.mean + task.block * cuts.shape.channels, *const squares = to.squares + (mean - to.mean);
    sum_channels<1>(cuts, task, {mean}, [&](int64_t i, int64_t n, auto) {
        prefetch_far(x + i + ahead);
        return Terms<1>{{load_double(x + i, n)}};
    });
    for (int64_t c = task.channels.begin; c < task.channels.end; ++c)
        mean[c] /= static_cast<double>(task.elements.end - task.elements.begin);
    sum_channels<1>(cuts, task, {squares}, [&](int64_t i, int64_t n, auto at) {
        const Vec<double> difference = load_double(x + i, n) - at(mean);
        return Terms<1>{{difference * difference}};
    });
}

struct MeanAndSquares {
    double mean, squares;
};

TBPTT_INLINE MeanAndSquares merge_moments(const ChannelCuts& cuts, const Moments& blocks, int64_t channel) {
    MeanAndSquares all{0, 0};
    double before = 0;
    for (int64_t i = channel; i < cuts.parts(); i += cuts.channels) {
        const int64_t b = i / cuts.shape.channels;
        const double added = static_cast<double>(smaller(cuts.block, cuts.count - b * cuts.block));
        const double share = added / (before + added), difference = blocks.mean[i] - all.mean;
        all.mean += share * difference;
        all.squares += blocks.squares[i] + share * before * difference * difference;
        before += added;
    }
    return all;
}

// Values of each channel, [folded C] each, as vectors load them.
template <class T>
struct ChannelLines {
    T *high, *low, *scale, *shift, *slope;

    static TBPTT_INLINE int64_t size(const ChannelCuts& cuts) { return 5 * cuts.shape.channels; }

    ChannelLines(T* memory, const ChannelCuts& cuts)
        : high(memory),
          low(high + cuts.shape.channels),
          scale(low + cuts.shape.channels),
          shift(scale + cuts.shape.channels),
          slope(shift + cuts.shape.channels) {}

    TBPTT_INLINE void set(const ChannelCuts& cuts, int64_t channel, double mean, double new_scale, double new_shift,
                          double new_slope) const {
        const Mean<T> parts = split_mean<T>(mean);
        for (int64_t c = channel; c < cuts.shape.channels; c += cuts.channels) {
            high[c] = parts.high;
            low[c] = parts.low;
            scale[c] = static_cast<T>(new_scale);
            shift[c] = static_cast<T>(new_shift);
            slope[c] = static_cast<T>(new_slope);
        }
    }
};

// Calls sum(task) if there is something to sum up, finish(channel) and write(task) for everything: all of a channel is
// summed up before it is finished, and all finished that a task needs before it is written. Where there are enough channels
// for the workers, each goes through its own one by one: what it has summed up is then still in its cache.
template <class Sum, class Finish, class Write>
TBPTT_INLINE void go_through(const ChannelCuts& cuts, const Worker& worker, bool summed, Sum sum, Finish finish,
                             Write write) {
    const Range mine = split(cuts.tasks(), worker), my_channels = split(cuts.channels, worker);
    if (summed && !cuts.side_by_side() && (cuts.groups % worker.count == 0 || cuts.groups >= 4 * worker.count)) {
        for (int64_t c = my_channels.begin; c < my_channels.end; ++c) {
            for (int64_t b = 0; b < cuts.blocks; ++b) sum(task_of(cuts, b * cuts.groups + c));
            finish(c);
            for (int64_t b = 0; b < cuts.blocks; ++b) write(task_of(cuts, b * cuts.groups + c));
        }
        return;
    }
    if (summed) {
        for (int64_t i = mine.begin; i < mine.end; ++i) sum(task_of(cuts, i));
        wait_for_all(worker);
    }
    for (int64_t c = my_channels.begin; c < my_channels.end; ++c) finish(c);
    wait_for_all(worker);
    const ChannelShape& shape = cuts.shape;
    const Range planes = split(shape.outer * shape.channels, worker);
    if (planes.begin == planes.end) return;
    int64_t image = planes.begin / shape.channels, channel = planes.begin % shape.channels;
    for (int64_t first = planes.begin; first < planes.end; ++image, channel = 0) {
        const int64_t end = smaller(shape.channels, channel + planes.end - first);
        write({0, {image * shape.inner, (image + 1) * shape.inner}, {channel, end}});
        first += end - channel;
    }
}

template <class T>
void batch_norm_forward(const BatchNormForward<T>& p) {
    const ChannelCuts cuts = cut_channels(p.shape);
    const int64_t channels = p.shape.channels, parts = p.training ? cuts.parts() : 0;
    const double count = static_cast<double>(p.shape.outer * p.shape.inner);
    Buffer<double> of_blocks(2 * parts);
    Buffer<T> memory(ChannelLines<T>::size(cuts));
    const Moments moments{of_blocks, of_blocks + parts};
    const ChannelLines<T> lines(memory, cuts);
    const auto finish = [&](int64_t c) {
        double variance;
        if (p.training) {
            const MeanAndSquares found = merge_moments(cuts, moments, c);
            p.mean[c] = found.mean;
            variance = found.squares / count;
            if (p.new_running_mean) {
                const auto mixed = [&](T old, double now) {
                    return static_cast<T>((1 - p.momentum) * static_cast<double>(old) + p.momentum * now);
                };
                p.new_running_mean[c] = mixed(p.running_mean[c], found.mean);
                p.new_running_var[c] = mixed(p.running_var[c], found.squares / (count - 1));
            }
        } else {
            p.mean[c] = static_cast<double>(p.running_mean[c]);
            variance = static_cast<double>(p.running_var[c]);
        }
        p.inv_std[c] = 1 / __builtin_sqrt(variance + p.eps);
        lines.set(cuts, c, p.mean[c], p.inv_std[c] * weight_of(p.weight, c),
                  p.bias ? static_cast<double>(p.bias[c]) : 0.0, 0.0);
    };
    run_parallel(threads_for(cost_of_normalizing * count * static_cast<double>(channels)), [&](const Worker& worker) {
        go_through(
            cuts, worker, p.training, [&](const ChannelTask& task) { find_moments(cuts, task, p.x, moments); }, finish,
            [&](const ChannelTask& task) {
                for_each_vector<T>(cuts, task, [&](int64_t j, int64_t n, auto at) {
                    const Vec<T> centred = load_partial(p.x + j, n) - at(lines.high) - at(lines.low);
                    store_partial(p.y + j, centred * at(lines.scale) + at(lines.shift), n);
                });
            });
    });
}

// With x̂ = (x - mean)·inv_std: db = Σ dy, dw = Σ dy·x̂, and, where mean and inv_std depend on x,
// dx = weight·inv_std·(dy - db/n - x̂·dw/n) (Ioffe and Szegedy 2015).
template <class T>
void batch_norm_backward(const BatchNormBackward<T>& p) {
    const ChannelCuts cuts = cut_channels(p.shape);
    const int64_t channels = p.shape.channels;
    const bool summed = p.grad_w || p.grad_b || (p.grad_x && p.training);
    const int64_t parts = summed ? cuts.parts() : 0;
    const double count = static_cast<double>(p.shape.outer * p.shape.inner);
    Buffer<double> of_blocks(2 * parts), mean(cuts.shape.channels);
    Buffer<T> memory(ChannelLines<T>::size(cuts));
    double *const sums = of_blocks, *const products = of_blocks + parts;
    const ChannelLines<T> lines(memory, cuts);
    for (int64_t c = 0; c < cuts.shape.channels; ++c) mean[c] = p.mean[c % channels];
    const int64_t ahead = cuts.ahead();
    const auto add_up = [&](const ChannelTask& task) {
        const int64_t first = task.block * cuts.shape.channels;
        sum_channels<2>(cuts, task, {sums + first, products + first}, [&](int64_t i, int64_t n, auto at) {
            prefetch_far(p.x + i + ahead);
            prefetch_far(p.grad_y + i + ahead);
            const Vec<double> dy = load_double(p.grad_y + i, n);
            return Terms<2>{{dy, dy * (load_double(p.x + i, n) - at(mean))}};
        });
    };
    const auto finish = [&](int64_t c) {
        double sum = 0, product = 0;
        for (int64_t i = c; i < parts; i += channels) {
            sum += sums[i];
            product += products[i];
        }
        if (p.grad_b) p.grad_b[c] = static_cast<T>(sum);
        if (p.grad_w) p.grad_w[c] = static_cast<T>(product * p.inv_std[c]);
        const double scale = p.inv_std[c] * weight_of(p.weight, c);
        lines.set(cuts, c, p.mean[c], scale, -scale * sum / count,
                  -scale * p.inv_std[c] * p.inv_std[c] * product / count);
    };
    const auto write = [&](const ChannelTask& task) {
        if (!p.grad_x) return;
        if (p.training)
            for_each_vector<T>(cuts, task, [&](int64_t j, int64_t n, auto at) {
                const Vec<T> centred = load_partial(p.x + j, n) - at(lines.high) - at(lines.low);
                const Vec<T> through_x = centred * at(lines.slope) + at(lines.shift);
                store_partial(p.grad_x + j, load_partial(p.grad_y + j, n) * at(lines.scale) + through_x, n);
            });
        else
            for_each_vector<T>(cuts, task, [&](int64_t j, int64_t n, auto at) {
                store_partial(p.grad_x + j, load_partial(p.grad_y + j, n) * at(lines.scale), n);
            });
    };
    run_parallel(threads_for(cost_of_normalizing * count * static_cast<double>(channels)),
                 [&](const Worker& worker) { go_through(cuts, worker, summed, add_up, finish, write); });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
