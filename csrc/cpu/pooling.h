// Pooling over windows of planes, for channels before the plane and behind it: what its kinds share.
//
// With channels last, channels are the vector. With channels first, neighbouring windows of a row are; rows that need
// padding, or are shorter than a vector, are copied to where padding surrounds them. A window is walked row by row, and so
// are the windows of a value: the layout does not change a bit.
#pragma once

#include <utility>

#include "../api.h"
#include "reduce.h"
#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

constexpr int64_t channel_block = 64;   // channels that one worker sums up side by side
constexpr double cost_of_a_pooled = 3;  // one value of a window, in units of `threads_for`

TBPTT_INLINE int64_t length(Range range) { return range.end - range.begin; }

TBPTT_INLINE int64_t start_of(const PoolAxis& axis, int64_t window) { return window * axis.stride - axis.before; }

// The part of window `index` that lies on the plane; never empty.
TBPTT_INLINE Range window(const PoolAxis& axis, int64_t index) {
    const int64_t first = start_of(axis, index);
    return {larger<int64_t>(first, 0), smaller(first + axis.kernel, axis.size)};
}

// Its length on the plane, or on the plane and its padding.
TBPTT_INLINE int64_t counted(const PoolAxis& axis, int64_t index, bool count_padding) {
    if (!count_padding) return length(window(axis, index));
    return smaller(axis.kernel, axis.size + axis.behind - start_of(axis, index));
}

// The windows that contain `place`.
TBPTT_INLINE Range windows_with(const PoolAxis& axis, int64_t place) {
    const int64_t padded = place + axis.before, behind = padded - axis.kernel + axis.stride;
    return {behind > 0 ? behind / axis.stride : 0, smaller(padded / axis.stride + 1, axis.out)};
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

// The rows of a plane that windows are looking at, from where the first window of a row begins: the plane itself where all
// windows of a row lie on it, and there is a vector of them; else copies, in a ring, between values that change nothing.
template <class T>
class PlaneRows {
   public:
    static TBPTT_INLINE bool direct(const PoolAxis& x) {
        return x.before == 0 && start_of(x, x.out - 1) + x.kernel <= x.size && x.out >= lanes<T>;
    }
    static TBPTT_INLINE int64_t pitch(const PoolAxis& x) {
        return direct(x) ? 0 : ceil_div(x.out, lanes<T>) * lanes<T> * x.stride + x.kernel;
    }
    static TBPTT_INLINE int64_t slots(const PoolAxis& y) { return smaller(y.kernel, y.size); }

    PlaneRows(const PoolShape& s, T* memory, T outside)
        : x_(s.x), memory_(memory), pitch_(pitch(s.x)), slots_(slots(s.y)) {
        fill(memory, pitch_ * slots_, outside);
    }

    // Goes to a row of windows; those of a plane come in their order.
    TBPTT_INLINE void show(const T* plane, Range rows) {
        if (plane != plane_) copied_ = 0;
        plane_ = plane;
        for (int64_t row = larger(copied_, rows.begin); pitch_ > 0 && row < rows.end; ++row)
            __builtin_memcpy(memory_ + row % slots_ * pitch_ + x_.before, plane + row * x_.size,
                             static_cast<std::size_t>(x_.size) * sizeof(T));
        copied_ = rows.end;
    }

    TBPTT_INLINE const T* operator[](int64_t row) const {
        return pitch_ > 0 ? memory_ + row % slots_ * pitch_ : plane_ + row * x_.size;
    }

   private:
    const PoolAxis& x_;
    T* const memory_;
    const int64_t pitch_, slots_;
    const T* plane_ = nullptr;
    int64_t copied_ = 0;
};

// What makes something of windows (max_pool.h, avg_pool.h): `outside` changes nothing; start(place) is the state of a window
// that begins there, take(value, place) adds to it, and finish(state, count, offset, number) stores the first `number`
// results of a vector of windows of `count` values.
template <class T, class Pool>
class PoolForward {
   public:
    PoolForward(const PoolShape& shape, bool count_padding, const T* x, const Pool& pool)
        : s_(shape),
          count_padding_(count_padding),
          x_(x),
          pool_(pool),
          threads_(threads_for(cost_of_a_pooled * static_cast<double>(s_.batch * s_.channels) *
                               static_cast<double>(s_.y.out * s_.x.out) *
                               static_cast<double>(s_.y.kernel * s_.x.kernel))),
          strip_(s_.channels_last ? 0 : PlaneRows<T>::pitch(s_.x) * PlaneRows<T>::slots(s_.y)),
          memory_(strip_ * threads_),
          counts_(s_.x.out + lanes<T>) {
        for (int64_t i = 0; i < s_.x.out; ++i) counts_[i] = static_cast<T>(counted(s_.x, i, count_padding));
        fill(counts_ + s_.x.out, lanes<T>, T{1});
    }

    // Rows of windows are shared out.
    void run() {
        const int64_t planes = s_.channels_last ? s_.batch : s_.batch * s_.channels;
        const int64_t plane = s_.y.size * s_.x.size * (s_.channels_last ? s_.channels : 1);
        run_parallel(threads_, [&](const Worker& worker) {
            const Range mine = split(planes * s_.y.out, worker);
            if (s_.channels_last) {
                for (int64_t i = mine.begin; i < mine.end; ++i) row_of_channels(x_ + i / s_.y.out * plane, i);
                return;
            }
            PlaneRows<T> rows(s_, memory_ + strip_ * worker.index, Pool::outside());
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                rows.show(x_ + i / s_.y.out * plane, window(s_.y, i % s_.y.out));
                row_of_windows(rows, i);
            }
        });
    }

   private:
    TBPTT_INLINE T rows_counted(int64_t index) const {
        return static_cast<T>(counted(s_.y, index % s_.y.out, count_padding_));
    }

    TBPTT_INLINE void row_of_windows(const PlaneRows<T>& rows, int64_t index) const {
        constexpr int64_t L = lanes<T>;
        const PoolAxis& x = s_.x;
        const Range down = window(s_.y, index % s_.y.out);
        const VecBits<T> steps = places_apart<T>(x.stride), none{};
        const T count = rows_counted(index);
        for (int64_t i = 0; i < x.out; i += L) {
            // The last vector may overlap the one before; where rows are copied, it may hold more than there is.
            const int64_t first = x.out < L ? 0 : smaller(i, x.out - L), begin = start_of(x, first);
            const VecBits<T> columns = steps + all_at<T>(begin);
            auto state =
                pool_.template start<Vec<T>>((columns > none ? columns : none) + all_at<T>(down.begin * x.size));
            for (int64_t row = down.begin; row < down.end; ++row) {
                const T* const values = rows[row] + first * x.stride;
                for (int64_t k = 0; k < x.kernel; ++k)
                    state.take(load_strided(values + k, x.stride), columns + all_at<T>(row * x.size + k));
            }
            pool_.finish(state, load(counts_ + first) * count, index * x.out + first, x.out - first);
        }
    }

    // The same for the windows of all channels.
    TBPTT_INLINE void row_of_channels(const T* image, int64_t index) const {
        const int64_t channels = s_.channels, width = s_.x.size;
        const Range down = window(s_.y, index % s_.y.out);
        const T count = rows_counted(index);
        for (int64_t i = 0; i < s_.x.out; ++i) {
            const Range across = window(s_.x, i);
            for (int64_t c = 0; c < channels; c += lanes<T>) {
                auto state = pool_.template start<Vec<T>>(all_at<T>(down.begin * width + across.begin));
                for (int64_t row = down.begin; row < down.end; ++row)
                    for (int64_t p = row * width + across.begin; p < row * width + across.end; ++p)
                        state.take(load_partial(image + p * channels + c, channels - c), all_at<T>(p));
                pool_.finish(state, broadcast(counts_[i] * count), (index * s_.x.out + i) * channels + c, channels - c);
            }
        }
    }

    const PoolShape& s_;
    const bool count_padding_;
    const T* const x_;
    const Pool pool_;
    const int threads_;
    const int64_t strip_;  // elements of a worker's copies
    Buffer<T> memory_, counts_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
