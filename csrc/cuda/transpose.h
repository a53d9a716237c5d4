// Matrices with rows and columns exchanged, by way of shared memory.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

template <class T>
struct Transposition {
    std::int64_t rows, columns;
    const T* from;          // [rows, columns]
    std::int64_t rotation;  // of the rows: row r of `from` is column (r + rotation) % rows of `to`
    T* to;                  // out = [columns, rows]
};

template <class T>
__global__ void transpose(const Transposition<T> p) {
    constexpr int side = 32;
    T* tile = shared_memory<T>();  // [side][side + 1]
    const std::int64_t row = std::int64_t{blockIdx.x} * side, column = std::int64_t{blockIdx.y} * side;
    for (int i = static_cast<int>(threadIdx.x); i < side * side; i += static_cast<int>(blockDim.x)) {
        const std::int64_t r = row + i / side, c = column + i % side;
        if (r < p.rows && c < p.columns) tile[i / side * (side + 1) + i % side] = p.from[r * p.columns + c];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < side * side; i += static_cast<int>(blockDim.x)) {
        const std::int64_t r = row + i % side, c = column + i / side;
        if (r < p.rows && c < p.columns)
            p.to[c * p.rows + (r + p.rotation) % p.rows] = tile[i % side * (side + 1) + i / side];
    }
}

template <class T>
void turn(const Transposition<T>& p, const Call& call) {
    constexpr int side = 32;
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(p.rows, side));
    grid.y = static_cast<unsigned>(divide_up(p.columns, side));
    grid.shared_bytes = side * (side + 1) * sizeof(T);
    launch(&transpose<T>, grid, call.stream, p);
}

}  // namespace cuda
}  // namespace tbptt
