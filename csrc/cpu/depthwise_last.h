// Depthwise convolution of images whose channels lie together: vectors of channels, pixel by pixel.
//
// A band of rows is walked from left to right with all channels at each step, so that both images are read and
// written nearly in the order of memory. What lies outside of an image is skipped.
#pragma once

#include "depthwise_bands.h"
#include "depthwise_spread.h"
#include "elementwise.h"

namespace tbptt {
namespace TBPTT_ISA {

// body(full, channel, count) for every vector of some channels
template <class T, class Body>
TBPTT_INLINE void each_vector(Range channels, Body body) {
    int64_t c = channels.begin;
    for (; c + lanes<T> <= channels.end; c += lanes<T>) body(std::true_type{}, c, static_cast<int64_t>(lanes<T>));
    if (c < channels.end) body(std::false_type{}, c, channels.end - c);
}

// A passage between images: its target in parts, a few bands high, and in blocks of channels where threads need them.
template <class T>
class ImagesLast {
   public:
    ImagesLast(const Passage& p, const T* source, int threads)
        : p_(p),
          source_(source),
          rows_(p.rows()),
          together_(p.channels.plain() ? 1 : 2),
          meetings_of_worker_(p.window == Window::none ? p.channels.depth * p.elements() : 0),
          spread_rows_(p.channels.plain() ? 0
                                          : p.y.source_step * (together_ * rows_ - 1) + p.y.farthest - p.y.nearest + 1),
          meetings_(threads * meetings_of_worker_),
          spread_(threads * spread_size()),
          spread_lanes_(spread_rows_ > 0 ? threads * p.channels.depth : 0) {}

    int64_t vectors() const { return ceil_div(p_.channels.target(), lanes<T>); }
    // Parts of an image.
    int64_t parts() const { return ceil_div(p_.y.steps.end - p_.y.steps.begin, together_ * rows_); }

    // Of the target, where they are cut into blocks.
    Range channels(Block block) const {
        const Range mine = split(vectors(), block.index, block.count);
        return {mine.begin * lanes<T>, smaller(mine.end * lanes<T>, p_.channels.target())};
    }
    Range steps(int64_t part) const {
        const int64_t first = p_.y.steps.begin + part * together_ * rows_;
        return {first, smaller(first + together_ * rows_, p_.y.steps.end)};
    }

    // tile(channels, source, tiling, fit, window, target) or column(channels, fit, source, meetings, target) for all that
    // is in one part
    template <class To, class Tile, class Column>
    void walk(const Worker& worker, int64_t n, int64_t part, Block block, To* target, Tile tile, Column column) const {
        const PixelView<To> to = view(target, n, p_.y.target, p_.x.target, p_.channels.target());
        const Range all = channels(block);
        if (spread_rows_ == 0) {
            const auto from = view(source_, n, p_.y.source, p_.x.source, p_.channels.source());
            return walk(worker, part, from, to, all, tile, column);
        }
        for (int64_t c = all.begin; c < all.end; c += lanes<T>)
            walk(worker, part, spread(worker, n, part, c), to, Range{c, smaller(c + lanes<T>, all.end)}, tile, column);
    }

   private:
    int64_t spread_size() const { return p_.channels.depth * spread_rows_ * p_.x.source * lanes<T>; }

    template <class To>
    static PixelView<To> view(To* image, int64_t n, int64_t height, int64_t width, int64_t channels) {
        return {image, n * height * width * channels, width * channels, channels};
    }

    // The part's source, its channels spread over the lanes of the target's channels from `channel` on.
    PixelView<const T> spread(const Worker& worker, int64_t n, int64_t part, int64_t channel) const {
        const Range rows = p_.y.sources(steps(part));
        const int64_t depth = p_.channels.depth, row = p_.x.source * lanes<T>, plane = spread_rows_ * row;
        T* to = spread_ + worker.index * spread_size();
        SpreadLanes<T>* channels = spread_lanes_ + worker.index * depth;
        for (int64_t d = 0; d < depth; ++d) channels[d] = SpreadLanes<T>(p_.channels, channel, d);
        const auto from = view(source_, n, p_.y.source, p_.x.source, p_.channels.source());
        for (int64_t y = rows.begin; y < rows.end; ++y)
            for (int64_t x = 0; x < p_.x.source; ++x) {
                const T* pixel = from.image + from.at(y, x);
                T* out = to + (y - rows.begin) * row + x * lanes<T>;
                for (int64_t d = 0; d < depth; ++d) store(out + d * plane, channels[d](pixel));
            }
        return {to, -rows.begin * row - channel, row, lanes<T>, depth, plane};
    }

    template <class To, class Tile, class Column>
    void walk(const Worker& worker, int64_t part, const PixelView<const T>& from, const PixelView<To>& to,
              Range channels, Tile tile, Column column) const {
        const Range all = steps(part);
        Meeting* list = meetings_ + worker.index * meetings_of_worker_;
        for (int64_t first = all.begin; first < all.end; first += rows_)
            if (p_.window == Window::none)
                walk_columns(p_, first, from, to, list,
                             [&](auto fit, const Patch<const T>& source, Meetings meetings, const Patch<To>& out) {
                                 column(channels, fit, source, meetings, out);
                             });
            else
                with_tiling(p_.window, [&](auto tiling) {
                    walk_windows<std::is_const<To>::value>(
                        tiling, p_, first, from, to,
                        [&](auto same, auto fit, const Patch<const T>& window, const Patch<To>& out) {
                            tile(channels, from, same, fit, window, out);
                        });
                });
    }

    const Passage& p_;
    const T* source_;
    const int64_t rows_, together_, meetings_of_worker_, spread_rows_;
    Buffer<Meeting> meetings_;
    Buffer<T> spread_;
    Buffer<SpreadLanes<T>> spread_lanes_;
};

// target = f(bias + Σ w·source)
template <class T>
class SumLast {
   public:
    SumLast(const Passage& p, const T* source, const T* w, const T* bias, Activation activation, T* target, int threads)
        : p_(p),
          images_(p, source, threads),
          bias_(bias),
          activation_(activation),
          target_(target),
          size_(p.channels.depth * p.elements()),
          w_(images_.vectors() * size_ * lanes<T>) {
        for (int64_t c = 0; c < p.channels.target(); ++c)
            pack_weights(p, w, c, lanes<T>, w_ + c / lanes<T> * lanes<T> * size_ + c % lanes<T>);
    }

    int64_t parts() const { return images_.parts(); }
    int64_t units() const { return images_.vectors(); }

    void make(const Worker& worker, int64_t n, int64_t part, Block block) const {
        images_.walk(
            worker, n, part, block, target_,
            [&](Range channels, const PixelView<const T>& source, auto tiling, auto fit, const Patch<const T>& window,
                const Patch<T>& target) {
                using Tiles = decltype(tiling);
                each_vector<T>(channels, [&](auto full, int64_t c, int64_t count) {
                    sum_tile<typename Tiles::Meet, Tiles::rows, Tiles::columns, decltype(fit)::value,
                             decltype(full)::value>(window, source.depth, source.plane, target, c, count,
                                                    start(c, count), weights(c));
                });
            },
            [&](Range channels, auto fit, const Patch<const T>& source, Meetings meetings, const Patch<T>& target) {
                each_vector<T>(channels, [&](auto full, int64_t c, int64_t count) {
                    sum_column<decltype(fit)::value, decltype(full)::value>(source, meetings, target, c, count,
                                                                            start(c, count), weights(c));
                });
            });
        if (activation_ != Activation::none)
            activate_part(n, p_.y.targets(images_.steps(part)), images_.channels(block));
    }

   private:
    Vec<T> start(int64_t c, int64_t count) const { return bias_ ? load_partial(bias_ + c, count) : Vec<T>{}; }
    auto weights(int64_t c) const {
        const T* w = w_ + c * size_;
        return [w](int64_t k) { return load(w + k * lanes<T>); };
    }

    // What has been made just now, and is still in cache.
    void activate_part(int64_t n, Range rows, Range channels) const {
        const int64_t all = p_.channels.target(), count = channels.end - channels.begin;
        const bool together = count == all;
        const int64_t width = p_.x.target, runs = together ? 1 : (rows.end - rows.begin) * width;
        T* to = target_ + (n * p_.y.target + rows.begin) * width * all + channels.begin;
        const int64_t run = together ? (rows.end - rows.begin) * width * all : count;
        for (int64_t i = 0; i < runs; ++i, to += all)
            map_part<T>(run, to, to, [&](const auto& v) { return activate(activation_, v); });
    }

    const Passage& p_;
    const ImagesLast<T> images_;
    const T* bias_;
    const Activation activation_;
    T* target_;
    const int64_t size_;
    Buffer<T> w_;
};

// The gradients by w and bias, by the passage to the small image: partial sums, one for each chunk of the cut.
template <class T>
class GradientLast {
   public:
    // g: the gradient by the small image; grad_w and grad_b may be null
    GradientLast(const Passage& p, const T* big, const T* g, T* grad_w, T* grad_b, int threads)
        : p_(p),
          images_(p, big, threads),
          g_(g),
          grad_w_(grad_w),
          grad_b_(grad_b),
          size_(p.channels.depth * p.elements() + 1),
          cut_(p, images_.parts(), of_a_chunk() * static_cast<int64_t>(sizeof(T)), static_cast<int64_t>(sizeof(T))),
          sums_(cut_.chunks * of_a_chunk()) {}

    int64_t parts() const { return images_.parts(); }
    int64_t units() const { return images_.vectors(); }
    int64_t blocks(int64_t wanted) const { return wanted; }
    const Cut& cut() const { return cut_; }

    void begin(const Worker&, int64_t chunk, Block block) const {
        const Range channels = images_.channels(block);
        fill<T>(sums(chunk, channels.begin), ceil_div(channels.end - channels.begin, lanes<T>) * lanes<T> * size_, 0);
    }

    void add(const Worker& worker, int64_t chunk, int64_t n, int64_t part, Block block) const {
        images_.walk(
            worker, n, part, block, g_,
            [&](Range channels, const PixelView<const T>& source, auto tiling, auto fit, const Patch<const T>& window,
                const Patch<const T>& g) {
                using Tiles = decltype(tiling);
                each_vector<T>(channels, [&](auto full, int64_t c, int64_t count) {
                    T* to = sums(chunk, c);
                    Patch<const T> at = window;
                    for (int64_t d = 0; d < source.depth; ++d, at.first += source.plane)
                        gradient_tile<typename Tiles::Meet, Tiles::rows, Tiles::columns, decltype(fit)::value,
                                      decltype(full)::value>(at, g, c, count, to + d * p_.elements() * lanes<T>,
                                                             d == 0 ? to + (size_ - 1) * lanes<T> : nullptr);
                });
            },
            [&](Range channels, auto fit, const Patch<const T>& source, Meetings meetings, const Patch<const T>& g) {
                each_vector<T>(channels, [&](auto full, int64_t c, int64_t count) {
                    T* to = sums(chunk, c);
                    gradient_column<decltype(fit)::value, decltype(full)::value>(source, meetings, g, c, count, to,
                                                                                 to + (size_ - 1) * lanes<T>);
                });
            });
    }

    void end(const Worker&, int64_t, Block) const {}

    // Adds the chunks in their order; each worker writes its share.
    void write(const Worker& worker) const {
        const Range mine = split(images_.vectors(), worker);
        for (int64_t v = mine.begin; v < mine.end; ++v) {
            const int64_t c = v * lanes<T>, count = smaller<int64_t>(lanes<T>, p_.channels.target() - c);
            for (int64_t k = 0; k < size_; ++k) {
                Vec<T> sum{};
                for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk) sum += load(sums(chunk, c) + k * lanes<T>);
                if (k == size_ - 1) {
                    if (grad_b_) store_partial(grad_b_ + c, sum, count);
                } else if (grad_w_) {
                    for (int64_t lane = 0; lane < count; ++lane) grad_w_[(c + lane) * (size_ - 1) + k] = sum[lane];
                }
            }
        }
    }

   private:
    int64_t of_a_chunk() const { return images_.vectors() * lanes<T> * size_; }
    T* sums(int64_t chunk, int64_t c) const { return sums_ + chunk * of_a_chunk() + c * size_; }

    const Passage& p_;
    const ImagesLast<T> images_;
    const T* g_;
    T *grad_w_, *grad_b_;
    const int64_t size_;
    const Cut cut_;
    Buffer<T> sums_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
