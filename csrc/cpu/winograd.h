// Correlation with 3×3 kernels and unit steps by Winograd's minimal filtering: (M+2)² products of matrices, one for each
// point, in place of one of nine times the depth.
//
// Tiles of the target go in blocks; a block's transformed input and products stay in the core's cache, and the
// transformed weights stream by. Where the depth does not fit, products are continued chunk by chunk. Where few blocks
// share the weights, these would cost more to write and read than to make: then each block transforms them for itself.
#pragma once

#include "winograd_tiles.h"
#include "winograd_weights.h"

namespace tbptt {
namespace TBPTT_ISA {

// to [point][tile][channels] = the transform of the inputs that each of a row of tiles reaches; zeros lie outside of the
// image. `buffer` is read_strip's.
template <class T, int M>
void transform_inputs(const ImageShape& image, const T* data, const Area& reach, int64_t channel, int64_t channels,
                      T* buffer, const T* zeros, int64_t tiles, T* to, int64_t tile_stride, int64_t point_stride) {
    using Transform = Winograd<T, M>;
    constexpr int R = Transform::reach;
    const Strip<const T> strip = read_strip<T>(image, data, reach.within(image), channel, channels, buffer);
    for (int64_t tile = 0; tile < tiles; ++tile, to += tile_stride) {
        const T* from[R][R];
        const int64_t left = reach.left + tile * M;
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const int64_t y = reach.top + i;
            const bool row = y >= strip.area.top && y < strip.area.bottom;
#pragma GCC unroll 8
            for (int j = 0; j < R; ++j)
                from[i][j] =
                    row && left + j >= strip.area.left && left + j < strip.area.right ? strip.at(y, left + j) : zeros;
        }
        for (int64_t k = 0; k < channels; k += lanes<T>) {
            Vec<T> in[R][R], out[R][R];
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < R; ++j) in[i][j] = load_partial(from[i][j] + k, channels - k);
            in_both(in, out, Transform::input);
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < R; ++j) store(to + (i * R + j) * point_stride + k, out[i][j]);
        }
    }
}

template <class T, int M>
class WinogradCorrelation {
   public:
    explicit WinogradCorrelation(const Correlation<T>& c)
        : c_(c),
          tiles_(c),
          threads_(threads_for(c.flops() / 2)),
          vectors_(choose_vectors<T>(c.columns)),
          width_(vectors_ * lanes<T>),
          panels_(ceil_div(c.columns, width_)),
          chunks_(ceil_div(c.depth, most_depth)),
          chunk_(ceil_div(c.depth, chunks_)),
          padded_(ceil_div(chunk_, lanes<T>) * lanes<T>),
          block_(choose_block()),
          blocks_(ceil_div(tiles_.count(), block_)),
          shared_(c.packed || blocks_ > few_blocks),
          together_(shared_ ? smaller<int64_t>(panels_, larger<int64_t>(1, most_columns / width_)) : 1),
          input_stride_(block_ * padded_ + line),
          product_stride_(block_ * width_ + line),
          transform_(c, tiles_),
          weights_(c, M, vectors_, shared_ ? c.groups * panels_ * c.depth * points * width_ : 0),
          own_weights_(shared_ ? 0 : threads_ * points * chunk_ * width_),
          zeros_(padded_),
          inputs_(threads_ * points * input_stride_),
          products_(threads_ * together_ * points * product_stride_),
          buffers_(c.source_shape.channels_last ? 0 : threads_ * buffer_size()),
          rows_(threads_ * block_),
          tasks_(c.groups * blocks_ * ceil_div(panels_, together_), threads_) {
        fill<T>(zeros_, padded_, 0);
    }

    void run() {
        run_parallel(threads_, [this](const Worker& worker) {
            const Range mine = split(!shared_ || weights_.filled() ? 0 : c_.groups * panels_ * chunks_, worker);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                const int64_t group = i / chunks_ / panels_, panel = i / chunks_ % panels_;
                const Range depth = chunk(i % chunks_);
                transform_.transform(group, depth, panel * width_, vectors_, weights(group, panel, depth));
            }
            wait_for_all(worker);
            const int64_t parts = ceil_div(panels_, together_);
            tasks_.run(worker, [&](int64_t i) {
                const int64_t part = i / blocks_ % parts;
                const Range panels{part * together_, smaller(panels_, (part + 1) * together_)};
                multiply(worker, i / blocks_ / parts, panels, i % blocks_);
            });
        });
        weights_.complete();
    }

   private:
    using Transform = Winograd<T, M>;
    static constexpr int reach = M + 2, points = reach * reach;
    static constexpr int64_t line = 64 / sizeof(T);  // keeps the points' rows out of the same sets of the cache
    static constexpr int64_t few_blocks = 2;
    static constexpr int64_t most_depth = 64, most_columns = 128, most_in_row = 32;

    int64_t buffer_size() const {
        const int64_t inputs = reach * (most_in_row * M + 2) * padded_, outputs = M * most_in_row * M * width_;
        return larger(inputs, outputs);
    }

    // All tiles, if that makes one block somewhat larger.
    int64_t choose_block() const {
        const int64_t wanted = winograd_block<T>(M);
        return tiles_.count() * 3 <= wanted * 4 ? tiles_.count() : tiles_.choose_block(wanted);
    }

    Range chunk(int64_t i) const { return {i * chunk_, smaller(c_.depth, (i + 1) * chunk_)}; }

    // [chunk][point][depth][width] of a panel of columns
    T* weights(int64_t group, int64_t panel, const Range& depth) const {
        return weights_ + ((group * panels_ + panel) * c_.depth + depth.begin) * points * width_;
    }

    void multiply(const Worker& worker, int64_t group, const Range& panels, int64_t index) {
        const int64_t first = index * block_, count = smaller(block_, tiles_.count() - first);
        T* inputs = inputs_ + worker.index * points * input_stride_;
        T* products = products_ + worker.index * together_ * points * product_stride_;
        T* buffer = buffers_ + worker.index * buffer_size();
        const T** rows = rows_ + worker.index * block_;
        for (int64_t i = 0; i < chunks_; ++i) {
            const Range depth = chunk(i);
            const int64_t channel = group * c_.depth + depth.begin, channels = depth.end - depth.begin;
            tiles_.for_rows(first, count, most_in_row, [&](int64_t tile, int64_t length, const Area& outputs) {
                transform_inputs<T, M>(c_.source_shape, c_.source, tiles_.inputs(outputs), channel, channels, buffer,
                                       zeros_, length, inputs + tile * padded_, padded_, input_stride_);
            });
            for (int64_t p = panels.begin; p < panels.end; ++p) {
                T* panel = shared_ ? weights(group, p, depth) : own_weights_ + worker.index * points * chunk_ * width_;
                if (!shared_) transform_.transform(group, depth, p * width_, vectors_, panel);
                for (int point = 0; point < points; ++point) {
                    const T* b = panel + point * channels * width_;
                    T* to = products + ((p - panels.begin) * points + point) * product_stride_;
                    for (int64_t tile = 0; tile < count; ++tile)
                        rows[tile] = inputs + point * input_stride_ + tile * padded_;
                    multiply_rows(Rows<T>{rows, channels}, count, b, to, i > 0);
                }
            }
        }
        for (int64_t p = panels.begin; p < panels.end; ++p)
            write(group, p, first, count, products + (p - panels.begin) * points * product_stride_, buffer);
    }

    void multiply_rows(const Rows<T>& rows, int64_t count, const T* b, T* to, bool add) const {
        const int64_t parts = ceil_div(count, max_tile_rows(vectors_));
        for (int64_t i = 0; i < parts; ++i) {
            const Range part = split(count, i, parts);
            const int height = static_cast<int>(part.end - part.begin);
            const Tile<T> tile =
                add ? find_tile<T, true, true>(height, vectors_) : find_tile<T, true, false>(height, vectors_);
            const int64_t step = smaller<int64_t>(64, width_ * static_cast<int64_t>(sizeof(T)) / parts);
            const char* next = reinterpret_cast<const char*>(b + rows.depth * width_);
            tile(rows.from(part.begin), b, to + part.begin * width_, Ahead{next + i * step * rows.depth, step});
        }
    }

    void write(int64_t group, int64_t panel, int64_t first, int64_t count, const T* products, T* buffer) const {
        const int64_t column = panel * width_, columns = smaller<int64_t>(width_, c_.columns - column);
        const int64_t channel = group * c_.columns + column;
        tiles_.for_rows(first, count, most_in_row, [&](int64_t tile, int64_t length, const Area& outputs) {
            const Area area = outputs.within(c_.target_shape);
            const Strip<T> strip = open_strip<T>(c_.target_shape, c_.target, area, channel, columns, buffer);
            for (int64_t k = 0; k < length; ++k) {
                const int64_t left = outputs.left + k * M;
                const int64_t height = smaller<int64_t>(M, area.height()),
                              width = smaller<int64_t>(M, area.right - left);
                for (int64_t j = 0; j < columns; j += lanes<T>) {
                    const T* from = products + (tile + k) * width_ + j;
                    const Vec<T> bias = c_.bias ? load_partial(c_.bias + channel + j, columns - j) : Vec<T>{};
                    Vec<T> in[reach][reach], out[M][M];
#pragma GCC unroll 8
                    for (int y = 0; y < reach; ++y)
#pragma GCC unroll 8
                        for (int x = 0; x < reach; ++x) in[y][x] = load(from + (y * reach + x) * product_stride_);
                    in_both(in, out, Transform::output);
                    for (int y = 0; y < height; ++y)
                        for (int x = 0; x < width; ++x)
                            store_partial(strip.at(area.top + y, left + x) + j, c_.finish(out[y][x], bias),
                                          c_.target_shape.channels_last ? columns - j : lanes<T>);
                }
            }
            write_strip<T>(c_.target_shape, c_.target, strip, channel, columns);
        });
    }

    const Correlation<T>& c_;
    const WinogradTiles<T, M> tiles_;
    const int threads_;
    const int vectors_;
    const int64_t width_, panels_;           // columns of a panel; panels
    const int64_t chunks_, chunk_, padded_;  // of the depth
    const int64_t block_, blocks_;           // of tiles
    const bool shared_;                      // weights, by all blocks
    const int64_t together_;                 // panels that share a block's inputs
    const int64_t input_stride_, product_stride_;
    const WinogradWeights<T, M> transform_;
    KernelWeights<T> weights_;
    Buffer<T> own_weights_, zeros_, inputs_, products_, buffers_;
    Buffer<const T*> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
