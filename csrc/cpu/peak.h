// What this machine can do at best, measured with the same vectors as the kernels: the yardstick of the benchmarks.
#pragma once

#include <time.h>

#include "workers.h"

namespace tbptt {
namespace TBPTT_ISA {

TBPTT_INLINE double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// GFLOP/s of independent multiply-adds in registers.
inline double fma_peak(int threads, double seconds) {
    constexpr int chains = TBPTT_REGISTERS == 32 ? 24 : 12, repeats = 20000;
    using V = Vec<float>;
    int64_t rounds[max_threads] = {};
    double elapsed[max_threads] = {};
    int workers = 1;
    run_parallel(threads, [&](const Worker& worker) {
        if (worker.index == 0) workers = worker.count;
        wait_for_all(worker);
        V sum[chains];
        for (int i = 0; i < chains; ++i) sum[i] = broadcast(static_cast<float>(i));
        V factor = broadcast(0.999f), term = broadcast(0.001f);
        const double start = seconds_now();
        double now;
        do {
#pragma GCC unroll 1
            for (int k = 0; k < repeats; ++k) {
#pragma GCC unroll 24
                for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
            }
            ++rounds[worker.index];
            now = seconds_now();
        } while (now - start < seconds);
        elapsed[worker.index] = now - start;
        V total{};
        for (int i = 0; i < chains; ++i) total += sum[i];
        volatile float sink = total[0];
        (void)sink;
    });
    double rate = 0;
    for (int i = 0; i < workers; ++i)
        rate += 2.0 * chains * lanes<float> * repeats * static_cast<double>(rounds[i]) / elapsed[i];
    return rate * 1e-9;
}

// GB/s of a[i] = b[i] + s·c[i] over arrays far larger than the caches (two reads, one write, and the write's own read).
inline double memory_bandwidth(int threads, double seconds) {
    constexpr int64_t count = int64_t{1} << 24;
    Buffer<float> a(count), b(count), c(count);
    int64_t rounds = 0;
    double elapsed = 0;
    bool done = false;
    run_parallel(threads, [&](const Worker& worker) {
        const Range mine = split(count / lanes<float>, worker);
        const int64_t begin = mine.begin * lanes<float>, end = mine.end * lanes<float>;
        for (int64_t i = begin; i < end; ++i) a[i] = b[i] = c[i] = 1.0f;
        wait_for_all(worker);
        const double start = seconds_now();
        while (!done) {
            for (int64_t i = begin; i < end; i += lanes<float>) store(a + i, load(b + i) + 0.5f * load(c + i));
            wait_for_all(worker);
            if (worker.index == 0) {
                ++rounds;
                elapsed = seconds_now() - start;
                done = elapsed >= seconds;
            }
            wait_for_all(worker);
        }
    });
    return 4.0 * sizeof(float) * static_cast<double>(count) * static_cast<double>(rounds) / elapsed * 1e-9;
}

}  // namespace TBPTT_ISA
}  // namespace tbptt
