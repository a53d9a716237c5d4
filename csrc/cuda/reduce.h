// Sums over lanes, blocks and launches, in an order that depends on nothing but the sizes of the problem.
#pragma once

#include "runtime.h"

namespace tbptt {
namespace cuda {

// By a butterfly over the `lanes` (a power of two) of a group: every lane gets the same bits, because the two sides of an
// addition may be exchanged. All lanes of the warp take part.
template <class V, class F>
TBPTT_DEVICE V combine_lanes(V value, int lanes, F f) {
    for (int step = lanes / 2; step > 0; step /= 2) value = f(value, from_lane(value, lane_index() ^ step));
    return value;
}

struct Sum {
    template <class V>
    TBPTT_DEVICE V operator()(V a, V b) const {
        return a + b;
    }
};

// The larger; b where a is NaN, so that a NaN in b stays out.
struct Larger {
    template <class V>
    TBPTT_DEVICE V operator()(V a, V b) const {
        return b > a ? b : a;
    }
};

// Of all threads of the block, known to all. `shared`: a value for each warp, at most 32, and free at once for the next.
template <class V, class F>
TBPTT_DEVICE V combine_block(V value, V nothing, V* shared, F f) {
    value = combine_lanes(value, warp_size, f);
    if (lane_index() == 0) shared[warp_index()] = value;
    __syncthreads();
    value = combine_lanes(lane_index() < warp_count() ? shared[lane_index()] : nothing, warp_size, f);
    __syncthreads();
    return value;
}

// The last stage of a sum: one block adds up the parts that the blocks of another launch have left.
template <class T>
struct Parts {
    const T* parts;
    std::int64_t count;
    T factor;
    const T* divisor;  // or null
    T known_divisor;   // without the other
    T* sum;            // out = factor · Σ parts / divisor
};

template <class T>
__global__ void add_parts(const Parts<T> p) {
    T sum = 0;
    for (std::int64_t i = threadIdx.x; i < p.count; i += blockDim.x) sum += p.parts[i];
    sum = combine_block(sum, T{0}, shared_memory<T>(), Sum());
    if (threadIdx.x == 0) *p.sum = p.factor * sum / (p.divisor ? *p.divisor : p.known_divisor);
}

// One block of as many threads as there is work for.
inline Grid one_block(std::int64_t count) {
    Grid grid;
    grid.threads = static_cast<unsigned>(count >= 512 ? 512 : divide_up(count > 0 ? count : 1, 32) * 32);
    grid.shared_bytes = 32 * sizeof(double);
    return grid;
}

}  // namespace cuda
}  // namespace tbptt
