// Pooling over windows of planes, for channels before the plane and behind it.
//
// A thread makes one value, or with channels last those of neighbouring channels, and fetches what it needs: a window is
// walked row by row, and so are the windows that a value lies in. Nothing is scattered, so the results have the CPU's bits.
#pragma once

#include "api.h"
#include "maths.h"
#include "reduce.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

struct Span {
    int begin, end;
};

// One axis of windows, see PoolAxis. Sums of two of its numbers may exceed an int.
struct WindowAxis {
    int size, stride, before, behind, out;
    std::uint32_t kernel;
    Divider by_stride;

    explicit WindowAxis(const PoolAxis& a)
        : size(static_cast<int>(a.size)),
          stride(static_cast<int>(a.stride)),
          before(static_cast<int>(a.before)),
          behind(static_cast<int>(a.behind)),
          out(static_cast<int>(a.out)),
          kernel(static_cast<std::uint32_t>(a.kernel)),
          by_stride(a.stride) {}

    TBPTT_DEVICE std::int64_t start_of(int index) const { return std::int64_t{index} * stride - before; }

    // The part of window `index` that lies on the plane.
    TBPTT_DEVICE Span window(int index) const {
        const std::int64_t first = start_of(index), end = first + kernel;
        return {first > 0 ? static_cast<int>(first) : 0, end < size ? static_cast<int>(end) : size};
    }

    // Its length on the plane, or on the plane and its padding.
    TBPTT_DEVICE std::int64_t counted(int index, bool count_padding) const {
        const Span on_plane = window(index);
        if (!count_padding) return on_plane.end - on_plane.begin;
        const std::int64_t left = std::int64_t{size} + behind - start_of(index);
        return left < kernel ? left : kernel;
    }

    // The windows that contain `place`.
    TBPTT_DEVICE Span windows_with(int place) const {
        const std::int64_t padded = std::int64_t{place} + before, past = padded - kernel + stride;
        if (padded < 0) return {0, 0};
        const std::uint32_t last = by_stride.quotient(static_cast<std::uint32_t>(padded));
        return {past > 0 ? static_cast<int>(by_stride.quotient(static_cast<std::uint32_t>(past))) : 0,
                last < static_cast<std::uint32_t>(out) ? static_cast<int>(last) + 1 : out};
    }
};

// Values of one array, in order, as [units, rows, columns, depth]: units are planes and depth is 1, or images and their
// channels, by vectors.
struct PoolGrid {
    std::int64_t units;
    Divider unit, columns, depth;  // items of a unit, columns of a row, vectors of channels

    PoolGrid(std::int64_t images, std::int64_t channels, bool channels_last, std::int64_t rows, std::int64_t width,
             int vector)
        : units(channels_last ? images : images * channels),
          unit(at_least_1(rows * width * (channels_last ? channels / vector : 1))),
          columns(width),
          depth(channels_last ? at_least_1(channels / vector) : 1) {}

    std::int64_t items() const { return units * unit.divisor; }

   private:
    static std::int64_t at_least_1(std::int64_t n) { return n > 0 ? n : 1; }
};

constexpr unsigned pool_threads = 256;
constexpr std::int64_t pool_items = 4 * pool_threads;  // of a block

struct PoolItem {
    std::int64_t unit;
    int row, column, channel;  // channel: of the first value, among those of the unit
};

// Calls body(item) for what this thread has of the items of one block.
template <class Body>
TBPTT_DEVICE void for_each_item(std::int64_t block, const PoolGrid& grid, std::int64_t items, int vector, Body body) {
    const std::int64_t first = block * pool_items;
    const Places places(first, grid.unit);
    for (std::uint32_t i = threadIdx.x; i < pool_items && first + i < items; i += pool_threads) {
        const Place place = places[i];
        const std::uint32_t pixel = grid.depth.quotient(place.column), row = grid.columns.quotient(pixel);
        body(PoolItem{place.row, static_cast<int>(row), static_cast<int>(pixel - row * grid.columns.divisor),
                      static_cast<int>(place.column - pixel * grid.depth.divisor) * vector});
    }
}

inline Grid grid_of_items(std::int64_t items) {
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(items, pool_items));
    grid.threads = pool_threads;
    return grid;
}

// Calls f(Constant<vector>) where channels can go by vectors.
template <class T, class F>
void with_channel_vectors(bool channels_last, std::int64_t channels, bool aligned, F f) {
    constexpr int L = vector_values<T>;
    channels_last && aligned && channels % L == 0 ? f(Constant<L>()) : f(Constant<1>());
}

// How values lie in a unit of x and of y; within a unit, every distance is an int.
struct PoolLayout {
    int depth;  // from a column to the next
    int x_row, y_row;
    std::int64_t x_unit, y_unit;

    explicit PoolLayout(const PoolShape& s)
        : PoolLayout(s.channels_last ? s.channels : 1, s.y.size, s.x.size, s.y.out, s.x.out) {}
    PoolLayout(std::int64_t channels, std::int64_t rows, std::int64_t width, std::int64_t out_rows,
               std::int64_t out_width)
        : depth(static_cast<int>(channels)),
          x_row(static_cast<int>(width * channels)),
          y_row(static_cast<int>(out_width * channels)),
          x_unit(rows * width * channels),
          y_unit(out_rows * out_width * channels) {}

    TBPTT_DEVICE int x_offset(int row, int column, int channel) const { return row * x_row + column * depth + channel; }
    TBPTT_DEVICE int y_offset(int row, int column, int channel) const { return row * y_row + column * depth + channel; }
};

template <class T>
struct PoolParameters {
    WindowAxis y, x;
    PoolLayout layout;
    PoolGrid grid;  // of what is written
    std::int64_t items;
    bool count_padding;
    const T* from;
    T* to;
    std::int64_t* indices;
};

// Of equal values the first stays. A NaN replaces everything, a NaN before it too: as in PyTorch.
template <class T, int L>
__global__ void __launch_bounds__(pool_threads) max_pool_windows(const PoolParameters<T> p) {
    for_each_item(blockIdx.x, p.grid, p.items, L, [&](const PoolItem& item) {
        const Span down = p.y.window(item.row), across = p.x.window(item.column);
        const T* const unit = p.from + item.unit * p.layout.x_unit;
        Vector<T, L> largest;
        Vector<int, L> place;
#pragma unroll
        for (int k = 0; k < L; ++k) {
            largest.value[k] = static_cast<T>(-INFINITY);
            place.value[k] = down.begin * p.x.size + across.begin;
        }
        for (int row = down.begin; row < down.end; ++row)
            for (int column = across.begin; column < across.end; ++column) {
                const auto next = load_vector<L>(unit + p.layout.x_offset(row, column, item.channel));
                const int here = row * p.x.size + column;
#pragma unroll
                for (int k = 0; k < L; ++k) {
                    const bool wins = next.value[k] > largest.value[k] || next.value[k] != next.value[k];
                    largest.value[k] = wins ? next.value[k] : largest.value[k];
                    place.value[k] = wins ? here : place.value[k];
                }
            }
        const std::int64_t offset =
            item.unit * p.layout.y_unit + p.layout.y_offset(item.row, item.column, item.channel);
        store_vector(p.to + offset, largest);
        constexpr int pair = L > 1 ? 2 : 1;
#pragma unroll
        for (int k = 0; k < L; k += pair) {
            Vector<std::int64_t, pair> two;
#pragma unroll
            for (int i = 0; i < pair; ++i) two.value[i] = place.value[k + i];
            store_vector(p.indices + offset + k, two);
        }
    });
}

template <class T, int L>
__global__ void __launch_bounds__(pool_threads) avg_pool_windows(const PoolParameters<T> p) {
    for_each_item(blockIdx.x, p.grid, p.items, L, [&](const PoolItem& item) {
        const Span down = p.y.window(item.row), across = p.x.window(item.column);
        const T* const unit = p.from + item.unit * p.layout.x_unit;
        Vector<T, L> sum{};
        for (int row = down.begin; row < down.end; ++row)
            for (int column = across.begin; column < across.end; ++column) {
                const auto next = load_vector<L>(unit + p.layout.x_offset(row, column, item.channel));
#pragma unroll
                for (int k = 0; k < L; ++k) sum.value[k] += next.value[k];
            }
        const T count = static_cast<T>(p.x.counted(item.column, p.count_padding)) *
                        static_cast<T>(p.y.counted(item.row, p.count_padding));
#pragma unroll
        for (int k = 0; k < L; ++k) sum.value[k] /= count;
        store_vector(p.to + item.unit * p.layout.y_unit + p.layout.y_offset(item.row, item.column, item.channel), sum);
    });
}

template <class T, int L>
__global__ void __launch_bounds__(pool_threads) avg_pool_values(const PoolParameters<T> p) {
    for_each_item(blockIdx.x, p.grid, p.items, L, [&](const PoolItem& item) {
        const Span rows = p.y.windows_with(item.row), columns = p.x.windows_with(item.column);
        const T* const unit = p.from + item.unit * p.layout.y_unit;
        Vector<T, L> sum{};
        for (int row = rows.begin; row < rows.end; ++row)
            for (int column = columns.begin; column < columns.end; ++column) {
                const auto grad = load_vector<L>(unit + p.layout.y_offset(row, column, item.channel));
                const T count = static_cast<T>(p.y.counted(row, p.count_padding)) *
                                static_cast<T>(p.x.counted(column, p.count_padding));
#pragma unroll
                for (int k = 0; k < L; ++k) sum.value[k] += grad.value[k] / count;
            }
        store_vector(p.to + item.unit * p.layout.x_unit + p.layout.x_offset(item.row, item.column, item.channel), sum);
    });
}

template <class T>
void max_pool_forward(const MaxPoolForward<T>& p, const Call& call) {
    const PoolShape& s = p.shape;
    if (s.batch * s.channels == 0) return;
    with_channel_vectors<T>(s.channels_last, s.channels, all_aligned(p.x, p.y, p.indices), [&](auto vector) {
        constexpr int L = decltype(vector)::value;
        const PoolGrid grid(s.batch, s.channels, s.channels_last, s.y.out, s.x.out, L);
        launch(&max_pool_windows<T, L>, grid_of_items(grid.items()), call.stream,
               PoolParameters<T>{WindowAxis(s.y), WindowAxis(s.x), PoolLayout(s), grid, grid.items(), false, p.x, p.y,
                                 p.indices});
    });
}

template <class T>
void avg_pool_forward(const AvgPoolForward<T>& p, const Call& call) {
    const PoolShape& s = p.shape;
    if (s.batch * s.channels == 0) return;
    with_channel_vectors<T>(s.channels_last, s.channels, all_aligned(p.x, p.y), [&](auto vector) {
        constexpr int L = decltype(vector)::value;
        const PoolGrid grid(s.batch, s.channels, s.channels_last, s.y.out, s.x.out, L);
        launch(&avg_pool_windows<T, L>, grid_of_items(grid.items()), call.stream,
               PoolParameters<T>{WindowAxis(s.y), WindowAxis(s.x), PoolLayout(s), grid, grid.items(), p.count_padding,
                                 p.x, p.y, nullptr});
    });
}

template <class T>
void avg_pool_backward(const AvgPoolBackward<T>& p, const Call& call) {
    const PoolShape& s = p.shape;
    if (s.batch * s.channels == 0) return;
    with_channel_vectors<T>(s.channels_last, s.channels, all_aligned(p.grad_y, p.grad_x), [&](auto vector) {
        constexpr int L = decltype(vector)::value;
        const PoolGrid grid(s.batch, s.channels, s.channels_last, s.y.size, s.x.size, L);
        launch(&avg_pool_values<T, L>, grid_of_items(grid.items()), call.stream,
               PoolParameters<T>{WindowAxis(s.y), WindowAxis(s.x), PoolLayout(s), grid, grid.items(), p.count_padding,
                                 p.grad_y, p.grad_x, nullptr});
    });
}

template <class T>
struct GlobalMeans {
    GlobalAvgPool<T> p;
};

// A block for each plane, or for 32 channels of an image, whose warps take every eighth pixel. The sums are in double.
template <class T>
__global__ void __launch_bounds__(256) average_planes(const GlobalMeans<T> p) {
    const T* const x = p.p.x + std::int64_t{blockIdx.x} * p.p.plane;
    double sum = 0;
    for (std::int64_t i = threadIdx.x; i < p.p.plane; i += blockDim.x) sum += static_cast<double>(x[i]);
    sum = combine_block(sum, 0.0, shared_memory<double>(), Sum());
    if (threadIdx.x == 0) p.p.y[blockIdx.x] = static_cast<T>(sum / static_cast<double>(p.p.plane));
}

template <class T>
__global__ void __launch_bounds__(256) average_channels(const GlobalMeans<T> p) {
    const std::int64_t channels = p.p.channels, groups = (channels + warp_size - 1) / warp_size;
    const std::int64_t image = blockIdx.x / groups, channel = blockIdx.x % groups * warp_size + lane_index();
    const T* const x = p.p.x + image * p.p.plane * channels;
    double sum = 0;
    for (std::int64_t i = warp_index(); i < p.p.plane && channel < channels; i += warp_count())
        sum += static_cast<double>(x[i * channels + channel]);
    double* const sums = shared_memory<double>();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() != 0 || channel >= channels) return;
    for (int w = 1; w < warp_count(); ++w) sum += sums[w * warp_size + lane_index()];
    p.p.y[image * channels + channel] = static_cast<T>(sum / static_cast<double>(p.p.plane));
}

template <class T>
void global_avg_pool(const GlobalAvgPool<T>& p, const Call& call) {
    Grid grid;
    grid.threads = static_cast<unsigned>(p.plane >= 1024 ? 256 : divide_up(p.plane, 128) * 32);
    grid.shared_bytes = 256 * sizeof(double);
    grid.x = static_cast<unsigned>(p.batch * (p.channels_last ? divide_up(p.channels, warp_size) : p.channels));
    launch(p.channels_last ? &average_channels<T> : &average_planes<T>, grid, call.stream, GlobalMeans<T>{p});
}

}  // namespace cuda
}  // namespace tbptt
