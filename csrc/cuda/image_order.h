// Images from planes to channels together, and back: a transposition of each.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

// Rows of a grid for so many images; kernels stride by `gridDim.y`.
inline unsigned rows_for(std::int64_t images) { return static_cast<unsigned>(images < 65535 ? images : 65535); }

template <class T>
struct ImageTurn {
    std::int64_t images;
    int rows, columns;  // of `from`: channels and pixels, or pixels and channels
    const T* from;      // [images, rows, columns]
    T* to;              // out = [images, columns, rows]
};

constexpr int turn_side = 32;  // of a tile in shared memory, whose lines are one longer: both ways meet all banks

template <class T>
__global__ void turn_tiles(const ImageTurn<T> p) {
    constexpr int side = turn_side, line = side + 1;
    T* tile = shared_memory<T>();
    const int across = (p.columns + side - 1) / side, threads = static_cast<int>(blockDim.x);
    const int row = static_cast<int>(blockIdx.x) / across * side, column = static_cast<int>(blockIdx.x) % across * side;
    for (std::int64_t image = blockIdx.y; image < p.images; image += gridDim.y) {
        const std::int64_t first = image * p.rows * p.columns;
        for (int i = static_cast<int>(threadIdx.x); i < side * side; i += threads) {
            const int r = row + i / side, c = column + i % side;
            if (r < p.rows && c < p.columns)
                tile[i / side * line + i % side] = p.from[first + std::int64_t{r} * p.columns + c];
        }
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < side * side; i += threads) {
            const int r = row + i % side, c = column + i / side;
            if (r < p.rows && c < p.columns)
                p.to[first + std::int64_t{c} * p.rows + r] = tile[i % side * line + i / side];
        }
        __syncthreads();
    }
}

// to [images, pixels, channels] of planes [images, channels, pixels] or, not `to_last`, the other way.
template <class T>
void turn_images(std::int64_t images, int pixels, int channels, const T* from, T* to, bool to_last, Stream stream) {
    const ImageTurn<T> p{images, to_last ? channels : pixels, to_last ? pixels : channels, from, to};
    Grid grid;
    grid.x = static_cast<unsigned>(divide_up(p.rows, turn_side) * divide_up(p.columns, turn_side));
    grid.y = rows_for(images);
    grid.shared_bytes = turn_side * (turn_side + 1) * sizeof(T);
    launch(&turn_tiles<T>, grid, stream, p);
}

}  // namespace cuda
}  // namespace tbptt
