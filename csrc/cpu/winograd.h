// Correlation with 3×3 kernels and unit steps by Winograd's minimal filtering: (M+2)² products of matrices, one for each
// point, in place of one of nine times the depth.
//
// Tiles of the target go in blocks; a block's transformed input and products stay in the core's cache, and the
// transformed weights stream by. Where the depth does not fit, products are continued chunk by chunk.
#pragma once

#include "strip.h"
#include "winograd_transform.h"

namespace tbptt {
namespace TBPTT_ISA {

// Whether the taps are a square of 3×3 neighbours and neither side is strided.
template <class T>
bool suits_winograd(const Correlation<T>& c) {
    if (c.tap_count != 9 || c.step_y != 1 || c.step_x != 1 || c.grid.stride_y != 1 || c.grid.stride_x != 1)
        return false;
    int64_t top = c.taps[0].dy, bottom = top, left = c.taps[0].dx, right = left;
    for (int64_t t = 1; t < c.tap_count; ++t) {
        top = smaller(top, c.taps[t].dy), bottom = larger(bottom, c.taps[t].dy);
        left = smaller(left, c.taps[t].dx), right = larger(right, c.taps[t].dx);
    }
    return bottom - top == 2 && right - left == 2;
}

// The tile to use, 2 or 4; 0 for the direct way. The estimate counts multiplications, in which the measured cost of the
// transforms of pixels and of weights is expressed; automatic choice leaves float64, asked for its accuracy, alone.
template <class T>
int winograd_tile(const Correlation<T>& c) {
    constexpr double of_products = 1.25, of_pixels = 16, of_weights = 45, least_gain = 1.15;
    if (c.algorithm == Algorithm::direct) return 0;
    if (c.algorithm == Algorithm::winograd_2x2) return 2;
    if (c.algorithm == Algorithm::winograd_4x4) return 4;
    const bool asked = c.algorithm == Algorithm::winograd;
    if (!asked && (sizeof(T) == 8 || !suits_winograd(c))) return 0;
    const auto depth = static_cast<double>(c.depth), columns = static_cast<double>(c.columns);
    const auto cost = [&](int64_t tile) {
        const int64_t count = c.grid.batch * ceil_div(c.grid.height, tile) * ceil_div(c.grid.width, tile);
        return static_cast<double>((tile + 2) * (tile + 2)) *
               (static_cast<double>(count) * (of_products * depth * columns + of_pixels * (depth + columns)) +
                of_weights * depth * columns);
    };
    const double small = cost(2), large = cost(4),
                 direct = 9 * static_cast<double>(c.grid.positions()) * depth * columns;
    if (!asked && (small < large ? small : large) * least_gain > direct) return 0;
    return small < large ? 2 : 4;
}

// The tiles that cover the target, numbered along rows, rows along images.
template <class T, int M>
class WinogradTiles {
   public:
    static constexpr int reach = M + 2;

    explicit WinogradTiles(const Correlation<T>& c)
        : c_(c), rows_(ceil_div(c.grid.height, M)), columns_(ceil_div(c.grid.width, M)) {
        top_ = c.taps[0].dy, left_ = c.taps[0].dx;
        for (int64_t t = 1; t < c.tap_count; ++t) {
            top_ = smaller(top_, c.taps[t].dy);
            left_ = smaller(left_, c.taps[t].dx);
        }
    }

    int64_t count() const { return c_.grid.batch * rows_ * columns_; }

    // Nearly equal blocks of about `wanted` tiles, whole rows of tiles where these are short.
    int64_t choose_block(int64_t wanted) const {
        const int64_t unit = columns_ <= wanted ? columns_ : 1, units = ceil_div(count(), unit);
        const int64_t blocks = ceil_div(count(), larger(unit, wanted / unit * unit));
        return larger<int64_t>(1, ceil_div(units, larger<int64_t>(1, blocks))) * unit;
    }

    // Calls body(index of the first tile, number of tiles, area of their outputs, not clipped) for rows of at most `most`
    // neighbouring tiles.
    template <class Body>
    void for_rows(int64_t first, int64_t count, int64_t most, Body body) const {
        for (int64_t done = 0; done < count;) {
            const int64_t tile = first + done, row = tile / columns_, column = tile % columns_;
            const int64_t length = smaller(smaller(count - done, most), columns_ - column);
            const int64_t top = row % rows_ * M, left = column * M;
            body(done, length, Area{row / rows_, top, left, top + M, left + length * M});
            done += length;
        }
    }

    Area inputs(const Area& outputs) const {
        return {outputs.n, outputs.top + top_, outputs.left + left_, outputs.bottom + top_ + 2,
                outputs.right + left_ + 2};
    }

    // Where the element of the kernel at (i, j) of the 3×3 lies.
    int64_t element(int64_t i, int64_t j) const {
        for (int64_t t = 0; t < c_.tap_count; ++t)
            if (c_.taps[t].dy - top_ == i && c_.taps[t].dx - left_ == j) return c_.taps[t].element;
        return 0;
    }

   private:
    const Correlation<T>& c_;
    int64_t rows_, columns_, top_, left_;
};

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
          together_(smaller<int64_t>(panels_, larger<int64_t>(1, most_columns / width_))),
          chunks_(ceil_div(c.depth, most_depth)),
          chunk_(ceil_div(c.depth, chunks_)),
          padded_(ceil_div(chunk_, lanes<T>) * lanes<T>),
          block_(tiles_.choose_block(wanted_tiles)),
          blocks_(ceil_div(tiles_.count(), block_)),
          input_stride_(block_ * padded_ + line),
          product_stride_(block_ * width_ + line),
          weights_(c, M, vectors_, c.groups * panels_ * c.depth * points * width_),
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
            const Range panels = split(weights_.filled() ? 0 : c_.groups * panels_, worker);
            for (int64_t i = panels.begin; i < panels.end; ++i) transform_weights(i / panels_, i % panels_);
            wait_for_all(worker);
            const int64_t parts = ceil_div(panels_, together_);
            tasks_.run(worker, [&](int64_t i) {
                const int64_t part = i / blocks_ % parts;
                const Range mine{part * together_, smaller(panels_, (part + 1) * together_)};
                multiply(worker, i / blocks_ / parts, mine, i % blocks_);
            });
        });
        weights_.complete();
    }

   private:
    using Transform = Winograd<T, M>;
    static constexpr int reach = M + 2, points = reach * reach;
    static constexpr int64_t line = 64 / sizeof(T);  // keeps the points' rows out of the same sets of the cache
    static constexpr int64_t scale = sizeof(float) * 36;
    static constexpr int64_t wanted_tiles = 48 * scale / (sizeof(T) * points);
    static constexpr int64_t most_depth = 64, most_columns = 128, most_in_row = 32;

    int64_t buffer_size() const {
        const int64_t inputs = reach * (most_in_row * M + 2) * padded_, outputs = M * most_in_row * M * width_;
        return larger(inputs, outputs);
    }

    Range chunk(int64_t i) const { return {i * chunk_, smaller(c_.depth, (i + 1) * chunk_)}; }

    // [chunk][point][depth][width] of a panel of columns
    T* weights(int64_t group, int64_t panel, const Range& depth) const {
        return weights_ + ((group * panels_ + panel) * c_.depth + depth.begin) * points * width_;
    }

    void transform_weights(int64_t group, int64_t panel) {
        int64_t element[9];
        for (int i = 0; i < 9; ++i) element[i] = tiles_.element(i / 3, i % 3);
        for (int64_t i = 0; i < chunks_; ++i) {
            const Range depth = chunk(i);
            const int64_t count = depth.end - depth.begin, stride = count * width_;
            T* to = weights(group, panel, depth);
            for (int64_t v = 0; v < vectors_; ++v)
                for (int64_t d = 0; d < count; ++d) {
                    const int64_t first = panel * width_ + v * lanes<T>;
                    const T* from = c_.w + group * c_.w_group + (depth.begin + d) * c_.w_depth + first * c_.w_column;
                    alignas(64) T g[9][lanes<T>] = {};
                    for (int64_t lane = 0; lane < smaller<int64_t>(lanes<T>, c_.columns - first); ++lane)
                        for (int t = 0; t < 9; ++t) g[t][lane] = from[lane * c_.w_column + element[t]];
                    Vec<T> in[3][3], out[reach][reach];
                    for (int t = 0; t < 9; ++t) in[t / 3][t % 3] = load(g[t]);
                    transform_kernel(in, out);
                    for (int p = 0; p < points; ++p)
                        store(to + p * stride + d * width_ + v * lanes<T>, out[p / reach][p % reach]);
                }
        }
    }

    static TBPTT_INLINE void transform_kernel(const Vec<T> (&g)[3][3], Vec<T> (&to)[reach][reach]) {
        Vec<T> half[3][reach];
#pragma GCC unroll 4
        for (int j = 0; j < 3; ++j) {
            const Vec<T> column[3] = {g[0][j], g[1][j], g[2][j]};
            Transform::weights(column, half[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < reach; ++i) {
            const Vec<T> row[3] = {half[0][i], half[1][i], half[2][i]};
            Transform::weights(row, to[i]);
        }
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
            for (int64_t p = panels.begin; p < panels.end; ++p)
                for (int point = 0; point < points; ++point) {
                    const T* b = weights(group, p, depth) + point * channels * width_;
                    T* to = products + ((p - panels.begin) * points + point) * product_stride_;
                    for (int64_t tile = 0; tile < count; ++tile)
                        rows[tile] = inputs + point * input_stride_ + tile * padded_;
                    multiply_rows(Rows<T>{rows, channels}, count, b, to, i > 0);
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
    const int64_t width_, panels_, together_;  // columns of a panel; panels; panels that share a block's inputs
    const int64_t chunks_, chunk_, padded_;    // of the depth
    const int64_t block_, blocks_, input_stride_, product_stride_;
    KernelWeights<T> weights_;
    Buffer<T> zeros_, inputs_, products_, buffers_;
    Buffer<const T*> rows_;
    Tasks tasks_;
};

}  // namespace TBPTT_ISA
}  // namespace tbptt
