// Probes the CPU and picks the kernel table. Never compiled with ISA flags: it must run everywhere.
#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace tbptt {

namespace baseline {
extern const KernelTable table;
}
#if defined(TBPTT_X86_VARIANTS)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

int available_kernels(const KernelTable* tables[max_isas]) {
    int count = 0;
    tables[count++] = &baseline::table;
#if defined(TBPTT_X86_VARIANTS)
    // The compiler's probe asks the operating system too (XGETBV).
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        tables[count++] = &avx2::table;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            tables[count++] = &avx512::table;
    }
#endif
    return count;
}

namespace {

std::atomic<const KernelTable*> active{nullptr};

}  // namespace

const KernelTable& active_kernels() {
    const KernelTable* table = active.load(std::memory_order_acquire);
    if (!table) {
        const KernelTable* tables[max_isas];
        table = tables[available_kernels(tables) - 1];
        active.store(table, std::memory_order_release);
    }
    return *table;
}

bool set_active_isa(const char* name) {
    const KernelTable* tables[max_isas];
    const int count = available_kernels(tables);
    for (int i = 0; i < count; ++i)
        if (std::strcmp(tables[i]->isa, name) == 0) {
            active.store(tables[i], std::memory_order_release);
            return true;
        }
    return false;
}

template <>
const Kernels<float>& kernels() {
    return active_kernels().f32;
}

template <>
const Kernels<double>& kernels() {
    return active_kernels().f64;
}

}  // namespace tbptt
