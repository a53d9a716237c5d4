// What tests see of the emulated device: its size, the order of its threads, and kernels that try what others rest on.
#include <pybind11/stl.h>

#include "../../cuda/runtime_emulated.h"
#include "../../cuda/tensor_cores.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

using namespace tbptt::cuda;

struct Shift {
    int* values;
    bool barrier;  // without it the result depends on the order of the threads
};

// Every thread writes its number into shared memory, and reads that of the next thread.
__global__ void shift_in_block(const Shift p) {
    int* shared = shared_memory<int>();
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (p.barrier) __syncthreads();
    p.values[global_index()] = shared[(threadIdx.x + 1) % blockDim.x];
}

struct Lanes {
    int* values;
};

__global__ void rotate_lanes(const Lanes p) {
    p.values[global_index()] = from_lane(static_cast<int>(global_index()), (lane_index() + 5) % warp_size);
}

struct Rounds {
    int rounds;
    unsigned passed;  // barriers before the first round
    unsigned* arrived;
    int* values;  // [rounds + 1, blocks]; the first row is given
};

// Each round adds what the neighbouring block wrote in the round before. No two blocks are equally fast.
__global__ void add_neighbours(const Rounds p) {
    const int blocks = static_cast<int>(gridDim.x), me = static_cast<int>(blockIdx.x);
    unsigned passed = p.passed;
    for (int round = 0; round < p.rounds; ++round) {
        const int* row = p.values + round * blocks;
        for (int turn = 0; turn < 4 * me; ++turn) pause_in_spin();
        if (threadIdx.x == 0)
            p.values[(round + 1) * blocks + me] = row[me] + load_shared_by_grid(row + (me + 1) % blocks);
        wait_for_blocks(p.arrived, gridDim.x, ++passed);
    }
}

struct Uneven {};

// Only half of the block comes to the barrier.
__global__ void wait_unevenly(const Uneven) {
    if (threadIdx.x < 32) __syncthreads();
}

template <class T>
struct Tile {
    const T* a;  // [16, 8]
    const T* b;  // [8, 8]
    T* sum;      // [16, 8]
};

template <class T, bool Exact>
__global__ void multiply_tile(const Tile<T> p) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    const T a[4] = {p.a[g * 8 + t], p.a[(g + 8) * 8 + t], p.a[g * 8 + t + 4], p.a[(g + 8) * 8 + t + 4]};
    const T b[2] = {p.b[t * 8 + g], p.b[(t + 4) * 8 + g]};
    T sum[4] = {};
    multiply_add<Exact>(sum, a, b);
    for (int i = 0; i < 4; ++i) p.sum[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

struct PairTile {
    const Bfloat16* a;  // [16, 16]
    const Bfloat16* b;  // [16, 8]
    float* sum;         // [16, 8]
};

__global__ void multiply_pair_tile(const PairTile p) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    const auto left = [&](int row, int k) { return pair_of(p.a[row * 16 + k], p.a[row * 16 + k + 1]); };
    const auto right = [&](int k) { return pair_of(p.b[k * 8 + g], p.b[(k + 1) * 8 + g]); };
    const Pair a[4] = {left(g, 2 * t), left(g + 8, 2 * t), left(g, 2 * t + 8), left(g + 8, 2 * t + 8)};
    const Pair b[2] = {right(2 * t), right(2 * t + 8)};
    float sum[4] = {};
    multiply_add<true>(sum, a, b);
    for (int i = 0; i < 4; ++i) p.sum[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

struct alignas(8) Two {
    float values[2];
};

struct TwoValues {
    const float* from;
    bool at_once;  // or while the thread works
};

// Two values in one access, wherever they lie.
__global__ void copy_two(const TwoValues p) {
    Two* to = shared_memory<Two>() + threadIdx.x;
    if (p.at_once) {
        *to = *reinterpret_cast<const Two*>(p.from);
    } else {
        copy_async<Two>(to, p.from, true);
        commit_copies();
        wait_for_copies<0>();
    }
}

std::vector<int> run_shift(int blocks, int threads, bool barrier) {
    std::vector<int> values(static_cast<std::size_t>(blocks * threads));
    Grid grid{static_cast<unsigned>(blocks), 1, 1, static_cast<unsigned>(threads)};
    grid.shared_bytes = static_cast<std::size_t>(threads) * sizeof(int);
    launch(shift_in_block, grid, nullptr, Shift{values.data(), barrier});
    return values;
}

std::vector<int> run_lanes(int blocks, int threads) {
    std::vector<int> values(static_cast<std::size_t>(blocks * threads));
    const Grid grid{static_cast<unsigned>(blocks), 1, 1, static_cast<unsigned>(threads)};
    launch(rotate_lanes, grid, nullptr, Lanes{values.data()});
    return values;
}

std::vector<int> run_rounds(const std::vector<int>& first, int rounds, bool together, unsigned passed) {
    std::vector<int> values(first);
    values.resize(first.size() * static_cast<std::size_t>(rounds + 1));
    unsigned arrived = passed * static_cast<unsigned>(first.size());
    Grid grid{static_cast<unsigned>(first.size()), 1, 1, 64};
    grid.together = together;
    launch(add_neighbours, grid, nullptr, Rounds{rounds, passed, &arrived, values.data()});
    return {values.end() - static_cast<std::ptrdiff_t>(first.size()), values.end()};
}

template <class T>
std::vector<T> run_tile(const std::vector<T>& a, const std::vector<T>& b, bool exact) {
    if (a.size() != 128 || b.size() != 64) throw std::invalid_argument("expected 16 x 8 and 8 x 8 values");
    std::vector<T> sum(128);
    const Grid grid{1, 1, 1, 32};
    const Tile<T> tile{a.data(), b.data(), sum.data()};
    if (exact)
        launch(multiply_tile<T, true>, grid, nullptr, tile);
    else
        launch(multiply_tile<T, false>, grid, nullptr, tile);
    return sum;
}

std::vector<float> run_pair_tile(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != 256 || b.size() != 128) throw std::invalid_argument("expected 16 x 16 and 16 x 8 values");
    const std::vector<Bfloat16> left(a.begin(), a.end()), right(b.begin(), b.end());
    std::vector<float> sum(128);
    launch(multiply_pair_tile, Grid{1, 1, 1, 32}, nullptr, PairTile{left.data(), right.data(), sum.data()});
    return sum;
}

}  // namespace

void register_emulator(py::module_& module) {
    module.def("set_seed", &emulator::set_seed);
    module.def("set_device", [](int multiprocessors, std::size_t shared_bytes, int blocks, int capability) {
        set_emulated_device({multiprocessors, shared_bytes, capability}, blocks);
    });
    module.def("place_on_device", [](std::uintptr_t address, std::size_t bytes, int device) {
        place_on_device(reinterpret_cast<const void*>(address), bytes, device);
    });
    module.def("take_waits", [] {
        Wait waits[64];
        py::list found;
        for (std::size_t i = 0, count = take_waits(waits, 64); i < count; ++i)
            found.append(py::make_tuple(reinterpret_cast<std::uintptr_t>(waits[i].stream),
                                        reinterpret_cast<std::uintptr_t>(waits[i].other), waits[i].device));
        return found;
    });
    module.def("shift_in_block", &run_shift);
    module.def("rotate_lanes", &run_lanes);
    module.def("add_neighbours", &run_rounds, py::arg("first"), py::arg("rounds"), py::arg("together"),
               py::arg("passed") = 0u);
    module.def("wait_unevenly", [] { launch(wait_unevenly, Grid{1, 1, 1, 64}, nullptr, Uneven{}); });
    module.def("copy_two", [](int behind, bool at_once) {
        alignas(16) const float values[4] = {};
        Grid grid{1, 1, 1, 32};
        grid.shared_bytes = 32 * 2 * sizeof(float);
        launch(copy_two, grid, nullptr, TwoValues{values + behind, at_once});
    });
    module.def("multiply_tile_float32", &run_tile<float>);
    module.def("multiply_tile_float64", &run_tile<double>);
    module.def("multiply_tile_bfloat16", &run_pair_tile);
    module.def("to_bfloat16", [](float x) { return Bfloat16(x).bits; });
    module.def("to_tf32", [](float x) { return to_tf32(x); });
}

}  // namespace tbptt::python
