// Pooling over windows of planes, forward and backward, for channels before the plane and behind it.
//
// With channels last, channels are the vector. With channels first, neighbouring outputs of a row are; those whose windows
// reach into the padding, and rows shorter than a vector, go one by one. A window is walked row by row, and so are the
// windows of a value: the layout does not change a bit.
#pragma once

#include <utility>

#include "../api.h"
#include "reduce.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t channel_block = 64;      // channels that one worker sums up side by side
constexpr double cost_of_a_pooled = 3;     // one value of a window, in units of `threads_for`
constexpr double cost_of_a_scattered = 6;  // one gradient that is added where its index points

TBPTT_INLINE int64_t length(Range range) { return range.end - range.begin; }

// The part of window `index` that lies on the plane; never empty.
TBPTT_INLINE Range window(const PoolAxis& axis, int64_t index) {
    const int64_t first = index * axis.stride - axis.padding;
    return {larger<int64_t>(first, 0), smaller(first + axis.kernel, axis.size)};
}

// The windows that contain `place`.
TBPTT_INLINE Range windows_with(const PoolAxis& axis, int64_t place) {
    const int64_t padded = place + axis.padding, behind = padded - axis.kernel + axis.stride;
    return {behind > 0 ? behind / axis.stride : 0, smaller(padded / axis.stride + 1, axis.out)};
}

// The windows that lie on the plane as a whole.
TBPTT_INLINE Range inner_windows(const PoolAxis& axis) {
    const int64_t first = ceil_div(axis.padding, axis.stride), room = axis.size + axis.padding - axis.kernel;
    return {first, larger(first, room < 0 ? 0 : smaller(room / axis.stride + 1, axis.out))};
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TBPTT_HAS_SHUFFLE
#endif
#endif

#if defined(TBPTT_HAS_SHUFFLE)
template <class V, int... Lane>
TBPTT_INLINE V every_second(V low, V high, std::integer_sequence<int, Lane...>) {
    constexpr int L = sizeof...(Lane);
    return __builtin_shufflevector(low, high, (Lane < L / 2 ? 2 * Lane : 2 * Lane + 1)...);
}
#endif

// from[0], from[stride], … and nothing behind the last of them.
template <class T>
TBPTT_INLINE Vec<T> load_strided(const T* from, int64_t stride) {
    constexpr int L = lanes<T>;
    if (stride == 1) return load(from);
#if defined(TBPTT_HAS_SHUFFLE)
    // The upper half is loaded one value early, so as not to read behind the end.
    if (stride == 2) return every_second(load(from), load(from + L - 1), std::make_integer_sequence<int, L>());
#endif
    Vec<T> value{};
    for (int i = 0; i < L; ++i) value[i] = from[i * stride];
    return value;
}

template <class T>
using Place = std::remove_reference_t<decltype(VecBits<T>{}[0])>;

template <class T>
TBPTT_INLINE VecBits<T> all_at(int64_t place) {
    return VecBits<T>{} + static_cast<Place<T>>(place);
}

// 0, stride, 2·stride, …
template <class T>
TBPTT_INLINE VecBits<T> places_apart(int64_t stride) {
    VecBits<T> places{};
    for (int i = 0; i < lanes<T>; ++i) places[i] = static_cast<Place<T>>(i * stride);
    return places;
}

// One result or a vector of them, of which the first `count` are stored.
template <class T>
TBPTT_INLINE void put(T* to, T value, int64_t) {
    *to = value;
}

template <class T>
TBPTT_INLINE void put(T* to, Vec<T> value, int64_t count) {
    store_partial(to, value, count);
}

template <class T>
TBPTT_INLINE void put_places(int64_t* to, VecBits<T> places, int64_t count) {
    Place<T> place[lanes<T>];
    __builtin_memcpy(place, &places, sizeof(places));
    if (count >= lanes<T>)
        for (int i = 0; i < lanes<T>; ++i) to[i] = place[i];  // of constant length: vectors widen it
    else
        for (int64_t i = 0; i < count; ++i) to[i] = place[i];
}

template <class T>
TBPTT_INLINE void put_places(int64_t* to, int64_t place, int64_t) {
    *to = place;
}

// What a pool makes of a window: V is T or Vec<T>, I the integers beside it.
template <class T>
struct MaxPool {
    T* y;
    int64_t* indices;

    // Of equal values the first stays. A NaN replaces everything, a NaN before it too: as in PyTorch.
    template <class V, class I>
    struct State {
        V value;
        I place;
        TBPTT_INLINE void take(V next, I where) {
            const auto wins = (next > value) | (next != next);
            value = wins ? next : value;
            place = wins ? where : place;
        }
    };

    template <class V, class I>
    TBPTT_INLINE State<V, I> start(I first) const {
        return {V{} - static_cast<T>(__builtin_inf()), first};
    }

    template <class V, class I>
    TBPTT_INLINE void finish(const State<V, I>& state, Range, Range, int64_t offset, int64_t count) const {
        put<T>(y + offset, state.value, count);
        put_places<T>(indices + offset, state.place, count);
    }
};

TBPTT_INLINE int64_t average_over(const PoolShape& shape, bool count_padding, Range rows, Range columns) {
    return count_padding ? shape.y.kernel * shape.x.kernel : length(rows) * length(columns);
}

template <class T>
struct AvgPool {
    const AvgPoolForward<T>& p;

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
    TBPTT_INLINE void finish(const State<V>& state, Range rows, Range columns, int64_t offset, int64_t count) const {
        put<T>(p.y + offset, state.value / static_cast<T>(average_over(p.shape, p.count_padding, rows, columns)),
               count);
    }
};

// Walks one window: read(place) gives the values at a place of the plane, where(place) their places.
template <class V, class Pool, class Read, class Where>
TBPTT_INLINE void pool_window(const Pool& pool, Range rows, Range columns, int64_t width, Read read, Where where,
                              int64_t offset, int64_t count) {
    auto state = pool.template start<V>(where(rows.begin * width + columns.begin));
    for (int64_t row = rows.begin; row < rows.end; ++row)
        for (int64_t place = row * width + columns.begin; place < row * width + columns.end; ++place)
            state.take(read(place), where(place));
    pool.finish(state, rows, columns, offset, count);
}

// One row of windows of one plane; `offset` is that of its first result.
template <class T, class Pool>
TBPTT_INLINE void pool_row(const Pool& pool, const PoolAxis& x, const T* plane, Range rows, int64_t offset) {
    constexpr int64_t L = lanes<T>;
    const auto one_by_one = [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i)
            pool_window<T>(
                pool, rows, window(x, i), x.size, [&](int64_t place) { return plane[place]; },
                [](int64_t place) { return place; }, offset + i, 1);
    };
    const Range inner = inner_windows(x);
    if (length(inner) < L) return one_by_one(0, x.out);
    one_by_one(0, inner.begin);
    const VecBits<T> steps = places_apart<T>(x.stride);
    for (int64_t i = inner.begin; i < inner.end; i += L) {
        const int64_t from = smaller(i, inner.end - L);  // the last vector may overlap the one before
        pool_window<Vec<T>>(
            pool, rows, window(x, from), x.size, [&](int64_t place) { return load_strided(plane + place, x.stride); },
            [&](int64_t place) { return steps + all_at<T>(place); }, offset + from, L);
    }
    one_by_one(inner.end, x.out);
}

// The same for the windows of all channels.
template <class T, class Pool>
TBPTT_INLINE void pool_row_of_channels(const Pool& pool, const PoolShape& shape, const T* image, Range rows,
                                       int64_t offset) {
    const int64_t channels = shape.channels;
    for (int64_t i = 0; i < shape.x.out; ++i)
        for (int64_t c = 0; c < channels; c += lanes<T>)
            pool_window<Vec<T>>(
                pool, rows, window(shape.x, i), shape.x.size,
                [&](int64_t place) { return load_partial(image + place * channels + c, channels - c); },
                [](int64_t place) { return all_at<T>(place); }, offset + i * channels + c, channels - c);
}

TBPTT_INLINE int threads_for_windows(const PoolShape& s, double more = 0) {
    const double results = static_cast<double>(s.batch * s.channels) * static_cast<double>(s.y.out * s.x.out);
    return threads_for(cost_of_a_pooled * (results * static_cast<double>(s.y.kernel * s.x.kernel) + more));
}

// Rows of windows are shared out.
template <class T, class Pool>
TBPTT_INLINE void pool_forward(const PoolShape& s, const T* x, const Pool& pool) {
    const int64_t planes = s.channels_last ? s.batch : s.batch * s.channels, depth = s.channels_last ? s.channels : 1;
    run_parallel(threads_for_windows(s), [&](const Worker& worker) {
        const Range mine = split(planes * s.y.out, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const T* plane = x + i / s.y.out * s.y.size * s.x.size * depth;
            const Range rows = window(s.y, i % s.y.out);
            const int64_t offset = i * s.x.out * depth;
            if (s.channels_last)
                pool_row_of_channels(pool, s, plane, rows, offset);
            else
                pool_row(pool, s.x, plane, rows, offset);
        }
    });
}

template <class T>
void max_pool_forward(const MaxPoolForward<T>& p) {
    pool_forward(p.shape, p.x, MaxPool<T>{p.y, p.indices});
}

template <class T>
void avg_pool_forward(const AvgPoolForward<T>& p) {
    pool_forward(p.shape, p.x, AvgPool<T>{p});
}

// Negative if an index is not in [0, plane); without a branch, so that vectors do it.
TBPTT_INLINE int64_t sign_outside(int64_t index, int64_t plane) {
    const auto i = static_cast<std::uint64_t>(index);  // any value, so that the difference may wrap
    return static_cast<int64_t>(i | (static_cast<std::uint64_t>(plane) - 1 - i));
}

// The channels first … first+count-1 of one image [plane, C]; false for an index outside. Places are zeroed a little ahead
// of the first gradient that they get, wherever the indices point, so that they are still in the cache by then.
template <class T>
TBPTT_INLINE bool scatter_channels(const MaxPoolBackward<T>& p, int64_t image, int64_t first, int64_t count) {
    const int64_t channels = p.channels, windows = p.windows, plane = p.plane, together = ceil_div(2048, count);
    const int64_t* const indices = p.indices + image * windows * channels + first;
    const T* const grad_y = p.grad_y + image * windows * channels + first;
    T* const grad_x = p.grad_x + image * plane * channels + first;
    int64_t zeroed = 0;
    const auto zero_until = [&](int64_t place) {
        if (count == channels && zeroed < place) fill(grad_x + zeroed * channels, (place - zeroed) * channels, T{0});
        for (; count != channels && zeroed < place; ++zeroed) fill(grad_x + zeroed * channels, count, T{0});
        zeroed = larger(zeroed, place);
    };
    for (int64_t k = 0; k < windows; k += together) {
        const int64_t end = smaller(k + together, windows);
        int64_t last = 0, outside = 0;
        for (int64_t i = k; i < end; ++i)
            for (int64_t c = 0; c < count; ++c) {
                const int64_t index = indices[i * channels + c];
                last = larger(last, index);
                outside |= sign_outside(index, plane);
            }
        if (outside < 0) return false;
        zero_until(last + 1);
        for (int64_t i = k; i < end; ++i)
            for (int64_t c = 0; c < count; ++c)
                grad_x[indices[i * channels + c] * channels + c] += grad_y[i * channels + c];
    }
    zero_until(plane);
    return true;
}

template <class T>
TBPTT_INLINE bool scatter_plane(const MaxPoolBackward<T>& p, int64_t index) {
    const int64_t* const indices = p.indices + index * p.windows;
    const T* const grad_y = p.grad_y + index * p.windows;
    T* const grad_x = p.grad_x + index * p.plane;
    int64_t outside = 0;
    for (int64_t i = 0; i < p.windows; ++i) outside |= sign_outside(indices[i], p.plane);
    if (outside < 0) return false;
    fill(grad_x, p.plane, T{0});
    for (int64_t i = 0; i < p.windows; ++i) grad_x[indices[i]] += grad_y[i];
    return true;
}

// Planes, or images and their blocks of channels, are shared out; each is added up in the order of its windows.
template <class T>
void max_pool_backward(const MaxPoolBackward<T>& p) {
    const double values = static_cast<double>(p.batch * p.channels) * static_cast<double>(p.windows + p.plane);
    *p.outside = false;
    run_parallel(threads_for(cost_of_a_scattered * values), [&](const Worker& worker) {
        const bool whole = p.batch % worker.count == 0 || p.batch >= 4 * worker.count;
        const int64_t block = larger<int64_t>(1, whole ? p.channels : channel_block);
        const int64_t blocks = p.channels_last ? ceil_div(p.channels, block) : p.channels;
        const Range mine = split(p.batch * blocks, worker);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t first = i % blocks * block;
            const bool inside = p.channels_last
                                    ? scatter_channels(p, i / blocks, first, smaller(block, p.channels - first))
                                    : scatter_plane(p, i);
            if (!inside) __atomic_store_n(p.outside, true, __ATOMIC_RELAXED);
        }
    });
}

template <class T>
TBPTT_INLINE T divisor_of(const AvgPoolBackward<T>& p, int64_t row, int64_t column) {
    return static_cast<T>(average_over(p.shape, p.count_padding, window(p.shape.y, row), window(p.shape.x, column)));
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
    run_parallel(threads_for_windows(s, values), [&](const Worker& worker) {
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
