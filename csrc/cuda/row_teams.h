// Functions of whole rows: each has a team of threads, some lanes of a warp, or a block where it is long.
#pragma once

#include "reduce.h"
#include "vectors.h"

namespace tbptt {
namespace cuda {

// How rows are shared out; the kernels' Block tells whether a team is a block.
struct RowTeams {
    std::int64_t rows, columns;
    int lanes;  // of a team within a warp: a power of two
};

template <bool Block>
class RowTeam {
   public:
    TBPTT_DEVICE explicit RowTeam(const RowTeams& teams)
        : lanes_(teams.lanes),
          row_(Block ? std::int64_t{blockIdx.x}
                     : (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / static_cast<unsigned>(teams.lanes)) {}

    TBPTT_DEVICE std::int64_t row() const { return row_; }
    TBPTT_DEVICE std::int64_t index() const {
        return Block ? threadIdx.x : threadIdx.x % static_cast<unsigned>(lanes_);
    }
    TBPTT_DEVICE std::int64_t size() const { return Block ? blockDim.x : static_cast<unsigned>(lanes_); }

    // Every thread of the block calls it, those without a row too.
    template <class V, class F>
    TBPTT_DEVICE V combine(V value, V nothing, F f) const {
        if constexpr (Block)
            return combine_block(value, nothing, shared_memory<V>(), f);
        else
            return combine_lanes(value, lanes_, f);
    }

   private:
    int lanes_;
    std::int64_t row_;
};

struct RowLaunch {
    RowTeams teams;
    Grid grid;
    bool block;
};

// About four vectors of a row for each of its threads.
inline RowLaunch share_rows(std::int64_t rows, std::int64_t columns, int vector) {
    RowLaunch launch{{rows, columns, 1}, {}, columns > 1024};
    launch.grid.shared_bytes = 32 * sizeof(double);
    if (launch.block) {
        launch.grid.x = static_cast<unsigned>(rows);
        launch.grid.threads = columns > 8192 ? 512 : 256;
    } else {
        while (launch.teams.lanes < warp_size && launch.teams.lanes * 4 * vector < columns) launch.teams.lanes *= 2;
        launch.grid.x = static_cast<unsigned>(divide_up(rows * launch.teams.lanes, launch.grid.threads));
    }
    return launch;
}

// Calls f(Constant<vector>, Constant<block>, launch) with what a kernel for rows is made for.
template <class T, class F>
void with_rows(std::int64_t rows, std::int64_t columns, bool aligned, F f) {
    constexpr int L = vector_values<T>;
    const bool by_vectors = aligned && columns % L == 0;
    const RowLaunch shared = share_rows(rows, columns, by_vectors ? L : 1);
    if (by_vectors)
        shared.block ? f(Constant<L>(), Constant<1>(), shared) : f(Constant<L>(), Constant<0>(), shared);
    else
        shared.block ? f(Constant<1>(), Constant<1>(), shared) : f(Constant<1>(), Constant<0>(), shared);
}

}  // namespace cuda
}  // namespace tbptt
