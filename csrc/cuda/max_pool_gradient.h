// The gradient of max-pooling from the places of the maxima alone, whatever they are.
//
// A value has to know which windows may point at it. The first launch finds how far the maxima lie from where a window would
// begin if windows were a whole stride apart; the second fetches from all windows within that reach. For the indices that
// pooling makes, that is little more than the windows with the value in them; for any others it is slower, not wrong.
#pragma once

#include "pooling.h"

namespace tbptt {
namespace cuda {

// Of the distances of maxima from their windows' starts, along y and x: minus the least, and the largest; then whether an
// index lies beyond its plane. All are the largest of their kind.
struct Reach {
    int y_before, y_behind, x_before, x_behind, outside;
};

TBPTT_DEVICE Reach no_reach() {
    constexpr int least = -2147483647;
    return {least, least, least, least, 0};
}

TBPTT_DEVICE Reach join(const Reach& a, const Reach& b) {
    const Larger larger_of;
    return {larger_of(a.y_before, b.y_before), larger_of(a.y_behind, b.y_behind), larger_of(a.x_before, b.x_before),
            larger_of(a.x_behind, b.x_behind), larger_of(a.outside, b.outside)};
}

TBPTT_DEVICE Reach join_block(const Reach& a) {
    const Reach none = no_reach();
    const auto join_one = [](int value, int nothing) {
        return combine_block(value, nothing, shared_memory<int>(), Larger());
    };
    return {join_one(a.y_before, none.y_before), join_one(a.y_behind, none.y_behind),
            join_one(a.x_before, none.x_before), join_one(a.x_behind, none.x_behind),
            join_one(a.outside, none.outside)};
}

constexpr unsigned reach_blocks = 512;  // their parts are read by every block of the second launch

template <class Index>
struct ReachParameters {
    const Index* indices;
    PoolGrid grid;  // of the windows
    std::int64_t items, plane;
    Divider width;  // of the plane
    int stride_y, stride_x;
    Reach* parts;  // out = of each block
};

template <class Index>
__global__ void __launch_bounds__(pool_threads) find_reach(const ReachParameters<Index> p) {
    Reach reach = no_reach();
    for (std::int64_t first = blockIdx.x * pool_items; first < p.items; first += gridDim.x * pool_items) {
        const Places places(first, p.grid.unit);
        for (std::uint32_t i = threadIdx.x; i < pool_items && first + i < p.items; i += pool_threads) {
            const std::uint32_t pixel = p.grid.depth.quotient(places[i].column);
            const int row = static_cast<int>(p.grid.columns.quotient(pixel));
            const int column = static_cast<int>(pixel) - row * static_cast<int>(p.grid.columns.divisor);
            const Index index = p.indices[first + i];
            if (index < 0 || index >= p.plane) {
                reach.outside = 1;
                continue;
            }
            const int y = static_cast<int>(p.width.quotient(static_cast<std::uint32_t>(index)));
            const int x = static_cast<int>(index) - y * static_cast<int>(p.width.divisor);
            const int down = y - row * p.stride_y, across = x - column * p.stride_x;
            reach = join(reach, {-down, down, -across, across, 0});
        }
    }
    reach = join_block(reach);
    if (threadIdx.x == 0) p.parts[blockIdx.x] = reach;
}

template <class T>
struct MaxPoolGather {
    WindowAxis y, x;  // kernel and before are found on the device
    PoolLayout layout;
    PoolGrid grid;  // of the values
    std::int64_t items;
    const Reach* parts;
    int part_count;
    const T* grad_y;
    const std::int64_t* indices;
    T* grad_x;
    bool* outside;
};

template <class T, int L>
__global__ void __launch_bounds__(pool_threads, 3) max_pool_values(const MaxPoolGather<T> p) {
    Reach reach = no_reach();
    for (int i = static_cast<int>(threadIdx.x); i < p.part_count; i += static_cast<int>(blockDim.x))
        reach = join(reach, p.parts[i]);
    reach = join_block(reach);
    if (global_index() == 0) *p.outside = reach.outside != 0;
    WindowAxis y = p.y, x = p.x;
    y.before = reach.y_before;
    y.kernel = static_cast<std::uint32_t>(y.before) + static_cast<std::uint32_t>(reach.y_behind) + 1;
    x.before = reach.x_before;
    x.kernel = static_cast<std::uint32_t>(x.before) + static_cast<std::uint32_t>(reach.x_behind) + 1;
    const T start = reach.outside ? not_a_number<T>() : T{0};
    for (std::int64_t block = blockIdx.x; block * pool_items < p.items; block += gridDim.x)
        for_each_item(block, p.grid, p.items, L, [&](const PoolItem& item) {
            const Span rows = y.windows_with(item.row), columns = x.windows_with(item.column);
            const std::int64_t* const indices = p.indices + item.unit * p.layout.y_unit;
            const T* const grad_y = p.grad_y + item.unit * p.layout.y_unit;
            const std::int64_t place = item.row * x.size + item.column;
            Vector<T, L> sum;
#pragma unroll
            for (int k = 0; k < L; ++k) sum.value[k] = start;
            for (int row = rows.begin; row < rows.end; ++row)
                for (int column = columns.begin; column < columns.end; ++column) {
                    const int window = p.layout.y_offset(row, column, item.channel);
#pragma unroll
                    for (int k = 0; k < L; ++k)
                        if (indices[window + k] == place) sum.value[k] += grad_y[window + k];
                }
            store_vector(
                p.grad_x + item.unit * p.layout.x_unit + p.layout.x_offset(item.row, item.column, item.channel), sum);
        });
}

inline std::int64_t whole_stride(std::int64_t size, std::int64_t windows) {
    return size > windows && windows > 0 ? size / windows : 1;
}

template <class T>
void max_pool_backward(const MaxPoolBackward<T>& p, std::int64_t plane_width, std::int64_t window_width,
                       const Call& call) {
    const std::int64_t rows = p.plane / plane_width, window_rows = p.windows / window_width;
    const PoolAxis y{rows, 1, whole_stride(rows, window_rows), 0, 0, window_rows};
    const PoolAxis x{plane_width, 1, whole_stride(plane_width, window_width), 0, 0, window_width};
    if (p.batch * p.channels == 0) return set_bytes(p.outside, 0, sizeof(bool), call.stream);

    const PoolGrid windows(p.batch, p.channels, p.channels_last, window_rows, window_width, 1);
    Grid grid = grid_of_items(windows.items());
    grid.x = grid.x < reach_blocks ? grid.x : reach_blocks;
    grid.shared_bytes = 32 * sizeof(int);
    const Scratch<Reach> parts(grid.x, call.stream);
    launch(&find_reach<std::int64_t>, grid, call.stream,
           ReachParameters<std::int64_t>{p.indices, windows, windows.items(), p.plane, Divider(plane_width),
                                         static_cast<int>(y.stride), static_cast<int>(x.stride), parts});

    const auto part_count = static_cast<int>(grid.x);
    with_channel_vectors<T>(p.channels_last, p.channels, all_aligned(p.grad_x), [&](auto vector) {
        constexpr int L = decltype(vector)::value;
        const PoolGrid values(p.batch, p.channels, p.channels_last, rows, plane_width, L);
        Grid shared = grid_of_items(values.items());
        const auto most = 8 * static_cast<unsigned>(current_device().multiprocessors);
        shared.x = shared.x < most ? shared.x : most;
        shared.shared_bytes = 32 * sizeof(int);
        const PoolLayout layout(p.channels_last ? p.channels : 1, rows, plane_width, window_rows, window_width);
        launch(&max_pool_values<T, L>, shared, call.stream,
               MaxPoolGather<T>{WindowAxis(y), WindowAxis(x), layout, values, values.items(), parts, part_count,
                                p.grad_y, p.indices, p.grad_x, p.outside});
    });
}

}  // namespace cuda
}  // namespace tbptt
