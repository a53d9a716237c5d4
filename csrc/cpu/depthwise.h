// Correlation where every channel meets only itself: there is no product to build on, so the loops are over vectors of
// channels (channels last) or of pixels (channels first).
#pragma once

#include "correlation_first.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T>
bool is_depthwise(const Correlation<T>& c) {
    return c.depth == 1 && c.columns == 1 && c.groups > 1;
}

// Channels last. Pixels outside of the source are rows of zeros.
template <class T>
class DepthwiseLast {
   public:
    explicit DepthwiseLast(const Correlation<T>& c)
        : c_(c),
          threads_(threads_for(work_per_flop * c.flops())),
          rows_(c.grid.batch * c.grid.height),
          w_(c.tap_count * c.groups),
          zeros_(c.groups),
          pieces_(threads_ * c.tap_count),
          partial_(chunks * c.tap_count * c.groups),
          partial_bias_(chunks * c.groups),
          tasks_(rows_, threads_),
          chunk_tasks_(chunks, threads_) {
        fill<T>(zeros_, c.groups, 0);
        for (int64_t channel = 0; channel < c.groups; ++channel)
            for (int64_t t = 0; t < c.tap_count; ++t)
                w_[t * c.groups + channel] = c.w ? c.w[channel * c.w_group + c.taps[t].element] : T(0);
    }

    void run() {
        run_parallel(threads_,
                     [this](const Worker& worker) { tasks_.run(worker, [&](int64_t row) { make_row(worker, row); }); });
    }

    // The gradients by w [channels][elements] and by the bias, for the gradient g by the target: sums over chunks of rows
    // that do not depend on the number of threads, added in their order.
    void gradient(const T* g, T* grad_w, T* grad_b) {
        run_parallel(threads_, [&](const Worker& worker) {
            chunk_tasks_.run(worker, [&](int64_t chunk) { add_chunk(worker, chunk, g, grad_w != nullptr); });
            wait_for_all(worker);
            const Range mine = split(c_.groups, worker);
            for (int64_t channel = mine.begin; channel < mine.end; ++channel) {
                for (int64_t t = 0; grad_w && t < c_.tap_count; ++t) {
                    T sum = 0;
                    for (int64_t i = 0; i < chunks; ++i) sum += partial_[(i * c_.tap_count + t) * c_.groups + channel];
                    grad_w[channel * c_.w_group + c_.taps[t].element] = sum;
                }
                T sum = 0;
                for (int64_t i = 0; grad_b && i < chunks; ++i) sum += partial_bias_[i * c_.groups + channel];
                if (grad_b) grad_b[channel] = sum;
            }
        });
    }

   private:
    static constexpr int64_t chunks = 32;
    static constexpr double work_per_flop = 8;  // loads, not multiplications, take the time

    const T** find_pieces(const Worker& worker, const Position& at) {
        const T** pieces = pieces_ + worker.index * c_.tap_count;
        for (int64_t t = 0; t < c_.tap_count; ++t) {
            const int64_t y = at.y * c_.step_y + c_.taps[t].dy, x = at.x * c_.step_x + c_.taps[t].dx;
            pieces[t] = c_.inside(y, x) ? c_.source + c_.source_shape.at(at.n, y, x) : static_cast<const T*>(zeros_);
        }
        return pieces;
    }

    void make_row(const Worker& worker, int64_t row) {
        Position at = position_of(c_.grid, row * c_.grid.width);
        for (at.x = 0; at.x < c_.grid.width; ++at.x) {
            const T* const* pieces = find_pieces(worker, at);
            T* to = c_.target + c_.target_at(at);
            for (int64_t i = 0; i < c_.groups; i += lanes<T>) {
                const int64_t count = c_.groups - i;
                Vec<T> sum{};
                for (int64_t t = 0; t < c_.tap_count; ++t)
                    sum += load_partial(pieces[t] + i, count) *
                           load_partial(static_cast<const T*>(w_) + t * c_.groups + i, count);
                store_partial(to + i, c_.finish(sum, c_.bias ? load_partial(c_.bias + i, count) : Vec<T>{}), count);
            }
        }
    }

    void add_chunk(const Worker& worker, int64_t chunk, const T* g, bool weights) {
        T* sums = partial_ + chunk * c_.tap_count * c_.groups;
        T* bias = partial_bias_ + chunk * c_.groups;
        fill<T>(sums, c_.tap_count * c_.groups, 0);
        fill<T>(bias, c_.groups, 0);
        const Range rows = split(rows_, chunk, chunks);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            Position at = position_of(c_.grid, row * c_.grid.width);
            for (at.x = 0; at.x < c_.grid.width; ++at.x) {
                const T* const* pieces = find_pieces(worker, at);
                const T* from = g + c_.target_at(at);
                for (int64_t i = 0; i < c_.groups; i += lanes<T>) {
                    const int64_t count = c_.groups - i;
                    const Vec<T> value = load_partial(from + i, count);
                    const auto add = [&](T* to, Vec<T> more) {
                        store_partial(to, load_partial(static_cast<const T*>(to), count) + more, count);
                    };
                    add(bias + i, value);
                    for (int64_t t = 0; weights && t < c_.tap_count; ++t)
                        add(sums + t * c_.groups + i, value * load_partial(pieces[t] + i, count));
                }
            }
        }
    }

    const Correlation<T>& c_;
    const int threads_;
    const int64_t rows_;
    Buffer<T> w_, zeros_;
    Buffer<const T*> pieces_;
    Buffer<T> partial_, partial_bias_;
    Tasks tasks_, chunk_tasks_;
};

// Channels first: one plane after another. The source's values at each tap are put together a row at a time, so that
// strides and borders are dealt with in one place.
template <class T>
class DepthwiseFirst {
   public:
    explicit DepthwiseFirst(const Correlation<T>& c)
        : c_(c),
          threads_(threads_for(work_per_flop * c.flops())),
          width_(ceil_div(c.grid.width, lanes<T>) * lanes<T>),
          rows_(threads_ * c.tap_count * width_),
          sums_(threads_ * c.tap_count * lanes<T>),
          planes_(c.grid.batch * c.groups, threads_),
          channels_(c.groups, threads_) {}

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            planes_.run(worker, [&](int64_t i) { make_plane(worker, i / c_.groups, i % c_.groups); });
        });
    }

    void gradient(const T* g, T* grad_w, T* grad_b) {
        run_parallel(threads_, [&](const Worker& worker) {
            channels_.run(worker, [&](int64_t channel) { add_channel(worker, channel, g, grad_w, grad_b); });
        });
    }

   private:
    static constexpr double work_per_flop = 8;

    // The source at every tap for the positions of one row of the grid.
    const T* gather(const Worker& worker, const Position& at, int64_t channel) {
        T* rows = rows_ + worker.index * c_.tap_count * width_;
        const T* plane = c_.source + channel * c_.source_shape.plane();
        const int64_t row = (at.n * c_.grid.height + at.y) * c_.grid.width;
        for (int64_t x = 0; x < c_.grid.width; x += PixelRuns<T>::most) {
            const int64_t count = smaller(PixelRuns<T>::most, c_.grid.width - x);
            const PixelRuns<T> runs(c_, row + x, count);
            for (int64_t t = 0; t < c_.tap_count; ++t)
                runs.gather(c_, plane, c_.taps[t], rows + t * width_ + x, smaller(PixelRuns<T>::most, width_ - x));
        }
        return rows;
    }

    void make_plane(const Worker& worker, int64_t n, int64_t channel) {
        const T* w = c_.w + channel * c_.w_group;
        const Vec<T> bias = broadcast(c_.bias ? c_.bias[channel] : T(0));
        for (int64_t y = 0; y < c_.grid.height; ++y) {
            const Position at{n, y, 0};
            const T* rows = gather(worker, at, channel);
            T* to = c_.target + c_.target_at(at) + channel * c_.target_shape.plane();
            for (int64_t x = 0; x < c_.grid.width; x += lanes<T>) {
                Vec<T> sum{};
                for (int64_t t = 0; t < c_.tap_count; ++t)
                    sum += broadcast(w[c_.taps[t].element]) * load(rows + t * width_ + x);
                const Vec<T> value = c_.finish(sum, bias);
                const int64_t count = smaller<int64_t>(lanes<T>, c_.grid.width - x);
                if (c_.grid.stride_x == 1)
                    store_partial(to + x, value, count);
                else
                    for (int64_t i = 0; i < count; ++i) to[(x + i) * c_.grid.stride_x] = value[i];
            }
        }
    }

    void add_channel(const Worker& worker, int64_t channel, const T* g, T* grad_w, T* grad_b) {
        T* sums = sums_ + worker.index * c_.tap_count * lanes<T>;
        fill<T>(sums, c_.tap_count * lanes<T>, 0);
        Vec<T> bias{};
        for (int64_t n = 0; n < c_.grid.batch; ++n)
            for (int64_t y = 0; y < c_.grid.height; ++y) {
                const Position at{n, y, 0};
                const T* rows = gather(worker, at, channel);
                const T* from = g + c_.target_at(at) + channel * c_.target_shape.plane();
                for (int64_t x = 0; x < c_.grid.width; x += lanes<T>) {
                    const Vec<T> value = load_partial(from + x, c_.grid.width - x);
                    bias += value;
                    for (int64_t t = 0; t < c_.tap_count; ++t)
                        store(sums + t * lanes<T>, load(sums + t * lanes<T>) + value * load(rows + t * width_ + x));
                }
            }
        const auto total = [](Vec<T> v) {
            T sum = 0;
            for (int i = 0; i < lanes<T>; ++i) sum += v[i];
            return sum;
        };
        for (int64_t t = 0; grad_w && t < c_.tap_count; ++t)
            grad_w[channel * c_.w_group + c_.taps[t].element] = total(load(sums + t * lanes<T>));
        if (grad_b) grad_b[channel] = total(bias);
    }

    const Correlation<T>& c_;
    const int threads_;
    const int64_t width_;
    Buffer<T> rows_, sums_;
    Tasks planes_, channels_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
