// The thread pool: one lazily started set of workers, shared by all kernels.
//
// A kernel's result never depends on the number of workers: whoever splits a reduction does it by the problem, not by
// `Worker::count`. So `parallel` is free to give fewer workers than asked for (nested or concurrent calls run inline).
#pragma once

namespace tbptt {

struct BarrierState;

struct Worker {
    int index;              // 0 … count-1
    int count;              // workers that take part in this call
    BarrierState* barrier;  // shared by them
};

using Task = void (*)(void* context, const Worker& worker);

// Runs task(context, worker) on up to `threads` workers, the caller being worker 0; returns when all have finished.
void parallel(int threads, Task task, void* context);

// Waits until every worker of the call has arrived.
void wait_for_all(const Worker& worker);

int get_threads();
void set_threads(int threads);  // 1 … max_threads

constexpr int max_threads = 256;

// CPUs granted by the text of a cgroup v2 `cpu.max` ("150000 100000" -> 2, rounded up), 0 for no limit or no sense.
int cgroup_cpus(const char* cpu_max);

}  // namespace tbptt
