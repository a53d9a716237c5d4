// Products of large matrices: what a recurrent layer does for all steps at once. One block makes a tile of C (tiled_product.h).
// Deep products with few tiles are split over the depth: parts of a size that the problem alone decides are summed in order.
#pragma once

#include "runtime.h"
#include "tiled_product.h"

namespace tbptt {
namespace cuda {

// C [rows, columns] = A·Bᵀ over a depth. In memory A and B are [rows, depth] and [columns, depth] (along), or the transposed of
// both (across).
template <class T>
struct Product {
    using Sum = Real<T>;

    std::int64_t rows, columns, depth;
    bool along;
    const T* a;
    std::int64_t a_stride;
    const T* b;
    std::int64_t b_stride;
    const T* bias;    // [columns] or null
    const T* bias_2;  // [bias_2_count] or null, for the first columns
    std::int64_t bias_2_count;
    T* c;  // out = [rows, columns], in rows of `c_stride`
    std::int64_t c_stride;
    const int* live;  // or null; on the device: rows from here on are not looked at, and not made
    int parts;        // of the depth; found by `multiply`
    Sum* partial;     // [parts, rows, columns] where there are several
    bool pairs;       // found, too: two columns may be written at once

    TBPTT_DEVICE Sum biased(Sum value, std::int64_t column) const {
        if (bias) value += bias[column];
        if (bias_2 && column < bias_2_count) value += bias_2[column];
        return value;
    }
};

// Where a block's tile goes.
template <class T>
class ProductTarget {
    using Sum = Real<T>;

   public:
    TBPTT_DEVICE ProductTarget(const Product<T>& p, std::int64_t first_row, std::int64_t first_column)
        : p_(p),
          first_row_(first_row),
          first_column_(first_column),
          partial_(p.parts == 1 ? nullptr : p.partial + blockIdx.z * p.rows * p.columns) {}

    TBPTT_DEVICE Sum start(int) const { return Sum(0); }

    TBPTT_DEVICE std::int64_t row(int row) const { return first_row_ + row; }
    TBPTT_DEVICE void columns(std::int64_t row, int column, const Sum (&pair)[2]) const {
        const std::int64_t at = first_column_ + column;
        if (p_.pairs && row < p_.rows && at + 1 < p_.columns) {
            const Group<T, 2> values{{T(p_.biased(pair[0], at)), T(p_.biased(pair[1], at + 1))}};
            *reinterpret_cast<Group<T, 2>*>(p_.c + row * p_.c_stride + at) = values;
            return;
        }
#pragma unroll
        for (int c = 0; c < 2; ++c) put(row, first_column_ + column + c, pair[c]);
    }

    TBPTT_DEVICE std::int64_t run(int row) const { return first_row_ + row; }
    template <int N>
    TBPTT_DEVICE void rows(std::int64_t row, int column, const Sum (&values)[N]) const {
#pragma unroll
        for (int r = 0; r < N; ++r) put(row + r, first_column_ + column, values[r]);
    }

   private:
    TBPTT_DEVICE void put(std::int64_t row, std::int64_t column, Sum value) const {
        if (row >= p_.rows || column >= p_.columns) return;
        if (partial_)
            partial_[row * p_.columns + column] = value;
        else
            p_.c[row * p_.c_stride + column] = T(p_.biased(value, column));
    }

    const Product<T>& p_;
    const std::int64_t first_row_, first_column_;
    Sum* const partial_;
};

template <class Tile, bool Exact, bool Groups>
__global__ __launch_bounds__(Tile::threads, 2) void multiply_matrices(const Product<typename Tile::T> p) {
    using T = typename Tile::T;
    const std::int64_t row = std::int64_t{blockIdx.x} * Tile::rows, column = std::int64_t{blockIdx.y} * Tile::columns;
    if (p.live && row >= *p.live) return;
    const std::int64_t chunks = (p.depth + Tile::depth - 1) / Tile::depth;
    const std::int64_t begin = chunks * blockIdx.z / p.parts, end = chunks * (blockIdx.z + 1) / p.parts;
    const std::int64_t first = begin * Tile::depth, last = end * Tile::depth < p.depth ? end * Tile::depth : p.depth;
    const auto start = [&](const T* matrix, std::int64_t stride, std::int64_t at) {
        return matrix + (Tile::along ? at * stride + first : first * stride + at);
    };
    const int depth = static_cast<int>(last - first);
    MatrixLoader<Tile, Tile::rows, Groups> a(start(p.a, p.a_stride, row), p.a_stride, static_cast<int>(p.rows - row),
                                             depth);
    MatrixLoader<Tile, Tile::columns, Groups> b(start(p.b, p.b_stride, column), p.b_stride,
                                                static_cast<int>(p.columns - column), depth);
    ProductTarget<T> target(p, row, column);
    multiply_tile<Tile, Exact>(a, b, static_cast<int>(end - begin), shared_memory<T>(), target);
}

template <class T>
__global__ void sum_parts(const Product<T> p) {
    const std::int64_t size = p.rows * p.columns;
    for (std::int64_t i = global_index(); i < size; i += global_count()) {
        Real<T> sum = 0;
        for (int part = 0; part < p.parts; ++part) sum += p.partial[part * size + i];
        p.c[i / p.columns * p.c_stride + i % p.columns] = T(p.biased(sum, i % p.columns));
    }
}

template <class Tile, bool Exact>
void launch_product(Product<typename Tile::T> p, const Call& call) {
    using T = typename Tile::T;
    const std::int64_t down = divide_up(p.rows, Tile::rows), across = divide_up(p.columns, Tile::columns);
    // By the problem alone, so that sums do not depend on the device: as many blocks as a large one has places, and parts
    // that are deep enough to be worth their sum.
    constexpr std::int64_t blocks = 264, deep = 512;
    const std::int64_t wanted = blocks / (down * across), most = divide_up(p.depth, deep);
    p.parts = static_cast<int>(wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most);
    const Scratch<Real<T>> partial(p.parts > 1 ? p.parts * p.rows * p.columns : 0, call.stream);
    p.partial = partial;
    p.pairs = p.parts == 1 && p.c_stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.c) % (2 * sizeof(T)) == 0;
    Grid grid;
    grid.x = static_cast<unsigned>(down);
    grid.y = static_cast<unsigned>(across);
    grid.z = static_cast<unsigned>(p.parts);
    grid.threads = Tile::threads;
    grid.shared_bytes = Tile::shared_bytes;
    constexpr std::int64_t group = Tile::group;
    const bool whole = Tile::along ? p.depth % group == 0 : p.rows % group == 0 && p.columns % group == 0;
    const bool groups =
        whole && p.a_stride % group == 0 && p.b_stride % group == 0 && is_aligned(p.a) && is_aligned(p.b);
    launch(groups ? &multiply_matrices<Tile, Exact, true> : &multiply_matrices<Tile, Exact, false>, grid, call.stream,
           p);
    if (p.parts > 1) launch(&sum_parts<T>, grid_for(p.rows * p.columns), call.stream, p);
}

template <bool Along>
void multiply(const Product<float>& p, const Call& call) {
    using Tile = ProductTile<float, 128, 64, 64, 32, Along>;
    call.exact ? launch_product<Tile, true>(p, call) : launch_product<Tile, false>(p, call);
}

template <bool Along>
void multiply(const Product<double>& p, const Call& call) {
    launch_product<ProductTile<double, 64, 64, 32, 32, Along>, true>(p, call);
}

template <bool Along>
void multiply(const Product<Bfloat16>& p, const Call& call) {
    launch_product<ProductTile<Bfloat16, 128, 128, 64, 64, Along>, true>(p, call);
}

// c = a·bᵀ and biases.
template <class T>
void multiply(const Product<T>& p, const Call& call) {
    if (p.rows == 0 || p.columns == 0) return;
    p.along ? multiply<true>(p, call) : multiply<false>(p, call);
}

}  // namespace cuda
}  // namespace tbptt
