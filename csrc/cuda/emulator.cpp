// See emulator.h.
#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tbptt {
namespace emulator {

namespace {

constexpr std::size_t stack_bytes = std::size_t{64} << 10;

struct Fiber {
    Thread thread{};
    jmp_buf place;
    ucontext_t start;
    bool started = false, done = false;
    const unsigned* waits_for = nullptr;
    unsigned seen = 0;
};

// Stacks are mapped once a thread of the host and kept: only what is touched takes memory.
class Stacks {
   public:
    ~Stacks() {
        for (void* stack : stacks_) munmap(stack, stack_bytes);
    }
    void* operator[](std::size_t i) {
        while (stacks_.size() <= i) {
            void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED) throw std::bad_alloc();
            stacks_.push_back(stack);
        }
        return stacks_[i];
    }

   private:
    std::vector<void*> stacks_;
};

struct Machine {
    Fiber* at_work = nullptr;
    const std::function<void()>* kernel = nullptr;
    jmp_buf scheduler;
    const char* refused = nullptr;
    std::uint64_t progress = 0;  // barriers passed and threads finished
    std::mt19937_64 random{0};
    bool shuffles = false;
    Stacks stacks;
};

thread_local Machine machine;

[[noreturn]] void leave() { _longjmp(machine.scheduler, 1); }

void begin() {
    (*machine.kernel)();
    machine.at_work->done = true;
    ++machine.progress;
    leave();
}

void resume(Fiber& fiber) {
    machine.at_work = &fiber;
    if (_setjmp(machine.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

void pass(unsigned& arrived, unsigned& generation, unsigned count) {
    const unsigned seen = generation;
    if (++arrived == count) {
        arrived = 0;
        ++generation;
        ++machine.progress;
        return;
    }
    wait(&generation, seen);
}

// A function of its own: what is live across getcontext may be lost.
__attribute__((noinline)) void prepare(Fiber& fiber, void* stack) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack;
    fiber.start.uc_stack.ss_size = stack_bytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &begin, 0);
}

// Blocks that are at work together.
class Wave {
   public:
    Wave(unsigned first, unsigned count, Index blocks, unsigned threads, std::size_t shared_bytes,
         unsigned cluster_size)
        : blocks_(count),
          clusters_(count / cluster_size),
          warps_(count * (threads / 32)),
          shared_(count * rounded(shared_bytes), 0xff),
          fibers_(std::size_t{count} * threads) {
        for (unsigned b = 0; b < count; ++b) {
            Block& block = blocks_[b];
            const unsigned index = first + b;
            block.index = {index % blocks.x, index / blocks.x % blocks.y, index / blocks.x / blocks.y};
            block.threads = threads;
            Cluster& cluster = clusters_[b / cluster_size];
            block.cluster = &cluster;
            cluster.threads += threads;
            block.warps = &warps_[b * (threads / 32)];
            block.shared = reinterpret_cast<unsigned char*>(aligned(shared_.data())) + b * rounded(shared_bytes);
            if (b % cluster_size == 0) cluster.shared = block.shared;
            cluster.shared_stride = rounded(shared_bytes);
            for (unsigned t = 0; t < threads; ++t) {
                Fiber& fiber = fibers_[std::size_t{b} * threads + t];
                fiber.thread = {{t, 0, 0}, &block,         block.warps + t / 32, static_cast<int>(t % 32),
                                blocks,    {threads, 1, 1}};
                prepare(fiber, machine.stacks[std::size_t{b} * threads + t]);
            }
        }
    }

    void run() {
        std::vector<std::size_t> order(fibers_.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        int idle_rounds = 0;
        for (bool left = true; left;) {
            left = false;
            if (machine.shuffles) std::shuffle(order.begin(), order.end(), machine.random);
            const std::uint64_t before = machine.progress;
            for (const std::size_t i : order) {
                Fiber& fiber = fibers_[i];
                if (fiber.done) continue;
                left = true;
                if (fiber.waits_for && *fiber.waits_for == fiber.seen) continue;
                resume(fiber);
                if (const char* what = std::exchange(machine.refused, nullptr))
                    throw std::logic_error(std::string("emulator: ") + what);
            }
            // A spin may take some rounds until the block it waits for has come; thousands mean that none will.
            idle_rounds = machine.progress == before ? idle_rounds + 1 : 0;
            if (idle_rounds > 10000) throw std::logic_error("emulator: the threads wait for one another");
        }
    }

   private:
    static std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64 + 64; }
    static void* aligned(unsigned char* data) {
        return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(data) + 63) / 64 * 64);
    }

    std::vector<Block> blocks_;
    std::vector<Cluster> clusters_;
    std::vector<Warp> warps_;
    std::vector<unsigned char> shared_;
    std::vector<Fiber> fibers_;
};

}  // namespace

Thread& current() { return machine.at_work->thread; }

void refuse(const char* what) {
    machine.refused = what;
    leave();
}

void wait(const unsigned* generation, unsigned seen) {
    Fiber& me = *machine.at_work;
    me.waits_for = generation;
    me.seen = seen;
    if (_setjmp(me.place) == 0) leave();
    me.waits_for = nullptr;
}

void complete_copies(unsigned left) {
    Thread& me = current();
    std::size_t done = 0;
    for (; done < me.copies.size() && me.copies[done].group + left < me.groups; ++done) {
        const Copy& copy = me.copies[done];
        if (copy.from)
            std::memcpy(copy.to, copy.from, copy.bytes);
        else
            std::memset(copy.to, 0, copy.bytes);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void block_barrier() {
    Block& block = *current().block;
    pass(block.arrived, block.generation, block.threads);
}

void cluster_barrier() {
    Cluster& cluster = *current().block->cluster;
    pass(cluster.arrived, cluster.generation, cluster.threads);
}

void warp_barrier() {
    Warp& warp = *current().warp;
    pass(warp.arrived, warp.generation, 32);
}

void run(Index blocks, unsigned threads, std::size_t shared_bytes, bool together, unsigned cluster,
         const std::function<void()>& kernel) {
    if (threads % 32 != 0) throw std::logic_error("emulator: expected whole warps");
    machine.kernel = &kernel;
    const unsigned all = blocks.x * blocks.y * blocks.z, of_cluster = std::max(1u, cluster),
                   at_once = together ? all : of_cluster;
    for (unsigned first = 0; first < all; first += at_once)
        Wave(first, at_once, blocks, threads, shared_bytes, of_cluster).run();
}

void set_seed(std::uint64_t seed) {
    machine.random.seed(seed);
    machine.shuffles = seed != 0;
}

}  // namespace emulator
}  // namespace tbptt
