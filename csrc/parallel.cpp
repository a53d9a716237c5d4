// The thread pool of parallel.h, on std::thread.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace tbptt {

namespace {

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spinning hides the wake-up (some 50 µs) between two calls of a training loop, but must end soon: the core may be
// wanted by a framework's own threads. A pause takes 40 to 140 cycles.
constexpr int spins = 2000;

}  // namespace

struct BarrierState {
    std::atomic<int> arrived{0};
    std::atomic<unsigned> phase{0};
};

void wait_for_all(const Worker& worker) {
    if (worker.count == 1) return;
    BarrierState& barrier = *worker.barrier;
    const unsigned phase = barrier.phase.load(std::memory_order_relaxed);
    if (barrier.arrived.fetch_add(1, std::memory_order_acq_rel) == worker.count - 1) {
        barrier.arrived.store(0, std::memory_order_relaxed);
        barrier.phase.store(phase + 1, std::memory_order_release);
        return;
    }
    // With more workers than cores the one that is awaited needs this core: yield after a while.
    for (int spin = 0; barrier.phase.load(std::memory_order_acquire) == phase; ++spin)
        spin < spins ? pause() : std::this_thread::yield();
}

namespace {

class Pool {
   public:
    // False when another call is using the pool: the caller then works alone.
    bool run(int threads, Task task, void* context) {
        std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
        if (!busy.owns_lock()) return false;
        grow(threads - 1);
        threads = std::min(threads, static_cast<int>(workers_.size()) + 1);
        BarrierState barrier;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            task_ = task;
            context_ = context;
            count_ = threads;
            barrier_ = &barrier;
            pending_.store(threads - 1, std::memory_order_relaxed);
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        task(context, Worker{0, threads, &barrier});
        for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin)
            spin < spins ? pause() : std::this_thread::yield();
        return true;
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

   private:
    void grow(int workers) {
        while (static_cast<int>(workers_.size()) < workers) {
            const int index = static_cast<int>(workers_.size()) + 1;
            try {
                workers_.emplace_back([this, index, seen = epoch_.load()] { work(index, seen); });
            } catch (const std::exception&) {
                return;  // the system grants no more threads: the work is done by those that there are
            }
        }
    }

    void work(int index, unsigned seen) {
        for (;;) {
            for (int spin = 0; spin < spins && epoch_.load(std::memory_order_acquire) == seen; ++spin) pause();
            Task task;
            void* context;
            Worker worker;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
                seen = epoch_.load(std::memory_order_relaxed);
                if (stop_.load()) return;
                if (index >= count_) continue;
                task = task_;
                context = context_;
                worker = Worker{index, count_, barrier_};
            }
            task(context, worker);
            pending_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<std::thread> workers_;
    std::mutex busy_, mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> epoch_{0};
    std::atomic<int> pending_{0};
    std::atomic<bool> stop_{false};
    Task task_ = nullptr;
    void* context_ = nullptr;
    int count_ = 0;
    BarrierState* barrier_ = nullptr;
};

// Never destroyed: threads may outlive static destruction, and a forked child must not join threads it does not have.
std::atomic<Pool*> pool{nullptr};
std::mutex pool_mutex;
thread_local bool inside = false;

Pool& get_pool() {
    if (Pool* existing = pool.load(std::memory_order_acquire)) return *existing;
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool.load()) {
#if defined(__linux__) || defined(__APPLE__)
        static const int registered =
            pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                           [] {  // the child has none of the workers: leave the old pool and start anew when needed
                               pool.store(nullptr);
                               inside = false;
                               pool_mutex.unlock();
                           });
        (void)registered;
#endif
        pool.store(new Pool, std::memory_order_release);
    }
    return *pool.load();
}

int affinity_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return cores > 0 ? cores : 1;
}

std::string first_line(const std::string& path) {
    std::string line;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        char buffer[512];
        if (std::fgets(buffer, sizeof buffer, file)) line = buffer;
        std::fclose(file);
    }
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
    return line;
}

// The tightest quota from the process's own cgroup up to the root; 0 for none. Understands v2, and v1 at its usual mount.
int quota_cpus() {
    int least = 0;
    const auto tighten = [&least](int cpus) {
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
    };
    const std::string entry = first_line("/proc/self/cgroup");
    std::string folder = entry.rfind("0::", 0) == 0 ? entry.substr(3) : "/";
    for (;;) {
        tighten(cgroup_cpus(first_line("/sys/fs/cgroup" + folder + "/cpu.max").c_str()));
        const std::size_t slash = folder.rfind('/');
        if (folder.size() <= 1 || slash == std::string::npos) break;
        folder.resize(slash);
    }
    const std::string quota = first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    const std::string period = first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    tighten(cgroup_cpus((quota + " " + period).c_str()));
    return least;
}

int default_threads() {
    int threads = affinity_cpus();
    const int quota = quota_cpus();
    if (quota > 0 && quota < threads) threads = quota;
    return threads < max_threads ? threads : max_threads;
}

std::atomic<int> wanted{0};

}  // namespace

int cgroup_cpus(const char* cpu_max) {
    double quota = 0, period = 0;
    if (std::sscanf(cpu_max, "%lf %lf", &quota, &period) != 2 || quota <= 0 || period <= 0) return 0;
    return static_cast<int>(std::fmin(std::ceil(quota / period), max_threads));
}

int get_threads() {
    int threads = wanted.load(std::memory_order_relaxed);
    if (threads == 0) {
        threads = default_threads();
        wanted.store(threads, std::memory_order_relaxed);
    }
    return threads;
}

void set_threads(int threads) { wanted.store(threads, std::memory_order_relaxed); }

void parallel(int threads, Task task, void* context) {
    if (threads > 1 && !inside) {
        inside = true;
        const bool done = get_pool().run(threads, task, context);
        inside = false;
        if (done) return;
    }
    task(context, Worker{0, 1, nullptr});
}

}  // namespace tbptt
