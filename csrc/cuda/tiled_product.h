// The product of a block's tile, C [rows, columns] = A·Bᵀ over a depth, on the tensor cores. What is multiplied comes from two
// loaders, what becomes of it is told by a target; the loop between them is one for all products.
//
//     using Tile = ProductTile<float, 128, 128, 64, 64, true>;      // Tile::threads, Tile::shared_bytes for the launch
//     MatrixLoader<Tile, Tile::rows, true> a(…); MatrixLoader<Tile, Tile::columns, true> b(…);
//     multiply_tile<Tile, Exact>(a, b, chunks, shared_memory<float>(), target);
//
// The depth goes by chunks of Tile::depth values. A loader brings a chunk of its operand to a panel in shared memory:
//     void load(T* panel, int chunk)       by all threads, with copy_async; called for 0, 1, 2 … in this order, once each
// with zeros where nothing is, and element (row, k) at panel[Panel::place(row, k)]. Both operands are of one order:
//     along    a row's depths are neighbours in memory, and so they are in the panel
//     across   the rows of one depth are
// Within a chunk, accesses of 16 bytes are free of bank conflicts: the order of a tile's depths (along) or rows and columns
// (across) is turned so that what a lane holds of several tiles are neighbours.
// Sums begin at target.start(column). A target gets those that a lane holds, in runs of neighbours:
//     along    target.row(row) gives what target.columns(that, column, const Sum (&)[2]) is called with, for each of its pairs
//     across   target.run(row) gives what target.rows(that, column, const Sum (&)[16 / sizeof(T)]) is called with
// Rows and columns are those of the tile; target looks after the edges. Sum is T; for bfloat16 float.
#pragma once

#include "tensor_cores.h"

namespace tbptt {
namespace cuda {

// What one access brings.
template <class T, int Size = static_cast<int>(16 / sizeof(T))>
struct alignas(Size * sizeof(T)) Group {
    static constexpr int size = Size;
    T value[size];
};

template <class T, int Rows, bool Along>
struct Panel {
    static constexpr int group = Group<T>::size, depth = 4 * group;
    // Of rows, or of depths: the next lane's is 32 bytes beside 128.
    static constexpr int stride = Along ? depth : Rows + 32 / static_cast<int>(sizeof(Packed<T>));
    static constexpr int size = stride * (Along ? Rows : depth);
    static TBPTT_DEVICE int place(int row, int k) { return Along ? row * stride + k : k * stride + row; }
};

template <class Value, int Rows, int Columns, int WarpRows, int WarpColumns, bool Along>
struct ProductTile {
    using T = Value;
    static constexpr int rows = Rows, columns = Columns, warp_rows = WarpRows, warp_columns = WarpColumns;
    static constexpr bool along = Along;
    static constexpr int group = Group<T>::size, depth = 4 * group, steps = depth / (tile_depth * packed_values<T>);
    static constexpr int warps_across = Columns / WarpColumns;
    static constexpr int threads = warp_size * (Rows / WarpRows) * warps_across;
    using Left = Panel<T, Rows, Along>;
    using Right = Panel<T, Columns, Along>;
    static constexpr int stage = Left::size + Right::size;
    static constexpr int fitting = static_cast<int>((std::size_t{64} << 10) / (stage * sizeof(T)));
    static constexpr int stages = fitting < 4 ? fitting : 4;  // 64 KB are there on every chip
    static constexpr std::size_t shared_bytes = stages * stage * sizeof(T);
    static_assert(stages >= 2, "a chunk has to come while another is worked on");
    static_assert(WarpRows % (Along ? 16 : 8 * group) == 0 && WarpColumns % (Along ? 8 : 8 * group) == 0, "warp tile");
};

// x for tensor cores that do not look at the last 13 bits. To cut them off alone would make every product smaller; with this
// factor first, what is lost is nothing on the average over all mantissas, 0.73 of TF32's last place at most, and nothing at
// all of a TF32 number (below 3.4e38, where Inf begins). To round costs three instructions each, and there are as many values
// as products of tiles.
TBPTT_DEVICE float near_tf32(float x) {
    constexpr float factor = 1.0f + 0.72134752f / 2048;
#ifdef TBPTT_EMULATED
    std::uint32_t bits;
    x *= factor;
    std::memcpy(&bits, &x, sizeof(bits));
    if (x == x) bits &= ~0x1fffu;
    std::memcpy(&x, &bits, sizeof(bits));
    return x;
#else
    return x * factor;
#endif
}

// Values of an operand as the tensor cores take them, made once, however many tiles they meet.
template <class T, bool Exact, int N>
struct Operand {
    T large[N];
    T small[Exact ? N : 1];

    TBPTT_DEVICE void set(int i, float x) {
#if !defined(TBPTT_EMULATED) && __CUDA_ARCH__ < 800
        large[i] = x;  // float32 as it is
#else
        if constexpr (Exact)
            split_in_two(x, large[i], small[i]);
        else
            large[i] = near_tf32(x);
#endif
    }
    TBPTT_DEVICE void set(int i, double x) { large[i] = x; }
    TBPTT_DEVICE void set(int i, Pair x) { large[i] = x; }
};

template <bool Exact>
TBPTT_DEVICE void multiply_operands(float (&sum)[4], const Operand<float, Exact, 4>& a,
                                    const Operand<float, Exact, 2>& b) {
#if defined(TBPTT_EMULATED) || __CUDA_ARCH__ >= 800
    if constexpr (Exact) {
        multiply_tf32(sum, a.small, b.large);
        multiply_tf32(sum, a.large, b.small);
    }
#endif
    multiply_tf32(sum, a.large, b.large);
}

template <bool Exact>
TBPTT_DEVICE void multiply_operands(double (&sum)[4], const Operand<double, Exact, 4>& a,
                                    const Operand<double, Exact, 2>& b) {
    multiply_add<Exact>(sum, a.large, b.large);
}

template <bool Exact>
TBPTT_DEVICE void multiply_operands(float (&sum)[4], const Operand<Pair, Exact, 4>& a,
                                    const Operand<Pair, Exact, 2>& b) {
    multiply_add<Exact>(sum, a.large, b.large);
}

// Neighbours in the depth, as tiles take them.
template <class T>
TBPTT_DEVICE Group<Packed<T>> load_along(const T* from) {
    return *reinterpret_cast<const Group<Packed<T>>*>(from);
}

// Neighbours among the rows, at one element of the depth: of bfloat16 at two of its values, `stride` apart.
template <class T>
TBPTT_DEVICE Group<T> load_across(const T* from, int) {
    return *reinterpret_cast<const Group<T>*>(from);
}
TBPTT_DEVICE Group<Pair, 8> load_across(const Bfloat16* from, int stride) {
    const Group<Pair> first = load_along(from), second = load_along(from + stride);
    Group<Pair, 8> rows;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows.value[2 * i] = pair_firsts(first.value[i], second.value[i]);
        rows.value[2 * i + 1] = pair_seconds(first.value[i], second.value[i]);
    }
    return rows;
}

// What a warp holds of its part of the tile, and its walk through a chunk.
template <class Tile, bool Exact>
class WarpTile {
   public:
    using T = typename Tile::T;
    using Sum = Real<T>;
    using Element = Packed<T>;
    static constexpr int group = Tile::group;
    static constexpr int tiles_down = Tile::warp_rows / tile_rows, tiles_across = Tile::warp_columns / tile_columns;

    template <class Target>
    explicit TBPTT_DEVICE WarpTile(const Target& target)
        : row_(warp_index() / Tile::warps_across * Tile::warp_rows),
          column_(warp_index() % Tile::warps_across * Tile::warp_columns),
          g_(lane_index() / 4),
          t_(lane_index() % 4) {
#pragma unroll
        for (int j = 0; j < tiles_across; ++j)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const Sum start = target.start(column_of(j, v % 2));
#pragma unroll
                for (int i = 0; i < tiles_down; ++i) sum_[i][j][v] = start;
            }
    }

    TBPTT_DEVICE void multiply(const T* left, const T* right) {
        if (Tile::along)
            multiply_along(left, right);
        else
            multiply_across(left, right);
    }

    template <class Target>
    TBPTT_DEVICE void give(Target& target) const {
        if constexpr (Tile::along)
            give_along(target);
        else
            give_across(target);
    }

   private:
    using Left = typename Tile::Left;
    using Right = typename Tile::Right;

    // Of the two that this lane holds of tile j.
    TBPTT_DEVICE int column_of(int j, int c) const {
        return Tile::along ? column_ + tile_columns * j + 2 * t_ + c
                           : column_ + 8 * group * (j / group) + group * (2 * t_ + c) + j % group;
    }

    // Lane t has the depths group·t … of a chunk: step s of the tensor cores takes two of them from every lane.
    TBPTT_DEVICE void multiply_along(const T* left, const T* right) {
        Operand<Element, Exact, 2> b[Tile::steps][tiles_across];
#pragma unroll
        for (int j = 0; j < tiles_across; ++j) {
            const Group<Element> values = load_along(right + Right::place(column_ + tile_columns * j + g_, group * t_));
#pragma unroll
            for (int s = 0; s < Tile::steps; ++s) {
                b[s][j].set(0, values.value[2 * s]);
                b[s][j].set(1, values.value[2 * s + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < tiles_down; ++i) {
            const Group<Element> above = load_along(left + Left::place(row_ + tile_rows * i + g_, group * t_));
            const Group<Element> below = load_along(left + Left::place(row_ + tile_rows * i + 8 + g_, group * t_));
#pragma unroll
            for (int s = 0; s < Tile::steps; ++s) {
                Operand<Element, Exact, 4> a;
                a.set(0, above.value[2 * s]);
                a.set(1, below.value[2 * s]);
                a.set(2, above.value[2 * s + 1]);
                a.set(3, below.value[2 * s + 1]);
#pragma unroll
                for (int j = 0; j < tiles_across; ++j) multiply_operands<Exact>(sum_[i][j], a, b[s][j]);
            }
        }
    }

    // Lane g has the rows group·g … of 8·group ones, which are two each of group / 2 tiles; of columns one each of `group`.
    TBPTT_DEVICE void multiply_across(const T* left, const T* right) {
#pragma unroll
        for (int s = 0; s < Tile::steps; ++s) {
            constexpr int packed = packed_values<T>;
            const int k = (tile_depth * s + t_) * packed;
            Operand<Element, Exact, 2> b[tiles_across];
#pragma unroll
            for (int q = 0; q < tiles_across / group; ++q) {
                const int column = column_ + 8 * group * q + group * g_;
                const Group<Element, group> first = load_across(right + Right::place(column, k), Right::stride);
                const Group<Element, group> second =
                    load_across(right + Right::place(column, k + 4 * packed), Right::stride);
#pragma unroll
                for (int e = 0; e < group; ++e) {
                    b[q * group + e].set(0, first.value[e]);
                    b[q * group + e].set(1, second.value[e]);
                }
            }
#pragma unroll
            for (int q = 0; q < 2 * tiles_down / group; ++q) {
                const int row = row_ + 8 * group * q + group * g_;
                const Group<Element, group> first = load_across(left + Left::place(row, k), Left::stride);
                const Group<Element, group> second = load_across(left + Left::place(row, k + 4 * packed), Left::stride);
#pragma unroll
                for (int e = 0; e < group / 2; ++e) {
                    Operand<Element, Exact, 4> a;
                    a.set(0, first.value[2 * e]);
                    a.set(1, first.value[2 * e + 1]);
                    a.set(2, second.value[2 * e]);
                    a.set(3, second.value[2 * e + 1]);
#pragma unroll
                    for (int j = 0; j < tiles_across; ++j)
                        multiply_operands<Exact>(sum_[q * (group / 2) + e][j], a, b[j]);
                }
            }
        }
    }

    template <class Target>
    TBPTT_DEVICE void give_along(Target& target) const {
#pragma unroll
        for (int i = 0; i < 2 * tiles_down; ++i) {
            const auto row = target.row(row_ + 8 * i + g_);
#pragma unroll
            for (int j = 0; j < tiles_across; ++j) {
                const Sum pair[2] = {sum_[i / 2][j][i % 2 * 2], sum_[i / 2][j][i % 2 * 2 + 1]};
                target.columns(row, column_of(j, 0), pair);
            }
        }
    }

    template <class Target>
    TBPTT_DEVICE void give_across(Target& target) const {
#pragma unroll
        for (int q = 0; q < 2 * tiles_down / group; ++q) {
            const auto run = target.run(row_ + 8 * group * q + group * g_);
#pragma unroll
            for (int j = 0; j < tiles_across; ++j)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    Sum values[group];
#pragma unroll
                    for (int e = 0; e < group; ++e) values[e] = sum_[q * (group / 2) + e / 2][j][e % 2 * 2 + c];
                    target.rows(run, column_of(j, c), values);
                }
        }
    }

    const int row_, column_, g_, t_;
    Sum sum_[tiles_down][tiles_across][4];
};

// Adds all chunks to what the warp holds.
template <class Tile, class Warp, class LoadLeft, class LoadRight>
TBPTT_DEVICE void multiply_chunks(Warp& warp, LoadLeft& left, LoadRight& right, int chunks, typename Tile::T* memory) {
    using T = typename Tile::T;
    constexpr int ahead = Tile::stages - 1;
    for (int chunk = 0; chunk < ahead; ++chunk) {
        if (chunk < chunks) {
            left.load(memory + chunk * Tile::stage, chunk);
            right.load(memory + chunk * Tile::stage + Tile::Left::size, chunk);
        }
        commit_copies();
    }
    int stage = 0, next = ahead;
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_for_copies<ahead - 1>();
        __syncthreads();  // and nobody reads the stage any more that is filled next
        if (chunk + ahead < chunks) {
            left.load(memory + next * Tile::stage, chunk + ahead);
            right.load(memory + next * Tile::stage + Tile::Left::size, chunk + ahead);
        }
        commit_copies();
        const T* panel = memory + stage * Tile::stage;
        warp.multiply(panel, panel + Tile::Left::size);
        stage = stage + 1 == Tile::stages ? 0 : stage + 1;
        next = next + 1 == Tile::stages ? 0 : next + 1;
    }
}

template <class Tile, bool Exact, class LoadLeft, class LoadRight, class Target>
TBPTT_DEVICE void multiply_tile(LoadLeft& left, LoadRight& right, int chunks, typename Tile::T* memory,
                                Target& target) {
    WarpTile<Tile, Exact> warp(target);
    multiply_chunks<Tile>(warp, left, right, chunks, memory);
    warp.give(target);
}

// A matrix [rows, depth] in memory: element (row, k) at source[row·stride + k] (along) or source[k·stride + row] (across).
// `source` is that of the tile's first row and first depth, `rows` and `depth` what is left from there on. Groups: memory is
// read 16 bytes at a time, which asks for aligned source and stride, and for rows (across) or depth (along) in whole groups.
template <class Tile, int Rows, bool Groups>
class MatrixLoader {
   public:
    using T = typename Tile::T;

    TBPTT_DEVICE MatrixLoader(const T* source, std::int64_t stride, int rows, int depth)
        : stride_(stride), rows_(rows - row()), depth_(depth - k()) {
        source_ = source + (Tile::along ? row() * stride + k() : k() * stride + row());
    }

    TBPTT_DEVICE void load(T* panel, int chunk) {
        const T* from = source_ + chunk * (Tile::along ? std::int64_t{Tile::depth} : Tile::depth * stride_);
        T* to = panel + Layout::place(row(), k());
        const int left = depth_ - chunk * Tile::depth;
#pragma unroll
        for (int i = 0; i < lines / lines_at_once; ++i) {
            const int line = i * lines_at_once;
            const bool valid = Tile::along ? left > 0 && line < rows_ : line < left && rows_ > 0;
            copy_async<Access>(to + line * Layout::stride, from + line * stride_, valid);
        }
    }

   private:
    using Layout = Panel<T, Rows, Tile::along>;
    using Access = Group<T, Groups ? Group<T>::size : 1>;
    static constexpr int width = Access::size;
    // A line is what lies together in memory: a row of the chunk, or a depth of it.
    static constexpr int accesses = (Tile::along ? Tile::depth : Rows) / width;
    static constexpr int lines = Tile::along ? Rows : Tile::depth;
    static constexpr int lines_at_once = Tile::threads / accesses;
    static_assert(lines_at_once > 0 && lines % lines_at_once == 0 && Tile::threads % accesses == 0, "threads");

    static TBPTT_DEVICE int in_line() { return static_cast<int>(threadIdx.x) % accesses * width; }
    static TBPTT_DEVICE int first_line() { return static_cast<int>(threadIdx.x) / accesses; }
    static TBPTT_DEVICE int row() { return Tile::along ? first_line() : in_line(); }
    static TBPTT_DEVICE int k() { return Tile::along ? in_line() : first_line(); }

    const T* source_;
    const std::int64_t stride_;
    const int rows_, depth_;
};

}  // namespace cuda
}  // namespace tbptt
