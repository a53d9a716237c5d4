// Launches, memory and errors, on the caller's stream. Nothing here waits for the device, and memory comes and goes in the
// order of the stream: all calls can be captured in a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "device.h"

struct CUstream_st;  // CUDA's, whose headers are not needed for more

namespace tbptt {
namespace cuda {

using Stream = CUstream_st*;  // cudaStream_t

// What kernels are laid out by. Of the current device; read once for each.
struct Device {
    int multiprocessors;
    std::size_t shared_bytes;  // that one block may have
    int capability;            // of the code that it runs: 90 for 9.0
};
const Device& current_device();

struct Call {
    Stream stream;
    bool exact;  // full float32 by split products, not TF32
};

struct Grid {
    unsigned x = 1, y = 1, z = 1;
    unsigned threads = 256;
    std::size_t shared_bytes = 0;
    bool together = false;  // all blocks at work at the same time, for wait_for_blocks
    unsigned cluster = 0;   // blocks of a cluster, neighbours in a row of the grid; 0: no clusters
};

void* allocate(std::size_t bytes, Stream stream);
void release(void* memory, Stream stream) noexcept;
void set_bytes(void* memory, int value, std::size_t bytes, Stream stream);
void copy_bytes(void* to, const void* from, std::size_t bytes, Stream stream);

// How many blocks of this kernel can be at work at the same time on the current device.
int blocks_together(const void* kernel, unsigned threads, std::size_t shared_bytes);

// How many clusters of this grid can be at work at the same time on the current device.
int clusters_together(const void* kernel, const Grid& grid);

#ifdef TBPTT_KERNELS

#ifdef TBPTT_EMULATED
// What a device would refuse: std::logic_error.
void check_launch(const Grid& grid);
#else
// std::bad_alloc where memory ran out, else std::runtime_error with the error's name and text.
void check(cudaError_t error, const char* what);
// Lets the kernel have so much shared memory.
void allow_shared_bytes(const void* kernel, std::size_t bytes);
#endif

template <class Parameters>
void launch(void (*kernel)(Parameters), const Grid& grid, Stream stream, const Parameters& parameters) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef TBPTT_EMULATED
    (void)stream;
    check_launch(grid);
    emulator::run({grid.x, grid.y, grid.z}, grid.threads, grid.shared_bytes, grid.together, grid.cluster,
                  [&] { kernel(parameters); });
#else
    allow_shared_bytes(reinterpret_cast<const void*>(kernel), grid.shared_bytes);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid.x, grid.y, grid.z);
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attributes[2]{};
    config.attrs = attributes;
    if (grid.together) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    if (grid.cluster > 0) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {grid.cluster, 1, 1};
    }
    check(cudaLaunchKernelEx(&config, kernel, parameters), "a kernel's launch");
#endif
}

template <class Kernel>
Kernel choose_kernel(const Call& call, Kernel exact, Kernel fast) {
    return call.exact ? exact : fast;
}

#endif

// Device memory of a call, given back in the order of the stream.
template <class T>
class Scratch {
   public:
    Scratch(std::int64_t count, Stream stream)
        : stream_(stream),
          data_(count > 0 ? static_cast<T*>(allocate(static_cast<std::size_t>(count) * sizeof(T), stream)) : nullptr) {}
    ~Scratch() {
        if (data_) release(data_, stream_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    operator T*() const { return data_; }

   private:
    Stream stream_;
    T* data_;
};

inline bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Blocks for one thread an element, as many as keep the device busy; kernels stride by `global_count`.
inline Grid grid_for(std::int64_t elements) {
    Grid grid;
    const std::int64_t most = 32 * std::int64_t{current_device().multiprocessors};
    const std::int64_t blocks = divide_up(elements, grid.threads);
    grid.x = static_cast<unsigned>(blocks < most ? blocks : most);
    return grid;
}

}  // namespace cuda
}  // namespace tbptt
