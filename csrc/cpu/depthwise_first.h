// Depthwise convolution of images in planes, one a channel: vectors of pixels along the rows.
#pragma once

#include "depthwise_planes.h"
#include "elementwise.h"

namespace tbptt {
namespace TBPTT_ISA {

// target = f(bias + Σ w·source), plane by plane
template <class T>
class SumFirst {
   public:
    SumFirst(const Passage& p, const T* source, const T* w, const T* bias, Activation activation, T* target,
             int threads)
        : p_(p),
          planes_(p, source, threads),
          bias_(bias),
          activation_(activation),
          target_(target),
          size_(p.channels.depth * p.elements()),
          w_(p.channels.target() * size_) {
        for (int64_t c = 0; c < p.channels.target(); ++c) pack_weights(p, w, c, 1, w_ + c * size_);
    }

    int64_t parts() const { return planes_.parts(); }
    int64_t units() const { return p_.channels.groups; }

    void make(const Worker& worker, int64_t n, int64_t part, Block block) const {
        const Range groups = split(p_.channels.groups, block.index, block.count);
        for (int64_t group = groups.begin; group < groups.end; ++group) {
            planes_.fill(worker, n, group, part);
            for (int64_t column = 0; column < p_.channels.columns; ++column)
                make_plane(worker, n, part, group * p_.channels.columns + column);
        }
    }

   private:
    void make_plane(const Worker& worker, int64_t n, int64_t part, int64_t channel) const {
        const int64_t width = p_.x.target;
        T* plane = target_ + (n * p_.channels.target() + channel) * p_.y.target * width;
        const Vec<T> start = broadcast(bias_ ? bias_[channel] : T(0));
        const T* w = w_ + channel * size_;
        const auto weight = [w](int64_t k) { return broadcast(w[k]); };
        planes_.walk(
            worker, part, plane,
            [&](auto tiling, auto fit, const Patch<const T>& window, const Patch<T>& target, int64_t count) {
                using Tiles = decltype(tiling);
                constexpr int rows = Tiles::rows;
                constexpr Fit f = decltype(fit)::value;
                using Meet = typename Tiles::Meet;
                if (count >= lanes<T>)
                    sum_tile<Meet, rows, 1, f, true>(window, p_.channels.depth, planes_.plane(), target, 0, count,
                                                     start, weight);
                else
                    sum_tile<Meet, rows, 1, f, false>(window, p_.channels.depth, planes_.plane(), target, 0, count,
                                                      start, weight);
            },
            [&](auto fit, const Patch<const T>& source, Meetings meetings, const Patch<T>& target, int64_t count) {
                constexpr Fit f = decltype(fit)::value;
                if (count >= lanes<T>)
                    sum_column<f, true>(source, meetings, target, 0, count, start, weight);
                else
                    sum_column<f, false>(source, meetings, target, 0, count, start, weight);
            });
        if (activation_ == Activation::none) return;
        const Range rows = p_.y.targets(planes_.down(part)), columns = p_.x.targets(planes_.across(part));
        const bool together = columns.end - columns.begin == width;
        const int64_t run = together ? (rows.end - rows.begin) * width : columns.end - columns.begin;
        for (int64_t y = rows.begin; y < (together ? rows.begin + 1 : rows.end); ++y) {
            T* to = plane + y * width + columns.begin;
            map_part<T>(run, to, to, [&](const auto& v) { return activate(activation_, v); });
        }
    }

    const Passage& p_;
    const Planes<T> planes_;
    const T* bias_;
    const Activation activation_;
    T* target_;
    const int64_t size_;
    Buffer<T> w_;
};

// The gradients by w and bias, by the passage to the small image.
template <class T>
class GradientFirst {
   public:
    // g: the gradient by the small image; grad_w and grad_b may be null
    GradientFirst(const Passage& p, const T* big, const T* g, T* grad_w, T* grad_b, int threads)
        : p_(p),
          planes_(p, big, threads),
          g_(g),
          grad_w_(grad_w),
          grad_b_(grad_b),
          size_(p.channels.depth * p.elements() + 1),
          cut_(p, planes_.parts(), p.channels.target() * size_ * static_cast<int64_t>(sizeof(T)), sizeof(T)),
          of_group_(p.channels.columns * size_ * lanes<T>),
          sums_of_worker_(most_groups() * of_group_),
          sums_(threads * sums_of_worker_),
          partial_(cut_.chunks * p.channels.target() * size_) {}

    int64_t parts() const { return planes_.parts(); }
    int64_t units() const { return p_.channels.groups; }
    // Blocks are small enough for their sums to stay in cache.
    int64_t blocks(int64_t wanted) const { return larger(wanted, ceil_div(p_.channels.groups, most_groups())); }
    const Cut& cut() const { return cut_; }

    void begin(const Worker& worker, int64_t, Block) const { fill<T>(sums(worker), sums_of_worker_, 0); }

    void add(const Worker& worker, int64_t, int64_t n, int64_t part, Block block) const {
        const Range groups = split(p_.channels.groups, block.index, block.count);
        for (int64_t group = groups.begin; group < groups.end; ++group) {
            planes_.fill(worker, n, group, part);
            for (int64_t column = 0; column < p_.channels.columns; ++column)
                add_plane(worker, n, part, group * p_.channels.columns + column,
                          sums(worker) + (group - groups.begin) * of_group_ + column * size_ * lanes<T>);
        }
    }

    // Adds up the lanes.
    void end(const Worker& worker, int64_t chunk, Block block) const {
        const Range groups = split(p_.channels.groups, block.index, block.count);
        T* to = partial_ + (chunk * p_.channels.groups + groups.begin) * p_.channels.columns * size_;
        const T* from = sums(worker);
        for (int64_t i = 0; i < (groups.end - groups.begin) * p_.channels.columns * size_; ++i, from += lanes<T>) {
            T sum = 0;
            for (int lane = 0; lane < lanes<T>; ++lane) sum += from[lane];
            to[i] = sum;
        }
    }

    // Adds the chunks in their order; each worker writes its share.
    void write(const Worker& worker) const {
        const int64_t channels = p_.channels.target();
        const Range mine = split(channels, worker);
        for (int64_t c = mine.begin; c < mine.end; ++c)
            for (int64_t k = 0; k < size_; ++k) {
                T sum = 0;
                for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk)
                    sum += partial_[(chunk * channels + c) * size_ + k];
                if (k == size_ - 1) {
                    if (grad_b_) grad_b_[c] = sum;
                } else if (grad_w_) {
                    grad_w_[c * (size_ - 1) + k] = sum;
                }
            }
    }

   private:
    int64_t most_groups() const {
        constexpr int64_t bytes = 16 << 10;
        return larger<int64_t>(1, bytes / (of_group_ * static_cast<int64_t>(sizeof(T))));
    }
    T* sums(const Worker& worker) const { return sums_ + worker.index * sums_of_worker_; }

    void add_plane(const Worker& worker, int64_t n, int64_t part, int64_t channel, T* sums) const {
        const T* plane = g_ + (n * p_.channels.target() + channel) * p_.y.target * p_.x.target;
        T* bias = sums + (size_ - 1) * lanes<T>;
        planes_.walk(
            worker, part, plane,
            [&](auto tiling, auto fit, Patch<const T> window, const Patch<const T>& g, int64_t count) {
                using Tiles = decltype(tiling);
                constexpr int rows = Tiles::rows;
                constexpr Fit f = decltype(fit)::value;
                using Meet = typename Tiles::Meet;
                for (int64_t d = 0; d < p_.channels.depth; ++d, window.first += planes_.plane()) {
                    T* to = sums + d * p_.elements() * lanes<T>;
                    if (count >= lanes<T>)
                        gradient_tile<Meet, rows, 1, f, true>(window, g, 0, count, to, d == 0 ? bias : nullptr);
                    else
                        gradient_tile<Meet, rows, 1, f, false>(window, g, 0, count, to, d == 0 ? bias : nullptr);
                }
            },
            [&](auto fit, const Patch<const T>& source, Meetings meetings, const Patch<const T>& g, int64_t count) {
                constexpr Fit f = decltype(fit)::value;
                if (count >= lanes<T>)
                    gradient_column<f, true>(source, meetings, g, 0, count, sums, bias);
                else
                    gradient_column<f, false>(source, meetings, g, 0, count, sums, bias);
            });
    }

    const Passage& p_;
    const Planes<T> planes_;
    const T* g_;
    T *grad_w_, *grad_b_;
    const int64_t size_;
    const Cut cut_;
    const int64_t of_group_, sums_of_worker_;
    Buffer<T> sums_, partial_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
