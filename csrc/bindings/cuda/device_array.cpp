// A minimal array in a device's memory, for results of calls whose arguments are of no library known here: other libraries
// read it by DLPack and by the CUDA array interface.
#include <memory>
#include <new>

#include "arrays.h"

namespace tbptt::python {

namespace {

class Memory {
   public:
    Memory(std::size_t bytes, Stream stream, int device) : stream_(stream), device_(device) {
        const cuda::OnDevice here(device_);
        data_ = bytes > 0 ? cuda::allocate(bytes, stream_) : nullptr;
    }
    ~Memory() {
        if (!data_) return;
        try {
            const cuda::OnDevice here(device_);
            cuda::release(data_, stream_);
        } catch (const std::exception&) {  // the device is gone, and its memory with it
        }
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data() const { return data_; }

   private:
    Stream stream_;
    int device_;
    void* data_ = nullptr;
};

struct DeviceArray {
    std::shared_ptr<Memory> memory;
    Extents extents;
    ElementType type;
    int device;
    Stream stream;

    int64_t item_bytes() const { return type.type.bits / 8; }
    int64_t nbytes() const {
        int64_t bytes = item_bytes();
        for (const int64_t extent : extents) bytes *= extent;
        return bytes;
    }
    py::tuple shape() const {
        py::tuple found(extents.size());
        for (std::size_t i = 0; i < extents.size(); ++i) found[i] = extents[i];
        return found;
    }
};

DeviceArray make_array(const ElementType& type, Extents extents, int device, Stream stream) {
    DeviceArray array{nullptr, std::move(extents), type, device, stream};
    array.memory = std::make_shared<Memory>(static_cast<std::size_t>(array.nbytes()), stream, device);
    return array;
}

std::uintptr_t handle_of(Stream stream) {
    const auto handle = reinterpret_cast<std::uintptr_t>(stream);
    return handle ? handle : 1;  // 0 says nothing
}

py::dict array_interface(const DeviceArray& array) {
    py::dict described;
    described["shape"] = array.shape();
    described["typestr"] = array.type.interface_name;
    described["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.memory->data()), false);
    described["strides"] = py::none();
    described["stream"] = handle_of(array.stream);
    described["version"] = 3;
    return described;
}

std::int32_t device_type() {
#ifdef TBPTT_EMULATED
    return dl_cpu;
#else
    return dl_cuda;
#endif
}

struct Exported {
    DlManaged managed;
    std::shared_ptr<Memory> memory;
    std::vector<int64_t> extents;
};

// A consumer's stream is a number, None for the default stream of all threads, -1 where nothing is to wait.
py::capsule export_array(const DeviceArray& array, py::handle stream, py::handle, py::handle, py::handle copy) {
    if (!copy.is_none() && copy.cast<bool>()) throw py::buffer_error("__dlpack__: copies are not available");
    const auto handle = stream.is_none() ? std::intptr_t{1} : stream.cast<std::intptr_t>();
    if (handle >= 0) {
        const cuda::OnDevice here(array.device);
        cuda::wait_for(stream_of(static_cast<std::uintptr_t>(handle)), array.stream);
    }
    auto exported =
        std::make_unique<Exported>(Exported{{}, array.memory, {array.extents.begin(), array.extents.end()}});
    DlTensor& tensor = exported->managed.tensor;
    tensor.data = array.memory->data();
    tensor.device = {device_type(), array.device};
    tensor.rank = static_cast<std::int32_t>(array.extents.size());
    tensor.dtype = array.type.type;
    tensor.shape = exported->extents.data();
    exported->managed.owner = exported.get();
    exported->managed.release = [](DlManaged* self) { delete static_cast<Exported*>(self->owner); };
    PyObject* capsule = PyCapsule_New(&exported->managed, "dltensor", [](PyObject* unused) {
        if (!PyCapsule_IsValid(unused, "dltensor")) return;  // somebody took it
        auto* managed = static_cast<DlManaged*>(PyCapsule_GetPointer(unused, "dltensor"));
        managed->release(managed);
    });
    if (!capsule) throw py::error_already_set();
    exported.release();
    return py::reinterpret_steal<py::capsule>(capsule);
}

std::string describe(const DeviceArray& array) {
    return "<DeviceArray " + format_shape({array.extents.data(), static_cast<int64_t>(array.extents.size())}) + ", " +
           array.type.name + ", device " + std::to_string(array.device) + ">";
}

}  // namespace

py::object new_device_array(const ElementType& type, Shape shape, int device, Stream stream) {
    return py::cast(make_array(type, {shape.extents, shape.extents + shape.rank}, device, stream));
}

void register_device_array(py::module_& module) {
    py::class_<DeviceArray> array(module, "DeviceArray", py::module_local(),
                                  "An array in a device's memory, for other libraries to read.");
    array.def_property_readonly("shape", &DeviceArray::shape, "The extents.")
        .def_property_readonly(
            "dtype", [](const DeviceArray& self) { return self.type.name; }, "The dtype's name.")
        .def_readonly("device", &DeviceArray::device, "The device's number.")
        .def_property_readonly("nbytes", &DeviceArray::nbytes, "The size in bytes.")
        .def_property_readonly("__cuda_array_interface__", &array_interface)
        .def("__dlpack__", &export_array, py::kw_only(), py::arg("stream") = py::none(),
             py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
        .def("__dlpack_device__", [](const DeviceArray& self) { return py::make_tuple(device_type(), self.device); })
        .def("__repr__", &describe);
}

}  // namespace tbptt::python
