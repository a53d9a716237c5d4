// Cross-correlation of images: what convolution, its gradient by the input and transposed convolution have in common.
//
//   target[n, q, j] = f(b[j] + Σ_taps Σ_d source[n, step·q + tap, d] · w[tap, d, j])      zeros lie outside of the source
//
// for all positions q of a grid. Strides never insert zeros: where the target is strided, each phase is a grid of its own.
#pragma once

#include "../packed_weights.h"
#include "elementwise.h"
#include "pack.h"

namespace tbptt {
namespace TBPTT_ISA {

struct Tap {
    int64_t dy, dx;   // where in the source, from the position's own
    int64_t element;  // of the kernel
};

struct ImageShape {
    int64_t height, width, channels;
    bool channels_last;

    int64_t plane() const { return height * width; }
    int64_t channel_stride() const { return channels_last ? 1 : plane(); }
    // Where channel 0 of a pixel lies.
    int64_t at(int64_t n, int64_t y, int64_t x) const {
        const int64_t pixel = y * width + x;
        return channels_last ? (n * plane() + pixel) * channels : n * plane() * channels + pixel;
    }
};

struct Grid {
    int64_t batch, height, width;
    int64_t origin_y = 0, origin_x = 0, stride_y = 1, stride_x = 1;  // of its positions in the target

    int64_t positions() const { return batch * height * width; }
};

struct Position {
    int64_t n, y, x;
};

TBPTT_INLINE Position position_of(const Grid& grid, int64_t q) {
    const int64_t row = q / grid.width;
    return {row / grid.height, row % grid.height, q % grid.width};
}

TBPTT_INLINE Position after(const Grid& grid, Position p) {
    if (++p.x < grid.width) return p;
    p.x = 0;
    if (++p.y < grid.height) return p;
    p.y = 0;
    ++p.n;
    return p;
}

template <class T>
struct Correlation {
    const T* source;
    ImageShape source_shape;
    int64_t step_y, step_x;
    const Tap* taps;
    int64_t tap_count;
    int64_t groups, depth, columns;  // of the source's and the target's channels, per group
    const T* w;
    int64_t w_group, w_depth, w_column;  // strides; elements of the kernel are contiguous
    const T* bias;                       // [groups·columns] or null
    Activation activation;
    T* target;
    ImageShape target_shape;
    Grid grid;
    Algorithm algorithm;
    PackedWeights* packed;  // forms of w, or null

    double flops() const {
        return 2.0 * static_cast<double>(grid.positions() * tap_count) * static_cast<double>(groups * depth * columns);
    }
    bool inside(int64_t y, int64_t x) const {
        return y >= 0 && y < source_shape.height && x >= 0 && x < source_shape.width;
    }
    int64_t target_at(const Position& p) const {
        return target_shape.at(p.n, grid.origin_y + p.y * grid.stride_y, grid.origin_x + p.x * grid.stride_x);
    }
    Vec<T> finish(Vec<T> sum, Vec<T> b) const { return activate(activation, Wide<T, 1>{{sum + b}}).part[0]; }
};

template <class T>
bool taps_in_order(const Correlation<T>& c) {
    for (int64_t t = 0; t < c.tap_count; ++t)
        if (c.taps[t].element != t) return false;
    return true;
}

// Whether the target is too large to be found in a cache by who reads it next, and its pixels begin at whole vectors.
template <class T>
bool beyond_cache(const Correlation<T>& c) {
    constexpr int64_t bytes = 16 << 20;
    const int64_t size = c.grid.positions() * c.groups * c.columns * static_cast<int64_t>(sizeof(T));
    return size > bytes && c.groups * c.columns % lanes<T> == 0 &&
           reinterpret_cast<std::uintptr_t>(c.target) % TBPTT_VECTOR_BYTES == 0;
}

// The packed weights of one kernel: for this call alone, or kept for the next one too.
template <class T>
class KernelWeights {
   public:
    KernelWeights(const Correlation<T>& c, int64_t kernel, int64_t vectors, int64_t count)
        : packed_(c.packed), form_{kernel, lanes<T>, vectors, c.groups, c.depth, c.columns, hash(c)} {
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        if (packed_) claimed_ = claim(*packed_, form_, bytes);
        if (!claimed_.data) own_ = allocate(bytes);
    }
    ~KernelWeights() {
        if (claimed_.data && !claimed_.filled) give_back(*packed_, form_, complete_);
        release(own_);
    }
    KernelWeights(const KernelWeights&) = delete;
    KernelWeights& operator=(const KernelWeights&) = delete;

    bool filled() const { return claimed_.filled; }
    void complete() { complete_ = true; }
    operator T*() const { return static_cast<T*>(own_ ? own_ : claimed_.data); }

   private:
    // FNV-1a
    static std::uint64_t hash(const Correlation<T>& c) {
        std::uint64_t h = 14695981039346656037u;
        const auto add = [&](int64_t value) { h = (h ^ static_cast<std::uint64_t>(value)) * 1099511628211u; };
        for (int64_t t = 0; t < c.tap_count; ++t) add(c.taps[t].element);
        add(c.w_group), add(c.w_depth), add(c.w_column);
        return h;
    }

    PackedWeights* packed_;
    WeightForm form_;
    ClaimedForm claimed_{nullptr, false};
    void* own_ = nullptr;
    bool complete_ = false;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
