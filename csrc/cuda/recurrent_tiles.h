// The walk of many rows, or of weights that no block can keep: a step is a product of large matrices, tile by tile through shared
// memory (tiled_product.h), with the cell behind each tile. One launch has all steps: the barrier between two of them costs what
// the boundary between two kernels would, groups wait for their own blocks alone, and the lengths of segments stay on the device.
#pragma once

#include "recurrent_grid.h"
#include "tiled_product.h"

namespace tbptt {
namespace cuda {

// A tile has some units with all gates of each, gate by gate. Split values and doubles need the registers of two.
template <class T, int Gates, bool Exact>
struct WalkTiles {
    static constexpr bool light = !Exact || is_narrow<T>;
    static constexpr int side = light ? 64 : 32;
    using Tile = std::conditional_t<
        Gates == 4, ProductTile<T, 2 * side, 96, side, 48, true>,
        std::conditional_t<Gates == 3, ProductTile<T, 64, 192, side, 48, true>, ProductTile<T, 128, 64, 32, 32, true>>>;
    static constexpr int blocks = light ? 2 : 1;  // of a multiprocessor, for which registers suffice
};
template <int Gates, bool Exact>
struct WalkTiles<double, Gates, Exact> {
    using Tile = ProductTile<double, 64, Gates == 3 ? 96 : 64, 32, Gates == 3 ? 48 : 32, true>;
    static constexpr int blocks = 1;
};

// The weights in the order of tiles [tiles, gates, units, depth], zeros for units behind the last.
template <class T>
struct TileOrder {
    std::int64_t hidden, depth, columns;  // all tiles'
    const T* from;                        // [gates · H, depth]
    T* to;                                // out = [columns, depth]
};

template <class T, int Gates, int Units>
__global__ void order_by_tiles(const TileOrder<T> p) {
    for (std::int64_t i = global_index(); i < p.columns * p.depth; i += global_count()) {
        const std::int64_t column = i / p.depth, tile = column / (Gates * Units), in_tile = column % (Gates * Units),
                           unit = tile * Units + in_tile % Units;
        p.to[i] = unit < p.hidden ? p.from[(in_tile / Units * p.hidden + unit) * p.depth + i % p.depth] : T(0);
    }
}

// The loader of rows that may lie anywhere, in whole groups; zeros for a row that is nowhere.
template <class Tile, class Row>
class RowsLoader {
   public:
    using T = typename Tile::T;

    TBPTT_DEVICE RowsLoader(const Row* rows, int depth) : rows_(rows), depth_(depth) {}

    TBPTT_DEVICE void load(T* panel, int chunk) const {
        const int k = chunk * Tile::depth + in_line();
#pragma unroll
        for (int i = 0; i < Tile::rows / lines_at_once; ++i) {
            const int row = line() + i * lines_at_once;
            const T* source = rows_[row].source;
            const bool valid = source && k < depth_;
            copy_async<Group<T>>(panel + Tile::Left::place(row, in_line()), valid ? source + k : nullptr, valid);
        }
    }

   private:
    static constexpr int accesses = Tile::depth / Group<T>::size, lines_at_once = Tile::threads / accesses;
    static_assert(Tile::rows % lines_at_once == 0 && Tile::threads % accesses == 0, "threads");

    static TBPTT_DEVICE int in_line() { return static_cast<int>(threadIdx.x) % accesses * Group<T>::size; }
    static TBPTT_DEVICE int line() { return static_cast<int>(threadIdx.x) / accesses; }

    const Row* rows_;
    const int depth_;
};

// A tile's sums [rows, columns] in shared memory, where cells find all gates of a unit and neighbours in memory are neighbours
// among threads. Columns are turned so that the lanes that write lie in different banks.
template <class Tile>
class TileSums {
   public:
    using Sum = Real<typename Tile::T>;
    static constexpr std::size_t bytes = std::size_t{Tile::rows} * Tile::columns * sizeof(Sum);
    static_assert(Tile::columns % 32 == 0, "turned within 32");

    explicit TBPTT_DEVICE TileSums(void* memory) : sums_(static_cast<Sum*>(memory)) {}

    TBPTT_DEVICE Sum start(int) const { return Sum(0); }
    TBPTT_DEVICE int row(int row) const { return row; }
    TBPTT_DEVICE void columns(int row, int column, const Sum (&pair)[2]) const {
        *reinterpret_cast<Group<Sum, 2>*>(sums_ + place(row, column)) = {{pair[0], pair[1]}};
    }
    TBPTT_DEVICE Sum operator()(int row, int column) const { return sums_[place(row, column)]; }

   private:
    static TBPTT_DEVICE int place(int row, int column) { return row * Tile::columns + (column ^ row % 4 * 8); }

    Sum* const sums_;
};

// The cells of a tile. A thread has several at once, whose values are on their way together; where there is no cell, another's
// are read, and not used (a `Row` of zeros is the first step of row 0).
template <class Tile, int Gates, class Pass>
TBPTT_DEVICE void finish_tile(const Pass& pass, const typename Pass::Row* rows, int row_count, int first_unit,
                              int unit_count, const TileSums<Tile>& sums) {
    constexpr int units = Tile::columns / Gates, cells = Tile::rows * units, each = 4;
    static_assert(cells % (each * Tile::threads) == 0, "threads");
#pragma unroll 1
    for (int begin = static_cast<int>(threadIdx.x); begin < cells; begin += each * Tile::threads) {
        const auto row_of = [&](int n) { return (begin + n * Tile::threads) / units; };
        const auto unit_of = [&](int n) { return (begin + n * Tile::threads) % units; };
        typename Pass::Fetched fetched[each];
#pragma unroll
        for (int n = 0; n < each; ++n)
            fetched[n] = pass.fetch(rows[row_of(n)], first_unit + (unit_of(n) < unit_count ? unit_of(n) : 0));
#pragma unroll
        for (int n = 0; n < each; ++n) {
            if (row_of(n) >= row_count || unit_of(n) >= unit_count) continue;
            typename TileSums<Tile>::Sum values[Gates], left[Pass::left];
#pragma unroll
            for (int gate = 0; gate < Gates; ++gate) values[gate] = sums(row_of(n), gate * units + unit_of(n));
            pass.finish(rows[row_of(n)], first_unit + unit_of(n), values, fetched[n], left);
        }
    }
}

// What takes the panels' place behind the product, and the rows behind both.
template <class Tile>
constexpr std::size_t tile_bytes =
    Tile::shared_bytes < TileSums<Tile>::bytes ? TileSums<Tile>::bytes : Tile::shared_bytes;

template <class Tile, int Gates, bool Exact, class Pass>
TBPTT_DEVICE void walk_in_tiles(const WalkProduct<typename Tile::T>& p, const Pass& pass) {
    using T = typename Tile::T;
    using Row = typename Pass::Row;
    constexpr int units = Tile::columns / Gates;
    T* const memory = shared_memory<T>();
    Row* const rows = reinterpret_cast<Row*>(memory + tile_bytes<Tile> / sizeof(T));
    TileSums<Tile> sums(memory);
    const int hidden = static_cast<int>(p.hidden), depth = static_cast<int>(p.depth);
    for (int lag = 0;; ++lag) {
        const int live = p.rows.live(lag);
        if (live == 0) break;
        if (lag > 0) wait_for_step(p, lag);
        // Before the first step there may be nothing to multiply.
        const int chunks = lag == 0 && !pass.begins_in_memory() ? 0 : (depth + Tile::depth - 1) / Tile::depth;
        for (int first_unit = static_cast<int>(blockIdx.x) * units; first_unit < hidden;
             first_unit += static_cast<int>(gridDim.x) * units)
            for (int first_row = static_cast<int>(blockIdx.y) * Tile::rows; first_row < live;
                 first_row += static_cast<int>(gridDim.y) * Tile::rows) {
                const int row_count = live - first_row < Tile::rows ? live - first_row : Tile::rows;
                for (int row = static_cast<int>(threadIdx.x); row < Tile::rows; row += Tile::threads)
                    rows[row] = row < row_count ? pass.row(first_row + row, lag) : Row{};
                __syncthreads();
                RowsLoader<Tile, Row> left(rows, depth);
                MatrixLoader<Tile, Tile::columns, true> right(p.weights + std::int64_t{Gates} * first_unit * depth,
                                                              depth, Tile::columns, depth);
                WarpTile<Tile, Exact> warp(sums);
                multiply_chunks<Tile>(warp, left, right, chunks, memory);
                __syncthreads();  // before the sums take the panels' place
                warp.give(sums);
                __syncthreads();
                finish_tile<Tile, Gates>(pass, rows, row_count, first_unit, hidden - first_unit, sums);
                __syncthreads();
            }
    }
}

// Launches the walk `kernel` of these tiles, if the device has the memory for them.
template <class Tile, class Pass, int Gates, class Walk>
bool launch_in_tiles(void (*kernel)(Walk), Walk walk, std::int64_t rows, const Call& call) {
    using T = typename Tile::T;
    constexpr int units = Tile::columns / Gates;
    WalkProduct<T>& p = walk.product;
    // Whether tiles are better than `WalkShape`s, whose blocks read each row again, and the weights too if they do not stay.
    if (!p.aligned || rows <= (p.resident ? most_rows_of_shapes : most_rows_of_few)) return false;
    Grid grid;
    grid.threads = Tile::threads;
    grid.together = p.waits();
    grid.shared_bytes = tile_bytes<Tile> + Tile::rows * sizeof(typename Pass::Row);
    if (grid.shared_bytes > current_device().shared_bytes) return false;
    const std::int64_t across = divide_up(p.hidden, units), columns = across * Tile::columns,
                       most = blocks_together(reinterpret_cast<const void*>(kernel), grid.threads, grid.shared_bytes);
    if (most < 1) return false;
    share_tiles(grid, across, divide_up(rows, Tile::rows), most);
    const Scratch<T> ordered(columns * p.depth, call.stream);
    launch(&order_by_tiles<T, Gates, units>, grid_for(columns * p.depth), call.stream,
           TileOrder<T>{p.hidden, p.depth, columns, p.weights, ordered});
    p.weights = ordered;
    launch(kernel, grid, call.stream, walk);
    return true;
}

}  // namespace cuda
}  // namespace tbptt
