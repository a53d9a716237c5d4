// Probes the CPU and picks the kernel table. Never compiled with ISA flags: it must run everywhere.
#include "dispatch.h"

#include <atomic>
#include <cstring>

#if defined(TBPTT_X86_VARIANTS)
#include <cpuid.h>
#endif

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

#if defined(TBPTT_X86_VARIANTS)
namespace {

struct Probe {
    bool avx2, avx512;
};

// By the processor itself: the compiler's probe, __builtin_cpu_supports, is empty in some runtimes (Zig's). An extension
// counts where the operating system saves its registers too, which XGETBV tells.
Probe probe() {
    unsigned a, b, c, d, state = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
    constexpr unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28;
    if ((c & fma) && (c & osxsave) && (c & avx)) __asm__("xgetbv" : "=a"(state), "=d"(d) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
    const auto has = [](unsigned found, unsigned all) { return (found & all) == all; };
    constexpr unsigned ymm = 0x6, zmm = 0xe6;  // what XCR0 has for the registers of both widths
    constexpr unsigned avx2 = 1u << 5, avx512f = 1u << 16, avx512dq = 1u << 17, avx512bw = 1u << 30,
                       avx512vl = 1u << 31;
    const bool narrow = has(state, ymm) && has(b, avx2);
    return {narrow, narrow && has(state, zmm) && has(b, avx512f | avx512dq | avx512bw | avx512vl)};
}

}  // namespace
#endif

int available_kernels(const KernelTable* tables[max_isas]) {
    int count = 0;
    tables[count++] = &baseline::table;
#if defined(TBPTT_X86_VARIANTS)
    const Probe found = probe();
    if (found.avx2) tables[count++] = &avx2::table;
    if (found.avx512) tables[count++] = &avx512::table;
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
