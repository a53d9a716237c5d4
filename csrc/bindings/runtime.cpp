// Threads, instruction sets, memory, and what this build and machine are.
#include <cstdlib>
#include <string>

#include "../dispatch.h"
#include "../memory.h"
#include "../parallel.h"
#include "check.h"

namespace tbptt::python {

namespace {

void set_isa(py::handle given) {
    if (!py::isinstance<py::str>(given))
        Argument{"set_isa", "name"}.type_error("expected a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (set_active_isa(name.c_str())) return;
    const KernelTable* tables[max_isas];
    std::string known;
    for (int i = 0, count = available_kernels(tables); i < count; ++i)
        known += (i ? ", '" : "'") + std::string(tables[i]->isa) + "'";
    throw py::value_error("set_isa: name: expected one of " + known + ", got '" + name + "'");
}

void set_num_threads(py::handle given) {
    const Argument argument{"set_num_threads", "n"};
    const py::object number = to_index(given);
    if (!number) argument.type_error("expected an integer, got " + type_name(given));
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
    if (overflow || value < 1 || value > max_threads)
        argument.value_error("expected 1 to " + std::to_string(max_threads) + ", got " + std::string(py::str(number)));
    set_threads(static_cast<int>(value));
}

py::tuple available_isas() {
    const KernelTable* tables[max_isas];
    py::list names;
    for (int i = 0, count = available_kernels(tables); i < count; ++i) names.append(tables[i]->isa);
    return py::tuple(names);
}

py::dict build_info() {
    const KernelTable* tables[max_isas];
    py::dict flags, info;
    for (int i = 0, count = available_kernels(tables); i < count; ++i) flags[tables[i]->isa] = tables[i]->flags;
#if defined(__clang__)
    info["compiler"] = "Clang " __clang_version__;
#else
    info["compiler"] = "GCC " __VERSION__;
#endif
    info["version"] = TBPTT_FAST_VERSION;
    info["flags"] = flags;
#if defined(TBPTT_SANITIZED)
    info["sanitizers"] = true;
#else
    info["sanitizers"] = false;
#endif
    return info;
}

// TBPTT_FAST_ISA and TBPTT_FAST_NUM_THREADS are read once, at import; a wrong value is an error, not a guess.
void read_environment() {
    if (const char* isa = std::getenv("TBPTT_FAST_ISA"); isa && *isa) {
        if (!set_active_isa(isa)) {
            try {
                set_isa(py::str(isa));
            } catch (const py::value_error& error) {
                throw py::value_error(std::string("TBPTT_FAST_ISA: ") + error.what());
            }
        }
    }
    if (const char* threads = std::getenv("TBPTT_FAST_NUM_THREADS"); threads && *threads) {
        char* end = nullptr;
        const long value = std::strtol(threads, &end, 10);
        if (*end != '\0' || value < 1 || value > max_threads)
            throw py::value_error("TBPTT_FAST_NUM_THREADS: expected 1 to " + std::to_string(max_threads) + ", got '" +
                                  threads + "'");
        set_threads(static_cast<int>(value));
    }
}

template <double (*KernelTable::*measure)(int, double)>
double measured(int threads, double seconds) {
    if (threads < 1 || threads > max_threads)
        throw py::value_error("threads: expected 1 to " + std::to_string(max_threads));
    const Unlocked unlocked;
    return (active_kernels().*measure)(threads, seconds);
}

}  // namespace

void register_runtime(py::module_& module) {
    module.def("set_num_threads", &set_num_threads);
    module.def("get_num_threads", &get_threads, "How many threads the kernels use, the calling one included.");
    module.def("set_isa", &set_isa,
               "Use the kernels of the instruction set `name`, one of `available_isas()`; else ValueError.");
    module.def(
        "active_isa", [] { return active_kernels().isa; },
        "The instruction set of the kernels in use; by itself the last of `available_isas()`.");
    module.def("available_isas", &available_isas,
               "The instruction sets that this build has kernels for and this machine can run, slowest first.");
    module.def("build_info", &build_info,
               "The version, the compiler, its flags for each instruction set, and whether sanitizers are in.");
    module.def("memory_in_use", [] { return memory_stats().in_use; });
    module.def("memory_cached", [] { return memory_stats().cached; });
    module.def("memory_peak", [] { return memory_stats().peak; });
    module.def("reset_memory_peak", &reset_memory_peak);
    module.def("empty_cache", &empty_cache);
    module.def("fma_peak", &measured<&KernelTable::fma_peak>);
    module.def("memory_bandwidth", &measured<&KernelTable::memory_bandwidth>);
    module.def("cgroup_cpus", [](const std::string& cpu_max) -> py::object {
        const int cpus = cgroup_cpus(cpu_max.c_str());
        return cpus > 0 ? py::object(py::int_(cpus)) : py::object(py::none());
    });
    read_environment();
}

}  // namespace tbptt::python
