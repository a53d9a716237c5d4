// Correlations as products: pixels of the target are rows, channels of the target columns, and the depth is what a pixel
// meets, all channels of a group at each tap. Where rows and columns are too few for a large chip, the depth is cut in parts
// that the problem alone decides; they are added up in their order.
#pragma once

#include "convolution_results.h"

namespace tbptt {
namespace cuda {

constexpr int most_phases_down = 4, most_phases_across = 16;  // of one launch

template <class T>
struct Correlation {
    Images source_images, target_images;
    int batch, groups, depth, columns;  // of a group: channels of the source, and of the target
    const int* live;                    // of the batch, how many images from the first one on there are; null: all
    int w_depths;                       // channels of the source that w knows; behind them the source has zeros
    int phases_down, phases_across;
    Direction down[most_phases_down], across[most_phases_across];
    int step_y, step_x, target_step_y, target_step_x;
    int kernel_width;
    Divisor by_depth;
    bool last;               // channels are neighbours in memory
    bool whole;              // one phase that is all of the target
    Activation activation;   // that tiles know
    int parts;               // of the depth
    std::int64_t part_size;  // values of the target; 0: there is one part
    const T* source;
    // Element (column, depth) of a tap: w[group·w_group + column·w_column + depth·w_depth + tap]
    const T* w;
    std::int64_t w_group, w_column, w_depth;
    const T* bias;      // or null
    Results<T> target;  // of the first part
    // What the kernels read: a matrix of columns and depths for each phase and group, of this stride, in whole groups.
    const T* factors;
    std::int64_t factors_of[most_phases_down * most_phases_across],
        factors_group[most_phases_down * most_phases_across];
    std::int64_t factors_stride[most_phases_down * most_phases_across];
    bool runs;  // neighbours in the target may be written 16 bytes (across) or two values (along) at a time
};

template <class T>
TBPTT_DEVICE int rows_of(const Correlation<T>& p, const Direction& down, const Direction& across) {
    return (p.live ? *p.live : p.batch) * down.pixels * across.pixels;
}

// factors [group][column][depth] (along) or [group][depth][column], zeros behind the last of each line.
template <class T, bool Along>
__global__ void pack_factors(const Correlation<T> p) {
    const int phase = static_cast<int>(blockIdx.y);
    const Direction &down = p.down[phase / p.phases_across], &across = p.across[phase % p.phases_across];
    const int depth = down.taps * across.taps * p.depth;
    const std::int64_t stride = p.factors_stride[phase], lines = std::int64_t{p.groups} * (Along ? p.columns : depth);
    T* to = const_cast<T*>(p.factors) + p.factors_of[phase];
    for (std::int64_t i = global_index(); i < lines * stride; i += global_count()) {
        const std::int64_t line = i / stride;
        const int in_line = static_cast<int>(i - line * stride), of_group = Along ? p.columns : depth;
        const int group = static_cast<int>(line / of_group),
                  outer = static_cast<int>(line - std::int64_t{group} * of_group);
        const int column = Along ? outer : in_line, k = Along ? in_line : outer;
        const int tap = p.by_depth.quotient(k), channel = p.by_depth.remainder(k, tap);
        T value{};
        if (column < p.columns && k < depth && channel < p.w_depths) {
            const int j = across.by_taps.quotient(tap);
            const int y = down.first_tap + j * down.tap_step;
            const int x = across.first_tap + across.by_taps.remainder(tap, j) * across.tap_step;
            value = p.w[group * p.w_group + column * p.w_column + channel * p.w_depth +
                        std::int64_t{y} * p.kernel_width + x];
        }
        to[i] = value;
    }
}

// Where a tile's sums go.
template <class T>
class CorrelationTarget {
    using Sum = Real<T>;

   public:
    TBPTT_DEVICE CorrelationTarget(const Correlation<T>& p, const Direction& down, const Direction& across, int rows,
                                   int group, int first_row, int first_column)
        : p_(p),
          down_(down),
          across_(across),
          first_row_(first_row),
          first_column_(first_column),
          rows_(rows),
          channels_(blockIdx.z * p.part_size +
                    (std::int64_t{group} * p.columns + first_column) * p.target_images.channel),
          bias_(p.bias ? p.bias + std::int64_t{group} * p.columns : nullptr) {}

    TBPTT_DEVICE Sum start(int column) const {
        return bias_ && first_column_ + column < p_.columns ? Sum(bias_[first_column_ + column]) : Sum(0);
    }

    // Where it lies; -1: nowhere.
    TBPTT_DEVICE std::int64_t row(int row) const {
        return first_row_ + row < rows_ ? channels_ + place_of(first_row_ + row) : -1;
    }

    TBPTT_DEVICE void columns(std::int64_t row, int column, const Sum (&values)[2]) const {
        const int left = p_.columns - first_column_ - column;
        if (row < 0 || left <= 0) return;
        const Sum first = finish(values[0]), second = finish(values[1]);
        if (p_.runs) {
            p_.target.store(row + column, Group<Sum, 2>{{first, second}});
        } else {
            p_.target.store(row + column, Group<Sum, 1>{{first}});
            if (left > 1) p_.target.store(row + column + 1, Group<Sum, 1>{{second}});
        }
    }

    struct Run {
        std::int64_t place[Group<T>::size];  // -1: none
    };

    TBPTT_DEVICE Run run(int row) const {
        Run result;
#pragma unroll
        for (int e = 0; e < Group<T>::size; ++e)
            result.place[e] =
                first_row_ + row + e < rows_ && (e == 0 || !p_.runs) ? place_of(first_row_ + row + e) : -1;
        return result;
    }

    TBPTT_DEVICE void rows(const Run& run, int column, const Sum (&values)[Group<T>::size]) const {
        if (first_column_ + column >= p_.columns) return;
        const std::int64_t to = channels_ + column * p_.target_images.channel;
        if (p_.runs) {
            Group<Sum, Group<T>::size> all;
#pragma unroll
            for (int e = 0; e < Group<T>::size; ++e) all.value[e] = finish(values[e]);
            if (run.place[0] >= 0) p_.target.store(to + run.place[0], all);
        } else {
#pragma unroll
            for (int e = 0; e < Group<T>::size; ++e)
                if (run.place[e] >= 0) p_.target.store(to + run.place[e], Group<Sum, 1>{{finish(values[e])}});
        }
    }

   private:
    TBPTT_DEVICE Sum finish(Sum value) const {
        return p_.activation == Activation::relu ? ScalarMath<Sum>::relu(value) : value;
    }

    TBPTT_DEVICE std::int64_t place_of(int row) const {
        const Images& images = p_.target_images;
        if (p_.whole && p_.last) return row * images.pixel;
        const int line = across_.by_pixels.quotient(row), image = down_.by_pixels.quotient(line);
        const std::int64_t y =
            down_.first_target + std::int64_t{down_.by_pixels.remainder(line, image)} * p_.target_step_y;
        const std::int64_t x =
            across_.first_target + std::int64_t{across_.by_pixels.remainder(row, line)} * p_.target_step_x;
        return image * images.image + (y * images.width + x) * images.pixel;
    }

    const Correlation<T>& p_;
    const Direction &down_, &across_;
    const int first_row_, first_column_, rows_;
    const std::int64_t channels_;
    const T* bias_;
};

// Blocks that share rows are neighbours: they find them in the second-level cache.
template <class Tile, bool Exact, bool Groups>
__global__ void __launch_bounds__(Tile::threads, 2) correlate(const Correlation<typename Tile::T> p) {
    using T = typename Tile::T;
    using Left = GatherLoader<Tile, Tile::rows, Groups, PixelPlaces, TapPlaces>;
    using Right = MatrixLoader<Tile, Tile::columns, true>;
    const int phase = static_cast<int>(blockIdx.y);
    const Direction &down = p.down[phase / p.phases_across], &across = p.across[phase % p.phases_across];
    const int column_tiles = (p.columns + Tile::columns - 1) / Tile::columns;
    const int shared = static_cast<int>(blockIdx.x) / column_tiles;
    const int first_column = (static_cast<int>(blockIdx.x) - shared * column_tiles) * Tile::columns;
    const int row_tiles = static_cast<int>(gridDim.x) / column_tiles / p.groups;
    const int group = shared / row_tiles, first_row = (shared - group * row_tiles) * Tile::rows;
    const int rows = rows_of(p, down, across), depth = down.taps * across.taps * p.depth;
    if (first_row >= rows) return;
    const int all_chunks = (depth + Tile::depth - 1) / Tile::depth, part_chunks = (all_chunks + p.parts - 1) / p.parts;
    const int first_chunk = static_cast<int>(blockIdx.z) * part_chunks, left_over = all_chunks - first_chunk;
    const int chunks = left_over < part_chunks ? left_over : part_chunks, first_depth = first_chunk * Tile::depth;

    T* memory = shared_memory<T>();
    const Images& images = p.source_images;
    Left left(p.source + std::int64_t{group} * p.depth * images.channel, images.height, images.width,
              PixelPlaces{down, across, images, p.step_y, p.step_x, first_row, rows},
              TapPlaces{down, across, images, p.by_depth, false, first_depth, depth},
              reinterpret_cast<PackedPlace*>(memory + Tile::stages * Tile::stage));
    const std::int64_t stride = p.factors_stride[phase];
    Right right(p.factors + p.factors_of[phase] + group * p.factors_group[phase] +
                    first_column * (Tile::along ? stride : 1) + first_depth * (Tile::along ? 1 : stride),
                stride, p.columns - first_column, depth - first_depth);
    CorrelationTarget<T> target(p, down, across, rows, group, first_row, first_column);
    __syncthreads();
    if constexpr (is_launched<Tile>) multiply_tile<Tile, Exact>(left, right, chunks, memory, target);
}

template <class T>
int most_rows(const Correlation<T>& p) {
    int most = 0;
    for (int y = 0; y < p.phases_down; ++y)
        for (int x = 0; x < p.phases_across; ++x) {
            const int rows = p.batch * p.down[y].pixels * p.across[x].pixels;
            most = rows > most ? rows : most;
        }
    return most;
}

// Of a launch, those that meet any tap: the others only write zeros.
template <class T>
int busy_phases(const Correlation<T>& p) {
    int down = 0, across = 0;
    for (int i = 0; i < p.phases_down; ++i) down += p.down[i].taps > 0;
    for (int i = 0; i < p.phases_across; ++i) across += p.across[i].taps > 0;
    return down * across;
}

template <class Tile, bool Exact, bool Groups>
void run_correlation(const Correlation<typename Tile::T>& p, Stream stream) {
    using Left = GatherLoader<Tile, Tile::rows, Groups, PixelPlaces, TapPlaces>;
    check_tile<Tile>();
    Grid grid;
    grid.x = static_cast<unsigned>(
        to_index(p.groups * divide_up(most_rows(p), Tile::rows) * divide_up(p.columns, Tile::columns)));
    grid.y = static_cast<unsigned>(p.phases_down * p.phases_across);
    grid.z = static_cast<unsigned>(p.parts);
    grid.threads = Tile::threads;
    grid.shared_bytes = Tile::shared_bytes + Left::table_size * sizeof(PackedPlace);
    launch(correlate<Tile, Exact, Groups>, grid, stream, p);
}

template <bool Along, bool Groups>
void choose_tile(const Correlation<double>& p, const Call& call) {
    run_correlation<ProductTile<double, 64, 64, 32, 32, Along>, true, Groups>(p, call.stream);
}

// Whether tiles of this size give every multiprocessor one. Parts were made for the smallest.
template <class T>
bool fills_device(const Correlation<T>& p, int rows, int columns) {
    const std::int64_t tiles = p.groups * divide_up(most_rows(p), rows) * divide_up(p.columns, columns);
    return p.parts == 1 && busy_phases(p) * tiles >= current_device().multiprocessors;
}

// The largest tile that fills the device: what a warp reads of shared memory falls with its size. The order of sums does not
// depend on it.
template <bool Along, bool Groups>
void choose_tile(const Correlation<float>& p, const Call& call) {
    using Large = ProductTile<float, 128, 128, 64, 64, Along>;
    using Middle = ProductTile<float, 128, 64, 64, 32, Along>;
    using Small = ProductTile<float, 64, 64, 32, 32, Along>;
    using Exact = ProductTile<float, Along ? 128 : 64, 64, Along ? 64 : 32, 32, Along>;  // what registers hold
    if (call.exact)
        return fills_device(p, 128, 64) ? run_correlation<Exact, true, Groups>(p, call.stream)
                                        : run_correlation<Small, true, Groups>(p, call.stream);
    if (p.columns > 64 && fills_device(p, 128, 128) && current_device().capability >= 80)
        return run_correlation<Large, false, Groups>(p, call.stream);
    fills_device(p, 128, 64) ? run_correlation<Middle, false, Groups>(p, call.stream)
                             : run_correlation<Small, false, Groups>(p, call.stream);
}

template <bool Along, bool Groups>
void choose_tile(const Correlation<Bfloat16>& p, const Call& call) {
    using Large = ProductTile<Bfloat16, 128, 128, 64, 64, Along>;
    using Middle = ProductTile<Bfloat16, 128, 64, 64, 32, Along>;
    using Small = ProductTile<Bfloat16, 64, 64, 32, 32, Along>;
    if (p.columns > 64 && fills_device(p, 128, 128)) return run_correlation<Large, true, Groups>(p, call.stream);
    fills_device(p, 128, 64) ? run_correlation<Middle, true, Groups>(p, call.stream)
                             : run_correlation<Small, true, Groups>(p, call.stream);
}

// Whether the phases of p are one that is all of the target.
template <class T>
bool is_whole(const Correlation<T>& p) {
    return p.phases_down == 1 && p.phases_across == 1 && p.target_step_y == 1 && p.target_step_x == 1 &&
           p.down[0].pixels == p.target_images.height && p.across[0].pixels == p.target_images.width;
}

// The factors of some phases, for as many launches of them as there are: w itself where it is such a matrix, else a copy.
template <class T>
class Factors {
   public:
    // Lays them out and enters them into p.
    Factors(Correlation<T>& p, Stream stream) : copy_(size(p), stream) {
        p.factors = copy_ ? static_cast<const T*>(copy_) : p.w;
        if (!copy_ || count_ == 0) return;
        Grid grid = grid_for(longest_);
        grid.y = static_cast<unsigned>(p.phases_down * p.phases_across);
        launch(p.last ? pack_factors<T, true> : pack_factors<T, false>, grid, stream, p);
    }

   private:
    std::int64_t size(Correlation<T>& p) {
        constexpr std::int64_t group = Group<T>::size;
        const bool along = p.last;
        const bool one = is_whole(p) && p.w_column * p.w_depth != 0 && p.down[0].taps * p.across[0].taps == 1 &&
                         p.w_depths == p.depth;
        const std::int64_t inner = along ? p.w_depth : p.w_column, outer = along ? p.w_column : p.w_depth;
        if (one && inner == 1 && outer % group == 0 && p.w_group % group == 0 && in_groups(p.w) &&
            (along ? p.depth : p.columns) % group == 0) {
            p.factors_of[0] = 0;
            p.factors_stride[0] = outer;
            p.factors_group[0] = p.w_group;
            return 0;
        }
        for (int phase = 0; phase < p.phases_down * p.phases_across; ++phase) {
            const std::int64_t depth =
                std::int64_t{p.down[phase / p.phases_across].taps} * p.across[phase % p.phases_across].taps * p.depth;
            const std::int64_t stride = divide_up(along ? depth : p.columns, group) * group;
            const std::int64_t lines = along ? p.columns : to_index(depth);
            p.factors_of[phase] = count_;
            p.factors_stride[phase] = stride;
            p.factors_group[phase] = lines * stride;
            count_ += p.groups * lines * stride;
            longest_ = p.groups * lines * stride > longest_ ? p.groups * lines * stride : longest_;
        }
        return count_ > 0 ? count_ : 1;
    }

    std::int64_t count_ = 0, longest_ = 0;
    Scratch<T> copy_;
};

// The factors are laid out.
template <class T>
void correlate_packed(Correlation<T>& p, const Call& call) {
    constexpr int group = Group<T>::size;
    const Direction &down = p.down[0], &across = p.across[0];
    const std::int64_t plane = std::int64_t{down.pixels} * across.pixels;
    p.whole = is_whole(p);
    if (p.last) {
        p.runs = p.columns % 2 == 0 && in_groups(p.target.rounded);
        if constexpr (is_narrow<T>)  // as OrderedImages are
            return choose_tile<true, true>(p, call);
        else
            p.depth % group == 0 && in_groups(p.source) ? choose_tile<true, true>(p, call)
                                                        : choose_tile<true, false>(p, call);
    } else if constexpr (!is_narrow<T>) {
        // neighbouring pixels stay neighbours where each meets the pixel of its own place
        const bool same = p.whole && down.taps * across.taps == 1 && down.first_shift == 0 && across.first_shift == 0 &&
                          p.step_y == 1 && p.step_x == 1 && p.source_images.height == down.pixels &&
                          p.source_images.width == across.pixels;
        p.runs = p.whole && plane % group == 0 && in_groups(p.target.rounded);
        same&& plane % group == 0 && in_groups(p.source) ? choose_tile<false, true>(p, call)
                                                         : choose_tile<false, false>(p, call);
    }
}

template <class T>
void correlate_phases(Correlation<T>& p, const Call& call) {
    if (most_rows(p) == 0 || p.columns == 0) return;
    const Factors<T> factors(p, call.stream);
    correlate_packed(p, call);
}

// Into how many parts the depth is cut: small tiles, four on each multiprocessor of a large chip, none of them short.
template <class T>
int parts_of(const Correlation<T>& p, std::int64_t phases, std::int64_t rows, std::int64_t taps) {
    constexpr std::int64_t blocks = 528, tile = 64, least = 16;
    const std::int64_t tiles = phases * p.groups * divide_up(rows, tile) * divide_up(p.columns, tile);
    const std::int64_t chunks = taps * p.depth / (4 * Group<T>::size);
    if (tiles == 0) return 1;
    const std::int64_t parts = blocks / tiles < chunks / least ? blocks / tiles : chunks / least;
    return static_cast<int>(parts > 1 ? parts : 1);
}

}  // namespace cuda
}  // namespace tbptt
