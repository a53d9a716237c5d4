// The walk of a grid whose blocks are all at work. Blocks with all units make a group; a group has every n-th tile of rows, and
// waits for its own blocks alone, as no row needs what another group makes.
#pragma once

#include "recurrent.h"
#include "runtime.h"

namespace tbptt {
namespace cuda {

// Waits for the step before, of the blocks whose rows it has to do with.
template <class T>
TBPTT_DEVICE void wait_for_step(const WalkProduct<T>& p, int lag) {
    if (p.together)
        wait_for_blocks(p.arrived, gridDim.x * gridDim.y, static_cast<unsigned>(lag));
    else
        wait_for_blocks(p.arrived + blockIdx.y, gridDim.x, static_cast<unsigned>(lag));
}

// The walk of a grid whose blocks are all at work: steps meet in the memory of the device.
template <class T, class Shape, int Gates, bool Exact, class Pass>
TBPTT_DEVICE void walk_in_grid(const WalkProduct<T>& p, const Pass& pass) {
    using Source = RowsInMemory<T, Shape>;
    const TileWork<T, Shape, Gates, Exact, Pass> work(p, pass);
    const int unit_blocks = (static_cast<int>(p.hidden) + Shape::units - 1) / Shape::units;
    for (int lag = 0;; ++lag) {
        const int live = p.rows.live(lag);
        if (live == 0) break;
        bool waits = lag > 0;
        const auto wait = [&] {
            if (waits) wait_for_step(p, lag);
            waits = false;
        };
        for (int block = static_cast<int>(blockIdx.x) / Shape::slices; block < unit_blocks;
             block += static_cast<int>(gridDim.x) / Shape::slices)
            for (int first = static_cast<int>(blockIdx.y) * Shape::rows; first < live;
                 first += static_cast<int>(gridDim.y) * Shape::rows) {
                const WalkTile at{lag, live, first, block * Shape::units};
                const auto wait_for = [&] {
                    const Source source(p, pass, at);  // where rows lie is known before they are made
                    wait();
                    return source;
                };
                work.by_block(at, wait_for, [](int, int, const Real<T>*) {});
            }
        wait();
    }
}

// The most groups that a walk may have, for their counters.
constexpr std::int64_t most_groups = 1024;

// Shares tiles of units (across) and rows (down) out among at most so many blocks: groups of those that have all units.
inline void share_tiles(Grid& grid, std::int64_t across, std::int64_t down, std::int64_t most) {
    grid.x = static_cast<unsigned>(across < most ? across : most);
    const std::int64_t groups = most / grid.x < most_groups ? most / grid.x : most_groups;
    grid.y = static_cast<unsigned>(groups < down ? groups : down);
}

// How a walk is laid out on the current device: each block keeps the weights of its units if they fit and no block has more
// units than those. Rows: as many as there are if masks cut nothing.
template <class T, class Shape, int Gates>
Grid plan_walk(const void* kernel, WalkProduct<T>& p, std::int64_t rows) {
    const std::size_t weights =
        static_cast<std::size_t>(Gates * Shape::units * BlockWeights<T>::stride(p.depth)) * sizeof(T);
    const std::int64_t unit_blocks = divide_up(p.hidden, Shape::units), row_blocks = divide_up(rows, Shape::rows);
    Grid grid;
    grid.threads = walk_threads;
    grid.together = p.waits();
    grid.shared_bytes = parts_bytes<T, Shape, Gates> + weights;
    p.resident = grid.shared_bytes <= current_device().shared_bytes &&
                 unit_blocks <= blocks_together(kernel, grid.threads, grid.shared_bytes);
    if (!p.resident) grid.shared_bytes -= weights;
    const std::int64_t most = blocks_together(kernel, grid.threads, grid.shared_bytes);
    if (most < 1) throw std::runtime_error("a recurrent layer's kernel does not fit on this device");
    share_tiles(grid, unit_blocks, row_blocks, most);
    return grid;
}

}  // namespace cuda
}  // namespace tbptt
