// A GPU on the host, for tests: every thread of a block is a fiber, and fibers take turns at barriers. It knows what the
// kernels use and no more. Memory begins filled with NaN, the order of turns follows a seed (`set_seed`): a kernel that needs
// a barrier it does not have gives other values with another seed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

namespace tbptt {
namespace emulator {

struct Index {
    unsigned x, y, z;
};

struct Warp {
    unsigned arrived = 0, generation = 0;
    alignas(16) unsigned char slots[32][64];
};

struct Cluster {
    unsigned arrived = 0, generation = 0, threads = 0;
    unsigned char* shared = nullptr;  // of its first block
    std::size_t shared_stride = 0;    // from block to block
};

struct Block {
    Index index;
    Cluster* cluster = nullptr;
    unsigned arrived = 0, generation = 0, threads = 0;
    unsigned char* shared = nullptr;
    Warp* warps = nullptr;
};

// A copy to shared memory that has not come yet, of the thread's group of this number.
struct Copy {
    void* to;
    const void* from;  // null: zeros
    unsigned bytes, group;
};

// The thread at work.
struct Thread {
    Index index;
    Block* block;
    Warp* warp;
    int lane;
    Index grid, block_size;
    std::vector<Copy> copies{};
    unsigned groups = 0;  // committed
};
Thread& current();

// Ends the launch with a std::logic_error: here a device would stop.
[[noreturn]] void refuse(const char* what);

// Lets others work until *generation is no longer `seen`; with null, for one turn.
void wait(const unsigned* generation, unsigned seen);

// Makes the copies of all committed groups but the youngest `left`.
void complete_copies(unsigned left);

void block_barrier();
void warp_barrier();
void cluster_barrier();

// Runs `kernel` in all threads of all blocks; `together` promises that all blocks are at work at the same time. So many
// neighbours in a row of the grid are a cluster; 0: none.
void run(Index blocks, unsigned threads, std::size_t shared_bytes, bool together, unsigned cluster,
         const std::function<void()>& kernel);

void set_seed(std::uint64_t seed);

// Leaves `value` where the other lanes of the warp can read it; `read` sees the slots of all.
template <class V, class Read>
auto exchange(const V& value, Read read) {
    static_assert(sizeof(V) <= sizeof(Warp::slots[0]), "a lane's slot is too small");
    Thread& me = current();
    Warp& warp = *me.warp;
    std::memcpy(warp.slots[me.lane], &value, sizeof(V));
    warp_barrier();
    auto result = read([&warp](int lane) {
        V other;
        std::memcpy(&other, warp.slots[lane], sizeof(V));
        return other;
    });
    warp_barrier();
    return result;
}

}  // namespace emulator

namespace cuda {

template <class T>
T* shared_memory() {
    return reinterpret_cast<T*>(emulator::current().block->shared);
}

template <class V>
V from_lane(V value, int lane) {
    return emulator::exchange(value, [lane](auto of) { return of(lane); });
}

inline bool any_lane(bool value) {
    return emulator::exchange(value, [](auto of) {
        bool any = false;
        for (int lane = 0; lane < 32; ++lane) any = any || of(lane);
        return any;
    });
}

template <class V>
V load_shared_by_grid(const V* from) {
    return *from;
}

template <class V>
const V* in_block(const V* shared, int rank) {
    const emulator::Block& mine = *emulator::current().block;
    const auto offset = reinterpret_cast<const unsigned char*>(shared) - mine.shared;
    return reinterpret_cast<const V*>(mine.cluster->shared +
                                      static_cast<std::size_t>(rank) * mine.cluster->shared_stride + offset);
}
inline void wait_for_cluster() { emulator::cluster_barrier(); }

// Copies come as late as they may: who does not wait for them finds what was there before.
template <class Access>
void copy_async(void* to, const void* from, bool valid) {
    emulator::Thread& me = emulator::current();
    const std::uintptr_t places = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    if (places % sizeof(Access) != 0) emulator::refuse("a copy that is not aligned");
    me.copies.push_back({to, valid ? from : nullptr, sizeof(Access), me.groups});
}
inline void commit_copies() { ++emulator::current().groups; }
template <int Left>
void wait_for_copies() {
    emulator::complete_copies(Left);
}

inline unsigned add_and_get_old(unsigned* to, unsigned value) {
    const unsigned old = *to;
    *to += value;
    return old;
}
inline unsigned load_volatile(const unsigned* from) { return *static_cast<const volatile unsigned*>(from); }
inline void pause_in_spin() { emulator::wait(nullptr, 0); }

}  // namespace cuda
}  // namespace tbptt

#define threadIdx (::tbptt::emulator::current().index)
#define blockIdx (::tbptt::emulator::current().block->index)
#define blockDim (::tbptt::emulator::current().block_size)
#define gridDim (::tbptt::emulator::current().grid)

inline void __syncthreads() { ::tbptt::emulator::block_barrier(); }
inline void __syncwarp() { ::tbptt::emulator::warp_barrier(); }
inline void __threadfence() {}
inline float __expf(float x) { return std::exp(x); }

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
