// The walk of clusters (compute capability 9.0): few rows, and a layer whose weights fit into the shared memory of at most 16
// blocks. What a step leaves stays in the shared memory of the block that made it, where the others read it; the barrier of a
// cluster is several times as fast as one of the grid, and clusters need not be at work at the same time.
#pragma once

#include "recurrent.h"

namespace tbptt {
namespace cuda {

template <int UnitTiles>
using ClusterShape = WalkShape<1, UnitTiles, walk_warps>;
constexpr int most_blocks_of_cluster = 16;

// What the rows of a tile left, [2, by the lag's parity][rows][Left][units] in each block.
template <class Shape, int Left>
struct ClusterPanel {
    static constexpr int units = Shape::units, size = Shape::rows * Left * units;

    static TBPTT_DEVICE int place(int lag, int row, int left) {
        return (lag % 2 * Shape::rows + row) * Left * units + left * units;
    }
};

// The rows of a tile, from the blocks that made them. Before the first step: from the memory of the device.
template <class T, class Shape, int Left>
class RowsInCluster {
    using Panel = ClusterPanel<Shape, Left>;

   public:
    static constexpr bool always_near = true;

    template <class Pass>
    TBPTT_DEVICE RowsInCluster(const WalkProduct<T>& p, const Pass& pass, const WalkTile& at, T* panel)
        : initial_(p, pass, at),
          panel_(panel),
          lag_(at.lag),
          rows_(at.live - at.first_row),
          hidden_(static_cast<int>(p.hidden)),
          depth_(static_cast<int>(p.depth)) {}

    TBPTT_DEVICE bool any() const { return lag_ > 0 || initial_.any(); }

    template <bool Near>
    TBPTT_DEVICE Four<T> load(int, int half, std::int64_t k) const {
        const int row = half * 8 + lane_index() / 4, at = static_cast<int>(k);
        if (lag_ == 0) return initial_.template load<Near>(0, half, k);
        if (row >= rows_ || at >= depth_) return Four<T>{};
        const int left = Left == 1 ? 0 : at / hidden_, unit = at - left * hidden_;
        const T* values = panel_ + Panel::place(lag_ - 1, row, left) + unit % Panel::units;
        return load_aligned(in_block(values, unit / Panel::units));
    }

   private:
    const RowsInMemory<T, Shape> initial_;
    T* const panel_;
    const int lag_, rows_, hidden_, depth_;
};

template <class T, class Shape, int Gates, bool Exact, class Pass>
TBPTT_DEVICE void walk_in_cluster(const WalkProduct<T>& p, const Pass& pass) {
    using Source = RowsInCluster<T, Shape, Pass::left>;
    using Panel = ClusterPanel<Shape, Pass::left>;
    const TileWork<T, Shape, Gates, Exact, Pass> work(p, pass);
    T* const panel = work.free_memory();
    const int first_unit = static_cast<int>(blockIdx.x) * Shape::units;
    // Units behind the last are read, though they meet no weights.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * Panel::size; i += walk_threads) panel[i] = T(0);
    __syncthreads();
    for (int first = static_cast<int>(blockIdx.y) * Shape::rows; first < p.rows.live(0);
         first += static_cast<int>(gridDim.y) * Shape::rows) {
        for (int lag = 0;; ++lag) {
            const WalkTile at{lag, p.rows.live(lag), first, first_unit};
            if (at.live <= first) break;
            const auto wait_for = [&] {
                const Source source(p, pass, at, panel);
                if (lag > 0) wait_for_cluster();
                return source;
            };
            const auto keep = [&](int row, int unit, const Real<T>(&left)[Pass::left]) {
#pragma unroll
                for (int l = 0; l < Pass::left; ++l) panel[Panel::place(lag, row, l) + unit] = T(left[l]);
            };
            work.by_block(at, wait_for, keep);
        }
        // The next tile writes where others may still read; and no block leaves before it was read.
        wait_for_cluster();
    }
}

// Whether a layer's walk is one for clusters, and how it is laid out; rows: if masks cut nothing.
template <class T, class Shape, int Gates, int Left>
bool plan_cluster(const void* kernel, WalkProduct<T>& p, std::int64_t rows, Grid& grid) {
    const std::int64_t blocks = divide_up(p.hidden, Shape::units), tiles = divide_up(rows, Shape::rows);
    if (current_device().capability < 90 || p.together || !p.aligned || blocks > most_blocks_of_cluster) return false;
    // More tiles than the device takes at once are better off where weights are shared by more rows.
    if (blocks * tiles > 2 * current_device().multiprocessors) return false;
    const std::int64_t values =
        Gates * Shape::units * BlockWeights<T>::stride(p.depth) + 2 * ClusterPanel<Shape, Left>::size;
    grid.threads = walk_threads;
    grid.shared_bytes = static_cast<std::size_t>(values) * sizeof(T) + parts_bytes<T, Shape, Gates>;
    grid.x = grid.cluster = static_cast<unsigned>(blocks);
    grid.y = static_cast<unsigned>(tiles);
    if (grid.shared_bytes > current_device().shared_bytes || clusters_together(kernel, grid) < 1) return false;
    p.resident = true;
    return true;
}

}  // namespace cuda
}  // namespace tbptt
