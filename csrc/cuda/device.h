// What kernels use of the machine, under CUDA's own names where it has one. The emulator defines the same names on the host,
// so that every kernel can be run and tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

// Kernels are only seen by a compiler that can have them: the bindings' has no CUDA headers.
#if defined(TBPTT_EMULATED) || defined(__CUDACC__)
#define TBPTT_KERNELS

#include "bfloat16.h"

#ifdef TBPTT_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#define TBPTT_DEVICE __device__ __forceinline__
#define TBPTT_BOTH __host__ __device__  // what the host asks, too

namespace tbptt {
namespace cuda {

constexpr int warp_size = 32;

#ifndef TBPTT_EMULATED

// The block's dynamic shared memory.
template <class T>
TBPTT_DEVICE T* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
}

template <class V>
TBPTT_DEVICE V from_lane(V value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

// Whether it is true in any lane of the warp.
TBPTT_DEVICE bool any_lane(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// Memory that other blocks of the same launch write: past the first-level cache, which does not see them.
template <class V>
TBPTT_DEVICE V load_shared_by_grid(const V* from) {
    return __ldcg(from);
}

template <class Access>
TBPTT_DEVICE void copy_now(void* to, const void* from, bool valid) {
    Access value{};
    if (valid) value = *static_cast<const Access*>(from);
    *static_cast<Access*>(to) = value;
}

// Copies of one access (2, 4, 8 or 16 bytes) to shared memory that go on while the thread works; zeros where not `valid`, and then
// `from` may be anything that is aligned.
template <class Access>
TBPTT_DEVICE void copy_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
    constexpr int bytes = sizeof(Access);
    [[maybe_unused]] const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(valid ? 16 : 0));
    } else if constexpr (bytes >= 4) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(bytes),
                     "r"(valid ? bytes : 0));
    } else {
        copy_now<Access>(to, from, valid);
    }
#else
    copy_now<Access>(to, from, valid);
#endif
}

// The copies so far are a group of their own.
TBPTT_DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all of this thread's groups have come but the youngest `Left`. Other threads see them after a barrier.
template <int Left>
TBPTT_DEVICE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

TBPTT_DEVICE unsigned add_and_get_old(unsigned* to, unsigned value) { return atomicAdd(to, value); }
TBPTT_DEVICE unsigned load_volatile(const unsigned* from) { return *static_cast<const volatile unsigned*>(from); }
// The same place in the shared memory of another block of the cluster, and the barrier of all of them (from 9.0 on).
template <class V>
TBPTT_DEVICE const V* in_block(const V* shared, int rank) {
#if __CUDA_ARCH__ >= 900
    const V* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
    return there;
#else
    (void)rank;
    return shared;
#endif
}
TBPTT_DEVICE void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

TBPTT_DEVICE void pause_in_spin() { __nanosleep(20); }

#endif

TBPTT_DEVICE Bfloat16 load_shared_by_grid(const Bfloat16* from) {
    Bfloat16 value;
    value.bits = load_shared_by_grid(&from->bits);
    return value;
}

TBPTT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % warp_size; }
TBPTT_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / warp_size; }
TBPTT_DEVICE int warp_count() { return static_cast<int>(blockDim.x) / warp_size; }

// The index of this thread, and the number of all of them, in a launch of any size.
TBPTT_DEVICE std::int64_t global_index() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
TBPTT_DEVICE std::int64_t global_count() { return std::int64_t{gridDim.x} * blockDim.x; }

// A barrier of `count` blocks that are all at work (a launch with `together`), their barrier number `turn` = 1, 2 … `*arrived`
// begins at zero and only grows, over its end too.
TBPTT_DEVICE void wait_for_blocks(unsigned* arrived, unsigned count, unsigned turn) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        add_and_get_old(arrived, 1);
        while (static_cast<int>(load_volatile(arrived) - turn * count) < 0) pause_in_spin();
        __threadfence();
    }
    __syncthreads();
}

}  // namespace cuda
}  // namespace tbptt

#endif
