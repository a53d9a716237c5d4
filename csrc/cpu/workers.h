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

template <class T>
TBPTT_INLINE void fill(T* to, int64_t count, T value) {
    for (int64_t i = 0; i < count; ++i) to[i] = value;
}

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

// Independent tasks 0 … total-1: each worker takes its own part first, then what others have left, so that a core that is
// slow or busy holds nobody up. Who takes a task must not change its result.
class Tasks {
   public:
    Tasks(int64_t total, int threads)
        : total_(total), chunk_(larger<int64_t>(1, total / (16 * threads))), taken_(threads) {
        for (int i = 0; i < threads; ++i) taken_[i].next = 0;
    }

    // Before each run but the first, with a wait for all between this and the run.
    void reset(const Worker& worker) { taken_[worker.index].next = 0; }

    template <class Task>
    void run(const Worker& worker, Task task) {
        run(worker, total_, task);
    }

    // The tasks 0 … total-1 only.
    template <class Task>
    void run(const Worker& worker, int64_t total, Task task) {
        for (int k = 0; k < worker.count; ++k) {
            const int owner = (worker.index + k) % worker.count;
            const Range part = split(total, owner, worker.count);
            for (int64_t first; (first = part.begin + taken_[owner].take(chunk_)) < part.end;)
                for (int64_t i = first; i < smaller(first + chunk_, part.end); ++i) task(i);
        }
    }

   private:
    // std::atomic would be inline code that all instruction sets share.
    struct alignas(64) Counter {
        int64_t next;
        int64_t take(int64_t count) { return __atomic_fetch_add(&next, count, __ATOMIC_RELAXED); }
    };
    const int64_t total_, chunk_;
    Buffer<Counter> taken_;
};

// Threads worth waking for so much arithmetic: a wake-up costs some microseconds.
TBPTT_INLINE int threads_for(double flops) {
    constexpr double least_per_thread = 2e5;
    const int threads = get_threads();
    const double useful = flops / least_per_thread;
    return useful >= threads ? threads : useful < 1 ? 1 : static_cast<int>(useful);
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
