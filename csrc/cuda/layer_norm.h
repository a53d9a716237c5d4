// Layer normalization. The statistics of each row are summed in double and in two passes, and so are the sums of its gradients.
#pragma once

#include "maths.h"
#include "normalization.h"
#include "row_teams.h"

namespace tbptt {
namespace cuda {

template <int L, class T>
TBPTT_DEVICE Vector<T, L> load_or(T otherwise, const T* from, std::int64_t i) {
    if (from) return load_vector<L>(from + i);
    Vector<T, L> values;
#pragma unroll
    for (int k = 0; k < L; ++k) values.value[k] = otherwise;
    return values;
}

template <class T>
struct NormalizedRows {
    LayerNormForward<T> p;
    RowTeams teams;
};

template <class T, int L, bool Block>
__global__ void __launch_bounds__(512, 2) normalize_rows(const NormalizedRows<T> p) {
    const RowTeam<Block> team(p.teams);
    const std::int64_t columns = p.teams.columns, offset = team.row() * columns, step = team.size() * L;
    const std::int64_t begin = team.row() < p.teams.rows ? team.index() * L : columns;
    double sum = 0, squares = 0;
    for (std::int64_t i = begin; i < columns; i += step) {
        const auto x = load_vector<L>(p.p.x + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k) sum += static_cast<double>(x.value[k]);
    }
    const double average = team.combine(sum, 0.0, Sum()) / static_cast<double>(columns);
    for (std::int64_t i = begin; i < columns; i += step) {
        const auto x = load_vector<L>(p.p.x + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const double difference = static_cast<double>(x.value[k]) - average;
            squares += difference * difference;
        }
    }
    squares = team.combine(squares, 0.0, Sum());
    const double inv_std = 1 / square_root(squares / static_cast<double>(columns) + p.p.eps);
    const Mean<T> mean = split_mean<T>(average);
    const T scale = static_cast<T>(inv_std);
    for (std::int64_t i = begin; i < columns; i += step) {
        auto x = load_vector<L>(p.p.x + offset + i);
        const auto weight = load_or<L>(T(1), p.p.weight, i), bias = load_or<L>(T(0), p.p.bias, i);
#pragma unroll
        for (int k = 0; k < L; ++k)
            x.value[k] = (x.value[k] - mean.high - mean.low) * scale * weight.value[k] + bias.value[k];
        store_vector(p.p.y + offset + i, x);
    }
    if (begin != 0) return;
    p.p.mean[team.row()] = average;
    p.p.inv_std[team.row()] = inv_std;
}

template <class T>
void layer_norm_forward(const LayerNormForward<T>& p, const Call& call) {
    const bool aligned = all_aligned(p.x, p.y, p.weight, p.bias);
    with_rows<T>(p.rows, p.columns, aligned, [&](auto vector, auto block, const RowLaunch& shared) {
        constexpr int L = decltype(vector)::value;
        constexpr bool Block = decltype(block)::value == 1;
        launch(&normalize_rows<T, L, Block>, shared.grid, call.stream, NormalizedRows<T>{p, shared.teams});
    });
}

template <class T>
struct NormalizedRowsBackward {
    LayerNormBackward<T> p;
    RowTeams teams;
};

// With g = dy·weight, dx = inv_std·(g - mean of g - x̂·mean of g·x̂) (Ba, Kiros and Hinton 2016).
template <class T, int L, bool Block>
__global__ void __launch_bounds__(512, 2) normalize_rows_backward(const NormalizedRowsBackward<T> p) {
    const RowTeam<Block> team(p.teams);
    const std::int64_t columns = p.teams.columns, offset = team.row() * columns, step = team.size() * L;
    const bool mine = team.row() < p.teams.rows;
    const std::int64_t begin = mine ? team.index() * L : columns;
    const double average = mine ? p.p.mean[team.row()] : 0, inv_std = mine ? p.p.inv_std[team.row()] : 0;
    double sum = 0, product = 0;
    for (std::int64_t i = begin; i < columns; i += step) {
        const auto x = load_vector<L>(p.p.x + offset + i), dy = load_vector<L>(p.p.grad_y + offset + i),
                   weight = load_or<L>(T(1), p.p.weight, i);
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const double g = static_cast<double>(dy.value[k]) * static_cast<double>(weight.value[k]);
            sum += g;
            product += g * (static_cast<double>(x.value[k]) - average);
        }
    }
    const double share = -inv_std / static_cast<double>(columns);
    const T shift = static_cast<T>(share * team.combine(sum, 0.0, Sum()));
    const T slope = static_cast<T>(share * inv_std * team.combine(product, 0.0, Sum()));
    const T scale = static_cast<T>(inv_std);
    const Mean<T> mean = split_mean<T>(average);
    for (std::int64_t i = begin; i < columns; i += step) {
        const auto dy = load_vector<L>(p.p.grad_y + offset + i), weight = load_or<L>(T(1), p.p.weight, i);
        auto x = load_vector<L>(p.p.x + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k) {
            const T normal = (x.value[k] - mean.high - mean.low) * scale;
            x.value[k] = dy.value[k] * weight.value[k] * scale + (normal * slope + shift);
        }
        store_vector(p.p.grad_x + offset + i, x);
    }
}

template <class T>
struct LayerNormWeights {
    std::int64_t columns, parts;
    const double *sums, *products;  // [parts, columns]
    T *grad_w, *grad_b;             // out = [columns] or null
};

template <class T>
__global__ void __launch_bounds__(channel_threads) finish_layer_norm(const LayerNormWeights<T> p) {
    const std::int64_t column = channel_of_lane();
    const bool inside = column < p.columns;
    const auto total = [&](const double* of_parts) {
        return add_parts_of_lane(p.parts, inside,
                                 [&](std::int64_t part) { return of_parts[part * p.columns + column]; });
    };
    const double sum = total(p.sums), product = total(p.products);
    if (!inside || warp_index() != 0) return;
    if (p.grad_b) p.grad_b[column] = static_cast<T>(sum);
    if (p.grad_w) p.grad_w[column] = static_cast<T>(product);
}

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p, const Call& call) {
    const bool aligned = all_aligned(p.x, p.grad_y, p.weight, p.grad_x);
    if (p.grad_x)
        with_rows<T>(p.rows, p.columns, aligned, [&](auto vector, auto block, const RowLaunch& shared) {
            constexpr int L = decltype(vector)::value;
            constexpr bool Block = decltype(block)::value == 1;
            launch(&normalize_rows_backward<T, L, Block>, shared.grid, call.stream,
                   NormalizedRowsBackward<T>{p, shared.teams});
        });
    if (!p.grad_w && !p.grad_b) return;
    const ChannelCuts cuts({p.rows, p.columns, 1}, 1);
    const std::int64_t parts = cuts.parts * p.columns;
    const Scratch<double> sums(parts, call.stream), products(parts, call.stream);
    launch(&add_gradients<T, OfRows, 1, true>, cuts.grid(), call.stream,
           GradientSums<T, OfRows>{cuts, {p.mean, p.inv_std}, p.grad_y, p.x, sums, products});
    launch(&finish_layer_norm<T>, grid_of_channels(p.columns), call.stream,
           LayerNormWeights<T>{p.columns, cuts.parts, sums, products, p.grad_w, p.grad_b});
}

}  // namespace cuda
}  // namespace tbptt
