// Products of large matrices: the convolution-free rest of a recurrent layer, whose rows are all steps at once.
//
// One block makes a tile of C, in strips of the depth that it reads into shared memory while it multiplies the strip before.
// Deep products with few tiles are split over the depth: parts of a size that the problem alone decides are summed in order.
#pragma once

#include "runtime.h"
#include "tensor_cores.h"

namespace tbptt {
namespace cuda {

// A matrix [rows, depth] in any order. Entry k of the depth is stored at (k + rotation) % depth.
template <class T>
struct Operand {
    const T* data;
    std::int64_t row_stride, depth_stride, rotation = 0;
};

template <class T>
struct Product {
    std::int64_t rows, columns, depth;
    Operand<T> a;     // [rows, depth]
    Operand<T> b;     // [columns, depth]
    const T* bias;    // [columns] or null
    const T* bias_2;  // [bias_2_count] or null, for the first columns
    std::int64_t bias_2_count;
    T* c;  // out = [rows, columns], in rows of `c_stride`
    std::int64_t c_stride;
    int parts;   // of the depth
    T* partial;  // [parts, rows, columns] where there are several
};

// The shape of a block's tile, and of a warp's in it.
template <class T>
struct ProductTile {
    static constexpr int rows = 128, columns = 64, depth = sizeof(T) == 4 ? 16 : 8, threads = 256;
    static constexpr int warps_down = 4, warps_across = 2;
    static constexpr int row_tiles = rows / warps_down / tile_rows,
                         column_tiles = columns / warps_across / tile_columns;
    static constexpr int stride = depth + 4;  // rows of fragments then lie in different banks
    static constexpr int strip = (rows + columns) * stride;
    static constexpr std::size_t shared_bytes = 2 * strip * sizeof(T);
};

// A strip of an operand on its way through registers to shared memory.
template <class T, int Rows>
struct Strip {
    using Tile = ProductTile<T>;
    static constexpr int each = Rows * Tile::depth / Tile::threads;
    T values[each];

    // Threads follow the direction in which the memory goes on.
    static TBPTT_DEVICE void find(const Operand<T>& from, int i, int& row, int& k) {
        const int index = static_cast<int>(threadIdx.x) + i * Tile::threads;
        const bool along_depth = from.depth_stride == 1;
        row = along_depth ? index / Tile::depth : index % Rows;
        k = along_depth ? index % Tile::depth : index / Rows;
    }

    TBPTT_DEVICE void read(const Operand<T>& from, std::int64_t first_row, std::int64_t rows, std::int64_t first_k,
                           std::int64_t end_k, std::int64_t depth) {
#pragma unroll
        for (int i = 0; i < each; ++i) {
            int row, k;
            find(from, i, row, k);
            std::int64_t at = first_k + k;
            const bool inside = first_row + row < rows && at < end_k;
            at += from.rotation;
            if (at >= depth) at -= depth;
            values[i] = inside ? from.data[(first_row + row) * from.row_stride + at * from.depth_stride] : T(0);
        }
    }

    TBPTT_DEVICE void write(const Operand<T>& from, T* to) const {
#pragma unroll
        for (int i = 0; i < each; ++i) {
            int row, k;
            find(from, i, row, k);
            to[row * Tile::stride + k] = values[i];
        }
    }
};

template <class T, bool Exact>
__global__ __launch_bounds__(256, Exact ? 1 : 2) void multiply_matrices(const Product<T> p) {
    using Tile = ProductTile<T>;
    T* shared = shared_memory<T>();
    const std::int64_t first_row = std::int64_t{blockIdx.x} * Tile::rows,
                       first_column = std::int64_t{blockIdx.y} * Tile::columns;
    const std::int64_t strips = (p.depth + Tile::depth - 1) / Tile::depth;
    const std::int64_t begin = strips * blockIdx.z / p.parts, end = strips * (blockIdx.z + 1) / p.parts;
    const int g = lane_index() / 4, t = lane_index() % 4;
    const int row = warp_index() % Tile::warps_down * Tile::row_tiles * tile_rows,
              column = warp_index() / Tile::warps_down * Tile::column_tiles * tile_columns;

    T sums[Tile::row_tiles][Tile::column_tiles][4] = {};
    Strip<T, Tile::rows> a;
    Strip<T, Tile::columns> b;
    const auto read = [&](std::int64_t strip) {
        a.read(p.a, first_row, p.rows, strip * Tile::depth, p.depth, p.depth);
        b.read(p.b, first_column, p.columns, strip * Tile::depth, p.depth, p.depth);
    };
    const auto write = [&](T* to) {
        a.write(p.a, to);
        b.write(p.b, to + Tile::rows * Tile::stride);
    };
    if (begin < end) {
        read(begin);
        write(shared);
    }
    __syncthreads();
    for (std::int64_t strip = begin; strip < end; ++strip) {
        const T* from = shared + (strip - begin) % 2 * Tile::strip;
        if (strip + 1 < end) read(strip + 1);
        const T* rows = from + row * Tile::stride;
        const T* columns = from + (Tile::rows + column) * Tile::stride;
#pragma unroll
        for (int k = 0; k < Tile::depth; k += tile_depth) {
            T left[Tile::row_tiles][4], right[Tile::column_tiles][2];
#pragma unroll
            for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
                for (int v = 0; v < 4; ++v)
                    left[i][v] = rows[(i * tile_rows + g + v % 2 * 8) * Tile::stride + k + t + v / 2 * 4];
#pragma unroll
            for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
                for (int v = 0; v < 2; ++v)
                    right[j][v] = columns[(j * tile_columns + g) * Tile::stride + k + t + v * 4];
#pragma unroll
            for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
                for (int j = 0; j < Tile::column_tiles; ++j) multiply_add<Exact>(sums[i][j], left[i], right[j]);
        }
        if (strip + 1 < end) write(shared + (strip + 1 - begin) % 2 * Tile::strip);
        __syncthreads();
    }

    const bool whole = p.parts == 1;
    T* to = whole ? p.c : p.partial + blockIdx.z * p.rows * p.columns;
    const std::int64_t stride = whole ? p.c_stride : p.columns;
#pragma unroll
    for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
        for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const std::int64_t r = first_row + row + i * tile_rows + g + v / 2 * 8,
                                   c = first_column + column + j * tile_columns + 2 * t + v % 2;
                if (r >= p.rows || c >= p.columns) continue;
                T value = sums[i][j][v];
                if (whole && p.bias) value += p.bias[c];
                if (whole && p.bias_2 && c < p.bias_2_count) value += p.bias_2[c];
                to[r * stride + c] = value;
            }
}

template <class T>
__global__ void sum_parts(const Product<T> p) {
    const std::int64_t size = p.rows * p.columns;
    for (std::int64_t i = global_index(); i < size; i += global_count()) {
        const std::int64_t column = i % p.columns;
        T sum = 0;
        for (int part = 0; part < p.parts; ++part) sum += p.partial[part * size + i];
        if (p.bias) sum += p.bias[column];
        if (p.bias_2 && column < p.bias_2_count) sum += p.bias_2[column];
        p.c[i / p.columns * p.c_stride + column] = sum;
    }
}

// c = a·bᵀ + biases; `parts` and `partial` are found here.
template <class T>
void multiply(Product<T> p, const Call& call) {
    using Tile = ProductTile<T>;
    if (p.rows == 0 || p.columns == 0) return;
    const std::int64_t down = divide_up(p.rows, Tile::rows), across = divide_up(p.columns, Tile::columns);
    // By the problem alone, so that sums do not depend on the device: as many blocks as a large one has places, and parts
    // that are deep enough to be worth their sum.
    constexpr std::int64_t blocks = 264, deep = 512;
    const std::int64_t wanted = blocks / (down * across), most = divide_up(p.depth, deep);
    p.parts = static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most < 1 ? 1 : most);
    const Scratch<T> partial(p.parts > 1 ? p.parts * p.rows * p.columns : 0, call.stream);
    p.partial = partial;
    Grid grid;
    grid.x = static_cast<unsigned>(down);
    grid.y = static_cast<unsigned>(across);
    grid.z = static_cast<unsigned>(p.parts);
    grid.threads = Tile::threads;
    grid.shared_bytes = Tile::shared_bytes;
    launch(choose_kernel(call, &multiply_matrices<T, true>, &multiply_matrices<T, !is_single<T>>), grid, call.stream,
           p);
    if (p.parts > 1) launch(&sum_parts<T>, grid_for(p.rows * p.columns), call.stream, p);
}

}  // namespace cuda
}  // namespace tbptt
