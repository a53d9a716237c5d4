// The gradients of a convolution by its weights, as products: the output's channels are rows, the weights of one of them
// columns, and the depth is all pixels of all images. The depth is cut in parts that the problem alone decides, and the
// parts are added in their order.
#pragma once

#include "image_order.h"

namespace tbptt {
namespace cuda {

// to [count] = the sum of from [parts, count] over its parts, in the order of the weights.
template <class T>
struct PartSums {
    std::int64_t count;
    int parts;
    int columns, depth, w_depths, taps;  // for place_of_weight; without taps, the order stays
    const Real<T>* from;
    T* to;
};

// Parts of channels-last weights are [group, tap, depth, column]; weights are [group, column, w_depths, tap]. -1: nowhere.
TBPTT_DEVICE std::int64_t place_of_weight(std::int64_t i, int columns, int depth, int w_depths, int taps) {
    const std::int64_t line = i / columns, column = i - line * columns;
    const std::int64_t tap_line = line / depth, d = line - tap_line * depth;
    const std::int64_t group = tap_line / taps, tap = tap_line - group * taps;
    return d < w_depths ? ((group * columns + column) * w_depths + d) * taps + tap : -1;
}

// Eight threads share the parts of an element.
template <class T>
__global__ void add_parts(const PartSums<T> p) {
    constexpr int shares = 8;
    Real<T>* sums = shared_memory<Real<T>>();
    const int lane = lane_index(), share = warp_index();
    for (std::int64_t first = std::int64_t{blockIdx.x} * warp_size; first < p.count;
         first += std::int64_t{gridDim.x} * warp_size) {
        const std::int64_t i = first + lane;
        Real<T> sum = 0;
        if (i < p.count)
            for (int part = share; part < p.parts; part += shares) sum += p.from[part * p.count + i];
        sums[share * warp_size + lane] = sum;
        __syncthreads();
        if (share == 0 && i < p.count) {
            Real<T> total = sums[lane];
#pragma unroll
            for (int s = 1; s < shares; ++s) total += sums[s * warp_size + lane];
            const std::int64_t at = p.taps > 0 ? place_of_weight(i, p.columns, p.depth, p.w_depths, p.taps) : i;
            if (at >= 0) p.to[at] = T(total);
        }
        __syncthreads();
    }
}

template <class T>
void run_sums(const PartSums<T>& p, Stream stream) {
    Grid grid = grid_for(p.count * 8);
    grid.shared_bytes = grid.threads * sizeof(Real<T>);
    launch(add_parts<T>, grid, stream, p);
}

// What a sum that is the only part may be written to: the gradient itself, unless it has to be rounded.
template <class T>
Real<T>* only_part(T* gradient) {
    if constexpr (is_narrow<T>)
        return nullptr;
    else
        return gradient;
}

template <class T>
struct WeightGradient {
    Images source_images, output_images;
    int groups, depth, columns;  // channels of a group: of the source, and of the output
    int w_depths, g_columns;     // those that w knows, and those that lie in g
    int pixels;                  // of all outputs
    Direction down, across;
    int step_y, step_x;
    Divisor by_plane, by_inner;  // pixels of an output; depth (channels last) or taps
    bool last;
    int part_chunks;  // of the depth
    std::int64_t part_size;
    const T* source;
    const T* g;   // the gradient by the output before the activation
    Real<T>* to;  // parts
    bool runs;
};

// Output pixels first, first+1, … below end, with channels first.
struct PlanePlaces {
    Divisor by_plane;
    std::int64_t image;
    int first, end;

    TBPTT_DEVICE Place operator()(int i) const {
        if (first + i >= end) return nowhere();
        const int n = by_plane.quotient(first + i);
        return {n * image + by_plane.remainder(first + i, n), 0, 0};
    }
};

struct ChannelPlaces {
    std::int64_t channel;
    int end;

    TBPTT_DEVICE Place operator()(int i) const { return i < end ? Place{i * channel, 0, 0} : nowhere(); }
};

// Channels last: parts [group, weights, columns]; first: [group, columns, weights].
template <class T>
class WeightTarget {
    using Sum = Real<T>;

   public:
    TBPTT_DEVICE WeightTarget(Sum* to, int columns, int weights, int first_row, int first_column, bool runs)
        : to_(to),
          columns_(columns),
          weights_(weights),
          first_row_(first_row),
          first_column_(first_column),
          runs_(runs) {}

    TBPTT_DEVICE Sum start(int) const { return 0; }

    TBPTT_DEVICE Sum* row(int row) const {
        return first_row_ + row < columns_ ? to_ + std::int64_t{first_row_ + row} * weights_ : nullptr;
    }

    TBPTT_DEVICE void columns(Sum* to, int column, const Sum (&values)[2]) const {
        const int at = first_column_ + column;
        if (!to || at >= weights_) return;
        to[at] = values[0];
        if (at + 1 < weights_) to[at + 1] = values[1];
    }

    TBPTT_DEVICE int run(int row) const { return first_row_ + row; }

    TBPTT_DEVICE void rows(int run, int column, const Sum (&values)[Group<T>::size]) const {
        const int at = first_column_ + column;
        if (at >= weights_ || run >= columns_) return;
        Sum* to = to_ + std::int64_t{at} * columns_ + run;
        if (runs_) {
            Group<Sum, Group<T>::size> all;
#pragma unroll
            for (int e = 0; e < Group<T>::size; ++e) all.value[e] = values[e];
            *reinterpret_cast<Group<Sum, Group<T>::size>*>(to) = all;
        } else {
#pragma unroll
            for (int e = 0; e < Group<T>::size; ++e)
                if (run + e < columns_) to[e] = values[e];
        }
    }

   private:
    Sum* to_;
    const int columns_, weights_, first_row_, first_column_;
    const bool runs_;
};

// The two operands' loaders, and the places in shared memory they need.
template <class Tile, bool GroupsG, bool GroupsX>
struct WeightLoaders {
    using Right = GatherLoader<Tile, Tile::columns, GroupsX, TapPlaces, PixelPlaces>;
    using LeftAlong = GatherLoader<Tile, Tile::rows, GroupsG, ChannelPlaces, PlanePlaces>;
    using LeftAcross = MatrixLoader<Tile, Tile::rows, GroupsG>;
    static constexpr int places = Right::table_size + (Tile::along ? Tile::rows : 0);
};

template <class Tile, bool Exact, bool GroupsG, bool GroupsX>
__global__ void __launch_bounds__(Tile::threads, 2) correlate_weights(const WeightGradient<typename Tile::T> p) {
    using T = typename Tile::T;
    using Loaders = WeightLoaders<Tile, GroupsG, GroupsX>;
    const int weights = p.down.taps * p.across.taps * p.depth;
    const int column_tiles = (weights + Tile::columns - 1) / Tile::columns;
    const int row_tiles = (p.columns + Tile::rows - 1) / Tile::rows;
    const int shared = static_cast<int>(blockIdx.x) / column_tiles, group = shared / row_tiles;
    const int first_column = (static_cast<int>(blockIdx.x) - shared * column_tiles) * Tile::columns;
    const int first_row = (shared - group * row_tiles) * Tile::rows;
    const int part = static_cast<int>(blockIdx.y), first = part * p.part_chunks * Tile::depth;
    const int left_over = p.pixels - first, part_pixels = p.part_chunks * Tile::depth;
    const int length = left_over < part_pixels ? left_over : part_pixels, end = first + length;
    const int chunks = (length + Tile::depth - 1) / Tile::depth;

    T* memory = shared_memory<T>();
    PackedPlace* table = reinterpret_cast<PackedPlace*>(memory + Tile::stages * Tile::stage);
    const Images &images = p.source_images, &outputs = p.output_images;
    typename Loaders::Right right(p.source + std::int64_t{group} * p.depth * images.channel, images.height,
                                  images.width,
                                  TapPlaces{p.down, p.across, images, p.by_inner, Tile::along, first_column, weights},
                                  PixelPlaces{p.down, p.across, images, p.step_y, p.step_x, first, end}, table);
    const T* g = p.g + (std::int64_t{group} * p.g_columns + first_row) * outputs.channel;
    Real<T>* to = p.to + part * p.part_size + std::int64_t{group} * p.columns * weights;
    WeightTarget<T> target(to, p.columns, weights, first_row, first_column, p.runs);
    if constexpr (Tile::along) {
        typename Loaders::LeftAlong left(g, 1, 1, ChannelPlaces{outputs.channel, p.columns - first_row},
                                         PlanePlaces{p.by_plane, outputs.image, first, end},
                                         table + Loaders::Right::table_size);
        __syncthreads();
        if constexpr (is_launched<Tile>) multiply_tile<Tile, Exact>(left, right, chunks, memory, target);
    } else {
        typename Loaders::LeftAcross left(g + std::int64_t{first} * outputs.pixel, outputs.pixel, p.columns - first_row,
                                          length);
        __syncthreads();
        if constexpr (is_launched<Tile>) multiply_tile<Tile, Exact>(left, right, chunks, memory, target);
    }
}

template <class Tile, bool Exact, bool GroupsG, bool GroupsX>
void run_weights(WeightGradient<typename Tile::T>& p, typename Tile::T* grad_w, Stream stream) {
    using T = typename Tile::T;
    check_tile<Tile>();
    // Parts for eight warps on each multiprocessor of a large chip, of at least `least` chunks.
    constexpr std::int64_t blocks = 132 * 256 / Tile::threads, least = 8, most = 1024;
    const std::int64_t weights = std::int64_t{p.down.taps} * p.across.taps * p.depth;
    const std::int64_t tiles =
        to_index(p.groups * divide_up(p.columns, Tile::rows) * divide_up(weights, Tile::columns));
    const std::int64_t chunks = divide_up(p.pixels, Tile::depth);
    std::int64_t parts = blocks / tiles < chunks / least ? blocks / tiles : chunks / least;
    parts = parts < 1 ? 1 : parts > most ? most : parts;
    p.part_chunks = to_index(divide_up(chunks, parts));
    parts = chunks > 0 ? divide_up(chunks, p.part_chunks) : 1;
    p.part_size = p.groups * p.columns * weights;
    p.runs = p.columns % Group<T>::size == 0;
    const bool direct = parts == 1 && !p.last && !is_narrow<T>;
    const Scratch<Real<T>> sums(direct ? 0 : parts * p.part_size, stream);
    p.to = direct ? only_part(grad_w) : static_cast<Real<T>*>(sums);
    Grid grid;
    grid.x = static_cast<unsigned>(tiles);
    grid.y = static_cast<unsigned>(parts);
    grid.threads = Tile::threads;
    grid.shared_bytes = Tile::shared_bytes + WeightLoaders<Tile, GroupsG, GroupsX>::places * sizeof(PackedPlace);
    launch(correlate_weights<Tile, Exact, GroupsG, GroupsX>, grid, stream, p);
    if (direct) return;
    run_sums(PartSums<T>{p.part_size, static_cast<int>(parts), p.columns, p.depth, p.w_depths,
                         p.last ? p.down.taps * p.across.taps : 0, sums, grad_w},
             stream);
}

template <bool Along, bool GroupsG, bool GroupsX>
void choose_weight_tile(WeightGradient<double>& p, double* grad_w, const Call& call) {
    run_weights<ProductTile<double, 64, 64, 32, 32, Along>, true, GroupsG, GroupsX>(p, grad_w, call.stream);
}

template <bool Along, bool GroupsG, bool GroupsX>
void choose_weight_tile(WeightGradient<float>& p, float* grad_w, const Call& call) {
    using Large = ProductTile<float, 128, 128, 64, 64, Along>;
    using Middle = ProductTile<float, 128, 64, 64, 32, Along>;
    using Small = ProductTile<float, 64, 64, 32, 32, Along>;
    using Exact = ProductTile<float, Along ? 128 : 64, 64, Along ? 64 : 32, 32, Along>;  // what registers hold
    const int weights = p.down.taps * p.across.taps * p.depth;
    if (call.exact)
        return p.columns > 64 ? run_weights<Exact, true, GroupsG, GroupsX>(p, grad_w, call.stream)
                              : run_weights<Small, true, GroupsG, GroupsX>(p, grad_w, call.stream);
    if (p.columns > 64 && weights > 64 && current_device().capability >= 80)
        return run_weights<Large, false, GroupsG, GroupsX>(p, grad_w, call.stream);
    p.columns > 64 ? run_weights<Middle, false, GroupsG, GroupsX>(p, grad_w, call.stream)
                   : run_weights<Small, false, GroupsG, GroupsX>(p, grad_w, call.stream);
}

template <bool Along, bool GroupsG, bool GroupsX>
void choose_weight_tile(WeightGradient<Bfloat16>& p, Bfloat16* grad_w, const Call& call) {
    using Large = ProductTile<Bfloat16, 128, 128, 64, 64, Along>;
    using Small = ProductTile<Bfloat16, 64, 128, 64, 64, Along>;
    p.columns > 64 ? run_weights<Large, true, GroupsG, GroupsX>(p, grad_w, call.stream)
                   : run_weights<Small, true, GroupsG, GroupsX>(p, grad_w, call.stream);
}

// grad_w [groups·columns, w_depths, taps] of the convolution that made the output, whose gradient is g, from the source.
template <class T>
void weight_gradient(const ConvolutionShape& s, const OrderedImages<T>& source, const OrderedImages<T>& g, T* grad_w,
                     const Call& call) {
    constexpr int group = Group<T>::size;
    WeightGradient<T> p{};
    p.source_images = source.images;
    p.output_images = g.images;
    p.groups = to_index(s.groups);
    p.depth = source.depth;
    p.columns = to_index(s.outputs / s.groups);
    p.w_depths = to_index(s.inputs / s.groups);
    p.g_columns = g.depth;
    p.pixels = to_index(s.batch * s.out_height * s.out_width);
    p.down = forward_direction(s.out_height, s.kernel_height, s.dilation_y, s.pad_top);
    p.across = forward_direction(s.out_width, s.kernel_width, s.dilation_x, s.pad_left);
    p.step_y = step_of(s.out_height, s.stride_y);
    p.step_x = step_of(s.out_width, s.stride_x);
    p.by_plane = divide_by(s.out_height * s.out_width);
    p.last = source.last;
    p.by_inner = divide_by(p.last ? p.depth : p.down.taps * p.across.taps);
    p.source = source.data;
    p.g = g.data;
    if (std::int64_t{to_index(s.kernel_height * s.kernel_width * p.depth)} * p.columns == 0) return;
    if constexpr (is_narrow<T>) {  // as OrderedImages are
        choose_weight_tile<false, true, true>(p, grad_w, call);
    } else if (p.last) {
        const bool groups_g = p.columns % group == 0 && in_groups(p.g);
        const bool groups_x = p.depth % group == 0 && in_groups(p.source);
        if (groups_x)
            return groups_g ? choose_weight_tile<false, true, true>(p, grad_w, call)
                            : choose_weight_tile<false, false, true>(p, grad_w, call);
        groups_g ? choose_weight_tile<false, true, false>(p, grad_w, call)
                 : choose_weight_tile<false, false, false>(p, grad_w, call);
    } else {
        const bool groups_g = s.out_height * s.out_width % group == 0 && in_groups(p.g);
        const bool groups_x = groups_g && is_point(s) && in_groups(p.source);
        if (groups_x) return choose_weight_tile<true, true, true>(p, grad_w, call);
        groups_g ? choose_weight_tile<true, true, false>(p, grad_w, call)
                 : choose_weight_tile<true, false, false>(p, grad_w, call);
    }
}

}  // namespace cuda
}  // namespace tbptt
