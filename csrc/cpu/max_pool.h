// The largest values of windows, and where they are.
#pragma once

#include "pooling.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr double cost_of_a_scattered = 6;  // one gradient that is added where its index points

template <class T>
struct MaxPool {
    T* y;
    int64_t* indices;

    static TBPTT_INLINE T outside() { return -static_cast<T>(__builtin_inf()); }

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
        return {broadcast(outside()), first};
    }

    template <class V, class I>
    TBPTT_INLINE void finish(const State<V, I>& state, V, int64_t offset, int64_t number) const {
        store_partial(y + offset, state.value, number);
        Place<T> place[lanes<T>];
        __builtin_memcpy(place, &state.place, sizeof(state.place));
        if (number >= lanes<T>)
            for (int i = 0; i < lanes<T>; ++i) indices[offset + i] = place[i];  // of constant length: vectors widen it
        else
            for (int64_t i = 0; i < number; ++i) indices[offset + i] = place[i];
    }
};

template <class T>
void max_pool_forward(const MaxPoolForward<T>& p) {
    PoolForward<T, MaxPool<T>>(p.shape, false, p.x, {p.y, p.indices}).run();
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

}  // namespace TBPTT_ISA
}  // namespace tbptt
