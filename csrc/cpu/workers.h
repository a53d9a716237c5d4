// Splitting work over the pool's workers, and their scratch memory.
#pragma once

#include <type_traits>

#include "../memory.h"
#include "../parallel.h"
#include "vec.h"

namespace tbptt {
namespace TBPTT_ISA {

// Owns `count` elements, undefined at first. Allocate before `run_parallel`: a worker must not throw.
template <class T>
class Buffer {
   public:
    explicit Buffer(int64_t count)
        : data_(static_cast<T*>(allocate(static_cast<std::size_t>(count > 0 ? count : 0) * sizeof(T)))) {}
    ~Buffer() { release(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return data_; }

   private:
    T* data_;
};

constexpr int64_t core_cache = 1500000;  // bytes that stay in a core's own cache from one pass over them to the next

template <class Body>
void run_parallel(int threads, Body&& body) {
    using Stored = std::remove_reference_t<Body>;
    parallel(
        threads, [](void* context, const Worker& worker) { (*static_cast<Stored*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

struct Range {
    int64_t begin, end;
};

// The part of 0 … total-1 that falls to `index` of `count`.
TBPTT_INLINE Range split(int64_t total, int64_t index, int64_t count) {
    return {total * index / count, total * (index + 1) / count};
}

TBPTT_INLINE Range split(int64_t total, const Worker& worker) { return split(total, worker.index, worker.count); }

// Threads worth waking for so much arithmetic: a wake-up costs some microseconds.
TBPTT_INLINE int threads_for(double flops) {
    constexpr double least_per_thread = 2e5;
    const int threads = get_threads();
    const double useful = flops / least_per_thread;
    return useful >= threads ? threads : useful < 1 ? 1 : static_cast<int>(useful);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
