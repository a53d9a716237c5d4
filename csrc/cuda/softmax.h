// Softmax over rows, forward and backward.
#pragma once

#include "api.h"
#include "maths.h"
#include "row_teams.h"

namespace tbptt {
namespace cuda {

template <class T>
struct Normalizer {
    T largest, sum;  // of a row, and of exp(x - largest) over it
};

// In one pass: what was added up is scaled down when a larger value comes. It begins with the least finite number, so that
// no Inf is taken from another before a row has one. A NaN reaches the sum.
template <int L, class T, class Team>
TBPTT_DEVICE Normalizer<T> normalizer_of(const T* row, std::int64_t columns, const Team& team) {
    constexpr T least = sizeof(T) == 4 ? static_cast<T>(-3.402823466e+38f) : static_cast<T>(-1.7976931348623157e+308);
    T largest = least, sum = 0;
    for (std::int64_t i = team.index() * L; row && i < columns; i += team.size() * L) {
        const auto x = load_vector<L>(row + i);
        T here = largest;
#pragma unroll
        for (int k = 0; k < L; ++k) here = Larger()(here, x.value[k]);
        if (here > largest) sum *= exponential(largest - here);
        largest = here;
#pragma unroll
        for (int k = 0; k < L; ++k) sum += exponential(x.value[k] - largest);
    }
    const T all = team.combine(largest, least, Larger());
    return {all, team.combine(sum * exponential(largest - all), T{0}, Sum())};
}

template <class T>
struct SoftmaxRows {
    SoftmaxForward<T> p;
    RowTeams teams;
};

template <class T, int L, bool Block>
__global__ void __launch_bounds__(512) softmax_rows(const SoftmaxRows<T> p) {
    const RowTeam<Block> team(p.teams);
    const std::int64_t columns = p.teams.columns, offset = team.row() * columns;
    const bool mine = team.row() < p.teams.rows;
    const auto of = normalizer_of<L>(mine ? p.p.x + offset : nullptr, columns, team);
    if (!mine) return;
    for (std::int64_t i = team.index() * L; i < columns; i += team.size() * L) {
        auto x = load_vector<L>(p.p.x + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k) x.value[k] = exponential(x.value[k] - of.largest) / of.sum;
        store_vector(p.p.y + offset + i, x);
    }
}

template <class T>
void softmax_forward(const SoftmaxForward<T>& p, const Call& call) {
    with_rows<T>(p.rows, p.columns, all_aligned(p.x, p.y), [&](auto vector, auto block, const RowLaunch& shared) {
        constexpr int L = decltype(vector)::value;
        constexpr bool Block = decltype(block)::value == 1;
        launch(&softmax_rows<T, L, Block>, shared.grid, call.stream, SoftmaxRows<T>{p, shared.teams});
    });
}

template <class T>
struct SoftmaxRowsBackward {
    SoftmaxBackward<T> p;
    RowTeams teams;
};

// The sum, in which large terms may cancel, is in double.
template <class T, int L, bool Block>
__global__ void __launch_bounds__(512) softmax_rows_backward(const SoftmaxRowsBackward<T> p) {
    const RowTeam<Block> team(p.teams);
    const std::int64_t columns = p.teams.columns, offset = team.row() * columns;
    const bool mine = team.row() < p.teams.rows;
    double sum = 0;
    for (std::int64_t i = team.index() * L; mine && i < columns; i += team.size() * L) {
        const auto y = load_vector<L>(p.p.y + offset + i), grad = load_vector<L>(p.p.grad_y + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k) sum += static_cast<double>(y.value[k]) * static_cast<double>(grad.value[k]);
    }
    sum = team.combine(sum, 0.0, Sum());
    for (std::int64_t i = team.index() * L; mine && i < columns; i += team.size() * L) {
        const auto y = load_vector<L>(p.p.y + offset + i);
        auto grad = load_vector<L>(p.p.grad_y + offset + i);
#pragma unroll
        for (int k = 0; k < L; ++k)
            grad.value[k] =
                static_cast<T>(static_cast<double>(y.value[k]) * (static_cast<double>(grad.value[k]) - sum));
        store_vector(p.p.grad_x + offset + i, grad);
    }
}

template <class T>
void softmax_backward(const SoftmaxBackward<T>& p, const Call& call) {
    const bool aligned = all_aligned(p.grad_y, p.y, p.grad_x);
    with_rows<T>(p.rows, p.columns, aligned, [&](auto vector, auto block, const RowLaunch& shared) {
        constexpr int L = decltype(vector)::value;
        constexpr bool Block = decltype(block)::value == 1;
        launch(&softmax_rows_backward<T, L, Block>, shared.grid, call.stream, SoftmaxRowsBackward<T>{p, shared.teams});
    });
}

}  // namespace cuda
}  // namespace tbptt
