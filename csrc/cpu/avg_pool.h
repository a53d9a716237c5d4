// The means of windows, and of whole planes.
#pragma once

#include "pooling.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
struct AvgPool {
    T* y;

    static TBPTT_INLINE T outside() { return 0; }

    template <class V>
    struct State {
        V value;
        template <class I>
        TBPTT_INLINE void take(V next, I) {
            value += next;
        }
    };

    template <class V, class I>
    TBPTT_INLINE State<V> start(I) const {
        return {V{}};
    }

    template <class V>
    TBPTT_INLINE void finish(const State<V>& state, V count, int64_t offset, int64_t number) const {
        store_partial(y + offset, state.value / count, number);
    }
};

template <class T>
void avg_pool_forward(const AvgPoolForward<T>& p) {
    PoolForward<T, AvgPool<T>>(p.shape, p.count_padding, p.x, {p.y}).run();
}

template <class T>
TBPTT_INLINE T divisor_of(const AvgPoolBackward<T>& p, int64_t row, int64_t column) {
    return static_cast<T>(counted(p.shape.y, row, p.count_padding)) *
           static_cast<T>(counted(p.shape.x, column, p.count_padding));
}

// The gradients of one row of a plane, from all rows of windows that contain it.
template <class T>
TBPTT_INLINE void avg_pool_row_backward(const AvgPoolBackward<T>& p, const T* grad_y, Range rows, T* grad_x) {
    const PoolAxis& x = p.shape.x;
    __builtin_memset(grad_x, 0, static_cast<std::size_t>(x.size) * sizeof(T));
    for (int64_t row = rows.begin; row < rows.end; ++row)
        for (int64_t column = 0; column < x.out; ++column) {
            const T share = grad_y[row * x.out + column] / divisor_of(p, row, column);
            const Range places = window(x, column);
            for (int64_t i = places.begin; i < places.end; ++i) grad_x[i] += share;
        }
}

template <class T>
TBPTT_INLINE void avg_pool_channels_backward(const AvgPoolBackward<T>& p, const T* grad_y, Range rows, T* grad_x) {
    const int64_t channels = p.shape.channels;
    for (int64_t i = 0; i < p.shape.x.size; ++i) {
        const Range columns = windows_with(p.shape.x, i);
        for (int64_t c = 0; c < channels; c += lanes<T>) {
            Vec<T> sum{};
            for (int64_t row = rows.begin; row < rows.end; ++row)
                for (int64_t column = columns.begin; column < columns.end; ++column)
                    sum += load_partial(grad_y + (row * p.shape.x.out + column) * channels + c, channels - c) /
                           divisor_of(p, row, column);
            store_partial(grad_x + i * channels + c, sum, channels - c);
        }
    }
}

// Rows of planes are shared out, and every value fetches what its windows have for it.
template <class T>
void avg_pool_backward(const AvgPoolBackward<T>& p) {
    const PoolShape& s = p.shape;
    const int64_t planes = s.channels_last ? s.batch : s.batch * s.channels, depth = s.channels_last ? s.channels : 1;
    const double values = static_cast<double>(s.batch * s.channels) * static_cast<double>(s.y.size * s.x.size);
    const double windows = static_cast<double>(s.batch * s.channels) * static_cast<double>(s.y.out * s.x.out);
    const double terms = windows * static_cast<double>(s.y.kernel * s.x.kernel) + values;
    run_parallel(threads_for(cost_of_a_pooled * terms), [&](const Worker& worker) {
        const Range mine = split(planes * s.y.size, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const T* grad_y = p.grad_y + i / s.y.size * s.y.out * s.x.out * depth;
            const Range rows = windows_with(s.y, i % s.y.size);
            T* grad_x = p.grad_x + i * s.x.size * depth;
            if (s.channels_last)
                avg_pool_channels_backward(p, grad_y, rows, grad_x);
            else
                avg_pool_row_backward(p, grad_y, rows, grad_x);
        }
    });
}

template <class T>
TBPTT_INLINE double sum_in_double(const T* values, int64_t count) {
    Vec<double> sums{};
    for (int64_t i = 0; i < count; i += lanes<double>) sums += load_double(values + i, count - i);
    return sum_lanes<double>(sums);
}

// Sums over whole planes are long: they are in double.
template <class T>
void global_avg_pool(const GlobalAvgPool<T>& p) {
    const int64_t blocks = p.channels_last ? ceil_div(p.channels, channel_block) : p.channels;
    const double values = static_cast<double>(p.batch * p.channels) * static_cast<double>(p.plane);
    run_parallel(threads_for(2.0 * values), [&](const Worker& worker) {
        const Range mine = split(p.batch * blocks, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            if (!p.channels_last) {
                p.y[i] = static_cast<T>(sum_in_double(p.x + i * p.plane, p.plane) / static_cast<double>(p.plane));
                continue;
            }
            const int64_t first = i % blocks * channel_block, image = i / blocks;
            const int64_t count = smaller(channel_block, p.channels - first);
            const T* from = p.x + image * p.plane * p.channels + first;
            double sums[channel_block] = {};
            for (int64_t k = 0; k < p.plane; ++k)
                for (int64_t c = 0; c < count; ++c) sums[c] += static_cast<double>(from[k * p.channels + c]);
            for (int64_t c = 0; c < count; ++c)
                p.y[image * p.channels + first + c] = static_cast<T>(sums[c] / static_cast<double>(p.plane));
        }
    });
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
