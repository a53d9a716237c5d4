// The walk of a grid of clusters (compute capability 9.0) whose blocks share the depth of a product. A block has room for so many
// weights and no more: those of few units and the whole depth, for which it reads the whole of each row at every step (in the
// backward pass the gradients of all gates), or those of more units and a slice of the depth, for which it reads a slice of
// each row. Then sums meet in the cluster, which costs less.
#pragma once

#include "recurrent_grid.h"

namespace tbptt {
namespace cuda {

// Where blocks read less than this at a step, two barriers of a cluster cost more.
constexpr std::int64_t worth_slices = 128 << 10;

template <bool Few>
struct SliceShapes {
    using Forward = WalkShape<1, 4, Few ? 8 : 2, 4>;
    using Backward = WalkShape<1, 8, Few ? 8 : 2, 8>;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool has_clusters = true;
#else
constexpr bool has_clusters = false;
#endif

template <class T, class Shape, int Gates, bool Exact, class Pass>
TBPTT_DEVICE void walk_in_slices(const WalkProduct<T>& p, const Pass& pass) {
    if constexpr (has_clusters) walk_in_grid<T, Shape, Gates, Exact>(p, pass);
}

// Whether a layer's walk is one for such clusters, and how it is laid out; rows: if masks cut nothing.
template <class T, class Shape, int Gates>
bool plan_slices(const void* kernel, WalkProduct<T>& p, std::int64_t rows, Grid& grid) {
    if (current_device().capability < 90 || !p.aligned || rows > most_rows_of_shapes) return false;
    if (rows * p.depth * static_cast<std::int64_t>(sizeof(T)) < worth_slices) return false;
    const std::int64_t stride = BlockWeights<T>::stride(Slice<T, Shape::slices>::size(p.depth)),
                       across = divide_up(p.hidden, Shape::units);
    grid.threads = walk_threads;
    grid.together = p.waits();
    grid.cluster = Shape::slices;
    grid.shared_bytes =
        parts_bytes<T, Shape, Gates> + static_cast<std::size_t>(Gates * Shape::units * stride) * sizeof(T);
    if (grid.shared_bytes > current_device().shared_bytes) return false;
    const std::int64_t clusters = clusters_together(kernel, grid);
    if (clusters < across) return false;
    share_tiles(grid, across, divide_up(rows, Shape::rows), clusters);
    grid.x *= grid.cluster;
    p.resident = true;
    return true;
}

}  // namespace cuda
}  // namespace tbptt
