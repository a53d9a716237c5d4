// Devices, versions, memory: what this build and machine are.
#include <string>

#include "arrays.h"

namespace tbptt::python {

namespace {

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::dict build_info() {
    py::dict info;
    info["version"] = TBPTT_FAST_VERSION;
    info["cuda"] = version_text(cuda::runtime_version());
    info["driver"] = version_text(cuda::driver_version());
    info["targets"] = cuda::build_targets();
    return info;
}

py::list devices() {
    py::list found;
    for (int i = 0, count = cuda::device_count(); i < count; ++i) {
        const cuda::DeviceDescription device = cuda::describe_device(i);
        py::dict described;
        described["name"] = device.name;
        described["capability"] = py::make_tuple(device.capability / 10, device.capability % 10);
        described["multiprocessors"] = device.multiprocessors;
        described["memory_bytes"] = device.memory_bytes;
        found.append(described);
    }
    return found;
}

}  // namespace

void register_cuda_runtime(py::module_& module) {
    module.def("why_not", []() -> py::object {
        const std::string reason = cuda::why_not();
        return reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
    });
    module.def("build_info", &build_info);
    module.def("devices", &devices);
    module.def("live_allocations", &cuda::live_allocations);
    module.def("empty_cache", &cuda::empty_cache);
}

}  // namespace tbptt::python
