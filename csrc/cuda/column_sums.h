// Sums over the rows of a matrix: the gradients of biases.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

template <class T>
struct ColumnSums {
    std::int64_t rows, columns;
    const T* matrix;  // [rows, columns], in rows of `stride`
    std::int64_t stride;
    T* sums;           // out = [columns]
    int parts;         // of the rows
    Real<T>* partial;  // [parts, columns] where there are several
};

// One thread a column, one row of blocks a part.
template <class T>
__global__ void sum_columns(const ColumnSums<T> p) {
    const std::int64_t begin = p.rows * blockIdx.y / p.parts, end = p.rows * (blockIdx.y + 1) / p.parts;
    const std::int64_t column = global_index();
    if (column >= p.columns) return;
    Real<T> sum = 0;
    for (std::int64_t row = begin; row < end; ++row) sum += p.matrix[row * p.stride + column];
    if (p.parts == 1)
        p.sums[column] = T(sum);
    else
        p.partial[blockIdx.y * p.columns + column] = sum;
}

template <class T>
__global__ void sum_column_parts(const ColumnSums<T> p) {
    const std::int64_t column = global_index();
    if (column >= p.columns) return;
    Real<T> sum = 0;
    for (int part = 0; part < p.parts; ++part) sum += p.partial[part * p.columns + column];
    p.sums[column] = T(sum);
}

// `parts` and `partial` are found here, by the problem alone.
template <class T>
void add_columns(ColumnSums<T> p, const Call& call) {
    constexpr std::int64_t rows_a_part = 128, most = 256;
    const std::int64_t parts = divide_up(p.rows, rows_a_part);
    p.parts = static_cast<int>(parts < 1 ? 1 : parts < most ? parts : most);
    const Scratch<Real<T>> partial(p.parts > 1 ? p.parts * p.columns : 0, call.stream);
    p.partial = partial;
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(p.columns, grid.threads));
    grid.y = static_cast<unsigned>(p.parts);
    launch(&sum_columns<T>, grid, call.stream, p);
    grid.y = 1;
    if (p.parts > 1) launch(&sum_column_parts<T>, grid, call.stream, p);
}

}  // namespace cuda
}  // namespace tbptt
