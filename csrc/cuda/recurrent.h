// What the forward and the backward walk of a recurrent layer share: one persistent launch, in which the rows of all segments
// go on side by side, a step at a time. A step is the product of the rows' last values with the weights, and the cell behind it.
//
// A block has some units, and keeps their weights in shared memory from the first step to the last, if they fit. How blocks
// share the rest, and where steps meet, is told by recurrent_{cluster,grid,slices,tiles}.h.
#pragma once

#include <type_traits>

#include "../cells/cell.h"
#include "rounding.h"
#include "scalar_math.h"
#include "segments.h"
#include "tensor_cores.h"

namespace tbptt {
namespace cuda {

constexpr int walk_threads = 256, walk_warps = walk_threads / warp_size;

// How a block shares its product among its warps: each has `RowTiles` tiles of 16 rows by `UnitTiles` tiles of 8 units, and
// `Splits` warps have parts of the depth of the same tiles. Few rows: the depth is what there is to share. With several
// `Slices` a cluster of as many blocks shares the depth first (recurrent_slices.h).
template <int RowTiles, int UnitTiles, int Splits, int Slices = 1>
struct WalkShape {
    static constexpr int row_tiles = RowTiles, unit_tiles = UnitTiles, splits = Splits, slices = Slices;
    static constexpr int warp_rows = RowTiles * tile_rows, rows = walk_warps / Splits * warp_rows;
    static constexpr int units = UnitTiles * tile_columns, own_units = units / Slices;
    static_assert(units % Slices == 0, "every block has cells");

    static TBPTT_DEVICE int warp_first() { return warp_index() / Splits * warp_rows; }
};

// Which of them, by the rows that are at work at once. More rows go in tiles (recurrent_tiles.h).
constexpr std::int64_t most_rows_of_few = 32, most_rows_of_shapes = 512;

template <class T, bool Few>
struct Shapes {
    using Forward = WalkShape<1, 1, Few ? 8 : 2>;
    using Backward = WalkShape<1, Few ? 1 : 2, Few ? 8 : 2>;
};
template <bool Few>
struct Shapes<double, Few> {
    using Forward = WalkShape<1, 1, 4>;
    using Backward = WalkShape<1, 2, 4>;
};

// Four elements of the depth, which are eight values of bfloat16.
template <class T>
struct Four {
    static constexpr int values = 4 * packed_values<T>;
    Packed<T> v[4];
};

TBPTT_DEVICE Four<float> four_of(const float4& f) { return {{f.x, f.y, f.z, f.w}}; }

TBPTT_DEVICE Four<Bfloat16> four_of(const uint4& f) { return {{{f.x}, {f.y}, {f.z}, {f.w}}}; }

// Those that lie side by side, 16 bytes aligned.
TBPTT_DEVICE Four<float> load_aligned(const float* from) { return four_of(*reinterpret_cast<const float4*>(from)); }
TBPTT_DEVICE Four<float> load_aligned_by_grid(const float* from) {
    return four_of(load_shared_by_grid(reinterpret_cast<const float4*>(from)));
}
TBPTT_DEVICE Four<double> load_aligned(const double* from) {
    const double2 a = reinterpret_cast<const double2*>(from)[0], b = reinterpret_cast<const double2*>(from)[1];
    return {{a.x, a.y, b.x, b.y}};
}
TBPTT_DEVICE Four<double> load_aligned_by_grid(const double* from) {
    const double2 a = load_shared_by_grid(reinterpret_cast<const double2*>(from)),
                  b = load_shared_by_grid(reinterpret_cast<const double2*>(from) + 1);
    return {{a.x, a.y, b.x, b.y}};
}

TBPTT_DEVICE Four<Bfloat16> load_aligned(const Bfloat16* from) {
    return four_of(*reinterpret_cast<const uint4*>(from));
}
TBPTT_DEVICE Four<Bfloat16> load_aligned_by_grid(const Bfloat16* from) {
    return four_of(load_shared_by_grid(reinterpret_cast<const uint4*>(from)));
}

// Values k … of a row of `depth` values, which other blocks may have written; zeros behind it, and for no row.
template <class T>
TBPTT_DEVICE Four<T> load_four(const T* row, std::int64_t k, std::int64_t depth, bool aligned) {
    Four<T> r{};
    if (!row || k >= depth) return r;
    if (aligned) return load_aligned_by_grid(row + k);
    const auto value = [&](std::int64_t at) { return at < depth ? load_shared_by_grid(row + at) : T(0); };
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if constexpr (packed_values<T> == 2)
            r.v[i] = pair_of(value(k + 2 * i), value(k + 2 * i + 1));
        else
            r.v[i] = value(k + i);
    return r;
}

// The weights of a block's units, a row of `depth` for each unit of each gate. In shared memory rows are padded with zeros, so
// that a tile's rows lie in different banks.
template <class T>
struct BlockWeights {
    const T* resident;  // [gates][units][stride] in shared memory, or null:
    const T* data;      // of the block's first unit
    std::int64_t depth, gate_stride;
    int units;  // that there are
    bool aligned;

    // 64 bytes more than a multiple of 128
    static constexpr TBPTT_BOTH std::int64_t stride(std::int64_t depth) {
        constexpr std::int64_t line = 128 / sizeof(T);
        return (depth + line - 1) / line * line + line / 2;
    }

    template <int Units>
    TBPTT_DEVICE Four<T> load(int gate, int unit, std::int64_t k) const {
        if (resident) return load_aligned(resident + (gate * Units + unit) * stride(depth) + k);
        return load_four(unit < units ? data + gate * gate_stride + unit * depth : nullptr, k, depth, aligned);
    }
};

// Weights that are resident, where nothing has to be asked for each access.
template <class T>
struct ResidentWeights {
    const T* data;
    std::int64_t stride;

    template <int Units>
    TBPTT_DEVICE Four<T> load(int gate, int unit, std::int64_t k) const {
        return load_aligned(data + (gate * Units + unit) * stride + k);
    }
};

// One warp's part of rows·weightsᵀ. The order of the depth is free: a lane takes four elements that lie side by side, which
// makes its loads wide, and feeds them to the tiles as the columns of two strips of 8. Near: weights are resident and rows are
// aligned. Then what a warp waits for are its rows, and those of several strips are on their way together.
template <class T, class Shape, int Gates, bool Exact, bool Near, class Source, class Weights>
TBPTT_DEVICE void multiply_rows(const Source& source, const Weights& weights, std::int64_t depth,
                                Real<T> (&sums)[Shape::row_tiles][Gates * Shape::unit_tiles][4]) {
    using Element = Packed<T>;
    constexpr std::int64_t strip_values = 4 * Four<T>::values;
    constexpr int together = !Near ? 1 : sizeof(T) == sizeof(double) ? 2 : 4;
    const int g = lane_index() / 4, t = lane_index() % 4, split = warp_index() % Shape::splits;
    const std::int64_t strips = (depth + strip_values - 1) / strip_values;
    const std::int64_t begin = strips * split / Shape::splits, end = strips * (split + 1) / Shape::splits;
#pragma unroll 1
    for (std::int64_t first = begin; first < end; first += together) {
        Four<T> top[together][Shape::row_tiles], bottom[together][Shape::row_tiles];
        const auto depth_of = [&](int s) { return (first + s) * strip_values + Four<T>::values * t; };
#pragma unroll
        for (int s = 0; s < together; ++s)
#pragma unroll
            for (int i = 0; i < Shape::row_tiles; ++i) {
                const std::int64_t k = first + s < end ? depth_of(s) : depth;  // where there are zeros
                top[s][i] = source.template load<Near>(i, 0, k);
                bottom[s][i] = source.template load<Near>(i, 1, k);
            }
#pragma unroll
        for (int s = 0; s < together; ++s) {
            if (first + s >= end) break;
#pragma unroll
            for (int gate = 0; gate < Gates; ++gate)
#pragma unroll
                for (int unit = 0; unit < Shape::unit_tiles; ++unit) {
                    const Four<T> w = weights.template load<Shape::units>(gate, unit * tile_columns + g, depth_of(s));
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const Element b[2] = {w.v[2 * half], w.v[2 * half + 1]};
#pragma unroll
                        for (int i = 0; i < Shape::row_tiles; ++i) {
                            const Element a[4] = {top[s][i].v[2 * half], bottom[s][i].v[2 * half],
                                                  top[s][i].v[2 * half + 1], bottom[s][i].v[2 * half + 1]};
                            multiply_add<Exact>(sums[i][gate * Shape::unit_tiles + unit], a, b);
                        }
                    }
                }
        }
    }
}

// What both walks know of their product.
template <class T>
struct WalkProduct {
    Rows rows;
    std::int64_t hidden;
    std::int64_t depth;  // of the product
    const T* weights;    // [gates · H, depth]: a row for each unit of each gate
    bool aligned;        // all rows are multiples of 16 bytes
    bool together;       // groups wait for one another, too: rows of one add to what rows of another do
    unsigned* arrived;   // [groups], zeros; read by walks that wait
    bool resident;       // found by `plan_walk`: the weights of a block stay in shared memory

    // Whether there is a second step, or the initial state behind the first: one launch alone need not be cooperative.
    bool waits() const { return rows.backward || rows.steps > 1; }
};

// Values of the block's tile that wait for their cell, of which several warps have parts.
template <class T, class Shape, int Gates>
constexpr std::size_t parts_bytes =
    walk_warps * Shape::row_tiles * Gates * Shape::unit_tiles * 4 * warp_size * sizeof(Real<T>);

// The part of the depth that a block multiplies, and its place in the cluster.
template <class T, int Slices>
struct Slice {
    static constexpr TBPTT_BOTH std::int64_t size(std::int64_t depth) {
        constexpr std::int64_t strips = Slices * 4 * Four<T>::values;
        return Slices == 1 ? depth : (depth + strips - 1) / strips * (strips / Slices);
    }
    static TBPTT_DEVICE int rank() { return static_cast<int>(blockIdx.x) % Slices; }

    explicit TBPTT_DEVICE Slice(std::int64_t whole) : depth(size(whole)), first(rank() * depth) {}

    const std::int64_t depth, first;
};

// The weights of the block's units, to where `BlockWeights` looks for them.
template <class T, class Shape, int Gates>
TBPTT_DEVICE void keep_weights(const WalkProduct<T>& p, T* to) {
    const Slice<T, Shape::slices> slice(p.depth);
    const std::int64_t stride = BlockWeights<T>::stride(slice.depth);
    const int first = static_cast<int>(blockIdx.x) / Shape::slices * Shape::units, hidden = static_cast<int>(p.hidden);
    for (int r = warp_index(); r < Gates * Shape::units; r += walk_warps) {
        const int unit = first + r % Shape::units;
        const T* from = p.weights + (std::int64_t{r / Shape::units} * hidden + unit) * p.depth + slice.first;
        for (std::int64_t k = lane_index(); k < stride; k += warp_size)
            to[r * stride + k] = unit < hidden && k < slice.depth && slice.first + k < p.depth ? from[k] : T(0);
    }
    __syncthreads();
}

// Rows of one tile at one lag.
struct WalkTile {
    int lag, live, first_row, first_unit;
};

// The rows of a warp's tiles, by where they lie in the memory of the device.
template <class T, class Shape>
class RowsInMemory {
   public:
    // Whether the walk is planned for resident weights and aligned rows alone.
    static constexpr bool always_near = Shape::slices > 1;

    template <class Pass>
    TBPTT_DEVICE RowsInMemory(const WalkProduct<T>& p, const Pass& pass, const WalkTile& at) : aligned_(p.aligned) {
        const Slice<T, Shape::slices> slice(p.depth);
        const std::int64_t left = p.depth - slice.first;
        depth_ = left < slice.depth ? left : slice.depth;
#pragma unroll
        for (int i = 0; i < Shape::row_tiles; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = at.first_row + Shape::warp_first() + i * tile_rows + half * 8 + lane_index() / 4;
                const T* source = row < at.live ? pass.row(row, at.lag).source : nullptr;
                rows_[i][half] = source ? source + slice.first : nullptr;
            }
    }

    TBPTT_DEVICE bool any() const {
        bool found = false;
#pragma unroll
        for (int i = 0; i < Shape::row_tiles; ++i) found = found || rows_[i][0] || rows_[i][1];
        return found;
    }

    template <bool Near>
    TBPTT_DEVICE Four<T> load(int tile, int half, std::int64_t k) const {
        const T* row = rows_[tile][half];
        if constexpr (!Near) return load_four(row, k, depth_, aligned_);
        return row && k < depth_ ? load_aligned_by_grid(row + k) : Four<T>{};
    }

   private:
    const T* rows_[Shape::row_tiles][2];
    std::int64_t depth_;
    const bool aligned_;
};

// What a block does with one tile at one lag. A pass has
//   Row row(row, lag)                           the row's step; its `source` are the values of the last one, or null
//   Fetched fetch(Row, unit)                    what the cell needs beside the product: nothing that other threads of the
//                                               launch write, so that it is read before they are waited for
//   finish(Row, unit, sums[Gates], fetched, left)   the cell; `left` is what the next step's product takes
// Lags of one row and unit are always the same thread's.
template <class T, class Shape, int Gates, bool Exact, class Pass>
class TileWork {
    using Sum = Real<T>;
    static constexpr int columns = Gates * Shape::unit_tiles;

   public:
    TBPTT_DEVICE TileWork(const WalkProduct<T>& p, const Pass& pass)
        : p_(p),
          pass_(pass),
          hidden_(static_cast<int>(p.hidden)),
          depth_(Slice<T, Shape::slices>::size(p.depth)),
          weights_(shared_memory<T>()),
          parts_(reinterpret_cast<Sum*>(weights_ +
                                        (p.resident ? Gates * Shape::units * BlockWeights<T>::stride(depth_) : 0))) {
        if (p.resident) keep_weights<T, Shape, Gates>(p, weights_);
    }

    // Shared memory that is free for others.
    TBPTT_DEVICE T* free_memory() const {
        return reinterpret_cast<T*>(parts_ + parts_bytes<T, Shape, Gates> / sizeof(Sum));
    }

    // Several warps have parts of the depth, which meet in shared memory [split][gate and tile][row][unit]; those of the blocks of
    // a cluster meet then, and each block has the cells of its own units. wait_for() waits for the last step and returns the
    // source, keep(row, unit, left) takes what this step leaves; both count in the tile.
    template <class WaitFor, class Keep>
    TBPTT_DEVICE void by_block(const WalkTile& at, const WaitFor& wait_for, const Keep& keep) const {
        constexpr int own = Shape::own_units, count = Shape::rows * own,
                      each = (count + walk_threads - 1) / walk_threads;
        const int first_own = Slice<T, Shape::slices>::rank() * own;
        const auto for_mine = [&](auto found) {
#pragma unroll
            for (int n = 0; n < each; ++n) {
                const int i = static_cast<int>(threadIdx.x) + n * walk_threads, row = i / own,
                          unit = first_own + i % own;
                if (i < count && at.first_row + row < at.live && at.first_unit + unit < hidden_) found(n, row, unit);
            }
        };
        typename Pass::Row rows[each] = {};
        typename Pass::Fetched fetched[each] = {};
        for_mine([&](int n, int row, int unit) {
            rows[n] = pass_.row(at.first_row + row, at.lag);
            fetched[n] = pass_.fetch(rows[n], at.first_unit + unit);
        });
        Sum sums[Shape::row_tiles][columns][4] = {};
        multiply(at, wait_for(), sums);
        const int split = warp_index() % Shape::splits;
#pragma unroll
        for (int i = 0; i < Shape::row_tiles; ++i)
#pragma unroll
            for (int c = 0; c < columns; ++c)
#pragma unroll
                for (int v = 0; v < 4; ++v) {
                    const int row = Shape::warp_first() + i * tile_rows + lane_index() / 4 + v / 2 * 8,
                              unit = lane_index() % 4 * 2 + v % 2;
                    parts_[split * part_size + part(c, row) + unit] = sums[i][c][v];
                }
        __syncthreads();
        if constexpr (Shape::slices > 1) {
            for (int i = static_cast<int>(threadIdx.x); i < part_size; i += walk_threads) {
                Sum sum = parts_[i];
#pragma unroll
                for (int s = 1; s < Shape::splits; ++s) sum += parts_[s * part_size + i];
                parts_[i] = sum;
            }
            wait_for_cluster();
        }
        for_mine([&](int n, int row, int unit) {
            Sum values[Gates], left[Pass::left];
#pragma unroll
            for (int gate = 0; gate < Gates; ++gate)
                values[gate] = sum_at(part(gate * Shape::unit_tiles + unit / tile_columns, row) + unit % tile_columns);
            pass_.finish(rows[n], at.first_unit + unit, values, fetched[n], left);
            keep(row, unit, left);
        });
        // before the next tile's parts
        if constexpr (Shape::slices > 1)
            wait_for_cluster();
        else
            __syncthreads();
    }

   private:
    template <class Source>
    TBPTT_DEVICE void multiply(const WalkTile& at, const Source& source,
                               Sum (&sums)[Shape::row_tiles][columns][4]) const {
        if (!any_lane(source.any())) return;
        // Split values take the registers that rows on their way would need.
        constexpr bool splits_values = Exact && is_single<T>, may_be_near = !splits_values,
                       may_be_far = splits_values || !Source::always_near;
        const bool near = may_be_near && (Source::always_near || (p_.resident && p_.aligned));
        if constexpr (may_be_near)
            if (near) {
                const ResidentWeights<T> weights{weights_, BlockWeights<T>::stride(depth_)};
                multiply_rows<T, Shape, Gates, Exact, true>(source, weights, depth_, sums);
            }
        if constexpr (may_be_far)
            if (!near) {
                const BlockWeights<T> weights{p_.resident ? weights_ : nullptr,
                                              p_.weights + at.first_unit * p_.depth,
                                              depth_,
                                              hidden_ * p_.depth,
                                              hidden_ - at.first_unit,
                                              p_.aligned};
                multiply_rows<T, Shape, Gates, Exact, false>(source, weights, depth_, sums);
            }
    }

    static constexpr int part_size = columns * Shape::rows * tile_columns;
    static TBPTT_DEVICE int part(int column, int row) { return (column * Shape::rows + row) * tile_columns; }

    // The parts of warps, or of blocks, in their order.
    TBPTT_DEVICE Sum sum_at(int place) const {
        Sum sum = 0;
        if constexpr (Shape::slices > 1) {
#pragma unroll
            for (int slice = 0; slice < Shape::slices; ++slice) sum += *in_block(parts_ + place, slice);
        } else {
#pragma unroll
            for (int s = 0; s < Shape::splits; ++s) sum += parts_[s * part_size + place];
        }
        return sum;
    }

    const WalkProduct<T>& p_;
    const Pass& pass_;
    const int hidden_;
    const std::int64_t depth_;  // of the block's slice
    T* const weights_;
    Sum* const parts_;
};

}  // namespace cuda
}  // namespace tbptt
