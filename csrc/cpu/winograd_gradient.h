// The gradient by the weights of a correlation with 3×3 kernels and unit steps, by the adjoint of Winograd's filtering: for
// each point one product, over all tiles, of the transformed inputs and gradients, whose sums go through Gᵀ·G at the end.
//
// A task keeps the sums of one part of the channels of both sides in its core's cache while all tiles pass by.
#pragma once

#include "winograd.h"

namespace tbptt {
namespace TBPTT_ISA {

template <class T, int M>
class WinogradGradient {
   public:
    // c: the forward correlation; g: the gradient by its target before the activation
    WinogradGradient(const Correlation<T>& c, const T* g, T* grad_w)
        : c_(c),
          g_(g),
          grad_w_(grad_w),
          tiles_(c),
          threads_(threads_for(c.flops() / 2)),
          vectors_(choose_vectors<T>(c.columns)),
          width_(vectors_ * lanes<T>),
          panels_(ceil_div(c.columns, width_)),
          chunks_(ceil_div(c.depth, most_depth)),
          chunk_(ceil_div(c.depth, chunks_)),
          padded_(ceil_div(chunk_, lanes<T>) * lanes<T>),
          block_(choose_block()),
          spans_(choose_spans()),
          input_stride_(block_ * padded_ + line),
          gradient_stride_(block_ * width_ + line),
          sum_stride_(chunk_ * width_ + line),
          zeros_(larger(padded_, width_)),
          inputs_(threads_ * points * input_stride_),
          gradients_(threads_ * points * gradient_stride_),
          sums_(threads_ * points * sum_stride_),
          buffers_(c.source_shape.channels_last ? 0 : threads_ * buffer_size()),
          parts_(spans_ > 1 ? spans_ * panels_ * c.groups * c.depth * 9 * width_ : 0),
          tasks_(c.groups * panels_ * chunks_ * spans_, threads_) {
        fill<T>(zeros_, larger(padded_, width_), 0);
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            tasks_.run(worker, [&](int64_t i) {
                const int64_t span = i % spans_, chunk = i / spans_ % chunks_, panel = i / spans_ / chunks_;
                accumulate(worker, panel / panels_, panel % panels_, chunk, span);
            });
            if (spans_ == 1) return;
            wait_for_all(worker);
            const int64_t total = c_.groups * panels_ * c_.depth;
            const Range mine = split(total, worker);
            for (int64_t i = mine.begin; i < mine.end; ++i) add_spans(i, total);
        });
    }

   private:
    using Transform = Winograd<T, M>;
    static constexpr int reach = M + 2, points = reach * reach;
    static constexpr int64_t line = 64 / sizeof(T);
    static constexpr int64_t most_depth = 64, most_in_row = 32;

    int64_t buffer_size() const {
        return larger(reach * (most_in_row * M + 2) * padded_, M * most_in_row * M * width_);
    }

    // As many tiles as fit a core's cache beside the sums.
    int64_t choose_block() const {
        constexpr int64_t bytes = 1 << 20, size = points * sizeof(T);
        const int64_t room = bytes - size * chunk_ * width_;
        return tiles_.choose_block(larger<int64_t>(8, room / (size * (padded_ + width_))));
    }

    // Fixed parts of the tiles, each summed by itself, where there are too few tasks else; their sums must stay small.
    int64_t choose_spans() const {
        constexpr int64_t bytes = 3 << 18, wanted = 16;
        const int64_t tasks = c_.groups * panels_ * chunks_;
        const int64_t size = c_.groups * panels_ * c_.depth * 9 * width_ * static_cast<int64_t>(sizeof(T));
        const int64_t most = smaller(bytes / larger<int64_t>(1, size), ceil_div(tiles_.count(), 4 * block_));
        return larger<int64_t>(1, smaller(most, wanted / larger<int64_t>(1, tasks)));
    }

    void accumulate(const Worker& worker, int64_t group, int64_t panel, int64_t chunk, int64_t span) {
        const Range depth{chunk * chunk_, smaller(c_.depth, (chunk + 1) * chunk_)};
        const Range tiles = split(tiles_.count(), span, spans_);
        const int64_t channels = depth.end - depth.begin;
        T* sums = sums_ + worker.index * points * sum_stride_;
        fill<T>(sums, points * sum_stride_, 0);
        for (int64_t first = tiles.begin; first < tiles.end; first += block_) {
            const int64_t count = smaller(block_, tiles.end - first);
            transform(worker, group, panel, depth, first, count);
            multiply(worker, count, channels, sums);
        }
        for (int64_t d = 0; d < channels; ++d)
            for (int64_t v = 0; v < vectors_; ++v) {
                const T* from = sums + d * width_ + v * lanes<T>;
                Vec<T> in[reach][reach], out[3][3];
                for (int p = 0; p < points; ++p) in[p / reach][p % reach] = load(from + p * sum_stride_);
                in_both(in, out, Transform::weights_adjoint);
                for (int i = 0; i < 9; ++i) put(out[i / 3][i % 3], group, panel, depth.begin + d, v, i, span);
            }
    }

    void transform(const Worker& worker, int64_t group, int64_t panel, const Range& depth, int64_t first,
                   int64_t count) {
        T* inputs = inputs_ + worker.index * points * input_stride_;
        T* gradients = gradients_ + worker.index * points * gradient_stride_;
        T* buffer = buffers_ + worker.index * buffer_size();
        const int64_t column = panel * width_, columns = smaller<int64_t>(width_, c_.columns - column);
        tiles_.for_rows(first, count, most_in_row, [&](int64_t tile, int64_t length, const Area& outputs) {
            const Area area = tiles_.inputs(outputs);
            transform_inputs<T, M>(c_.source_shape, c_.source, area, group * c_.depth + depth.begin,
                                   depth.end - depth.begin, buffer, zeros_, length, inputs + tile * padded_, padded_,
                                   input_stride_);
            const Area inside = outputs.within(c_.target_shape);
            const Strip<const T> strip =
                read_strip<T>(c_.target_shape, g_, inside, group * c_.columns + column, columns, buffer);
            transform_gradients(strip, outputs, length, columns, gradients + tile * width_);
        });
    }

    void transform_gradients(const Strip<const T>& strip, const Area& outputs, int64_t tiles, int64_t columns,
                             T* to) const {
        for (int64_t tile = 0; tile < tiles; ++tile, to += width_) {
            const T* from[M][M];
            for (int y = 0; y < M; ++y)
                for (int x = 0; x < M; ++x) {
                    const int64_t row = outputs.top + y, column = outputs.left + tile * M + x;
                    from[y][x] = row < strip.area.bottom && column < strip.area.right ? strip.at(row, column) : zeros_;
                }
            for (int64_t k = 0; k < width_; k += lanes<T>) {
                Vec<T> in[M][M], out[reach][reach];
#pragma GCC unroll 8
                for (int y = 0; y < M; ++y)
#pragma GCC unroll 8
                    for (int x = 0; x < M; ++x)
                        in[y][x] = k < columns ? load_partial(from[y][x] + k, columns - k) : Vec<T>{};
                in_both(in, out, Transform::output_adjoint);
#pragma GCC unroll 8
                for (int y = 0; y < reach; ++y)
#pragma GCC unroll 8
                    for (int x = 0; x < reach; ++x) store(to + (y * reach + x) * gradient_stride_ + k, out[y][x]);
            }
        }
    }

    void multiply(const Worker& worker, int64_t tiles, int64_t channels, T* sums) const {
        const T* inputs = inputs_ + worker.index * points * input_stride_;
        const T* gradients = gradients_ + worker.index * points * gradient_stride_;
        const int64_t parts = ceil_div(channels, max_tile_rows(vectors_));
        for (int point = 0; point < points; ++point)
            for (int64_t i = 0; i < parts; ++i) {
                const Range part = split(channels, i, parts);
                find_outer_tile<T>(static_cast<int>(part.end - part.begin), vectors_)(
                    inputs + point * input_stride_ + part.begin, padded_, gradients + point * gradient_stride_, tiles,
                    sums + point * sum_stride_ + part.begin * width_);
            }
    }

    // Of one element of the kernel: to its place, or to its span's part.
    void put(Vec<T> value, int64_t group, int64_t panel, int64_t d, int64_t v, int element, int64_t span) {
        if (spans_ > 1) {
            const int64_t row = (group * panels_ + panel) * c_.depth + d;
            const int64_t total = c_.groups * panels_ * c_.depth;
            return store(parts_ + ((span * total + row) * 9 + element) * width_ + v * lanes<T>, value);
        }
        write(value, group, panel, d, v, element);
    }

    void write(Vec<T> value, int64_t group, int64_t panel, int64_t d, int64_t v, int element) const {
        const int64_t first = panel * width_ + v * lanes<T>;
        T* to = grad_w_ + group * c_.w_group + first * c_.w_column + d * c_.w_depth +
                tiles_.element(element / 3, element % 3);
        for (int64_t lane = 0; lane < smaller<int64_t>(lanes<T>, c_.columns - first); ++lane)
            to[lane * c_.w_column] = value[lane];
    }

    void add_spans(int64_t row, int64_t total) const {
        const int64_t panel = row / c_.depth;
        for (int element = 0; element < 9; ++element)
            for (int64_t v = 0; v < vectors_; ++v) {
                Vec<T> sum{};
                for (int64_t span = 0; span < spans_; ++span)
                    sum += load(parts_ + ((span * total + row) * 9 + element) * width_ + v * lanes<T>);
                write(sum, panel / panels_, panel % panels_, row % c_.depth, v, element);
            }
    }

    const Correlation<T>& c_;
    const T* g_;
    T* grad_w_;
    const WinogradTiles<T, M> tiles_;
    const int threads_;
    const int vectors_;
    const int64_t width_, panels_;           // of the output channels
    const int64_t chunks_, chunk_, padded_;  // of the input channels
    const int64_t block_, spans_, input_stride_, gradient_stride_, sum_stride_;
    Buffer<T> zeros_, inputs_, gradients_, sums_, buffers_, parts_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
