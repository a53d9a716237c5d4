// The ways in which libraries describe their arrays: DLPack's C exchange, the CUDA array interface
// (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html), and DLPack's Python methods.
#include "arrays.h"

#include <memory>

#include "../../cuda/api.h"

namespace tbptt::python {

namespace {

#ifdef TBPTT_EMULATED
constexpr bool emulated = true;
constexpr const char* interface_name = "__array_interface__";
#else
constexpr bool emulated = false;
constexpr const char* interface_name = "__cuda_array_interface__";
#endif

constexpr const char* in_memory = "expected an array in CUDA memory, got ";

py::object attribute_of(py::handle object, const char* name) {
    PyObject* found = PyObject_GetAttrString(object.ptr(), name);
    if (!found) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
        PyErr_Clear();
    }
    return py::reinterpret_steal<py::object>(found);
}

std::string name_of_type(char kind, std::size_t bits) {
    switch (kind) {
        case 'f': return "float" + std::to_string(bits);
        case 'i': return "int" + std::to_string(bits);
        case 'u': return "uint" + std::to_string(bits);
        case 'c': return "complex" + std::to_string(bits);
        case 'b': return "bool";
        default: return "a type of " + std::to_string(bits) + " bits";
    }
}

std::string name_of_type(const DlType& type) {
    if (type.lanes != 1) return "a type of " + std::to_string(type.lanes) + " lanes";
    if (type.code == dl_bfloat) return "bfloat" + std::to_string(type.bits);
    constexpr char kinds[] = {'i', 'u', 'f', 0, 0, 'c', 'b'};
    return name_of_type(type.code < sizeof(kinds) ? kinds[type.code] : '\0', type.bits);
}

bool is_on_device(const DlDevice& device) {
    return device.type == dl_cuda || device.type == dl_cuda_managed || (emulated && device.type == dl_cpu);
}

[[noreturn]] void refuse_device(py::handle object, std::int32_t type, const Argument& argument) {
    argument.type_error(in_memory + type_name(object) + " in " +
                        (type == dl_cpu ? "CPU memory" : "memory of DLPack's device type " + std::to_string(type)));
}

View view_of(const DlTensor& tensor, py::object holder, const Argument& argument) {
    if (!is_on_device(tensor.device)) refuse_device(holder, tensor.device.type, argument);
    View view;
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.dtype = name_of_type(tensor.dtype);
    view.item_bytes = tensor.dtype.bits / 8u;
    view.device = tensor.device.type == dl_cuda_managed ? cuda::device_of(view.data) : tensor.device.id;
    view.extents.assign(tensor.shape, tensor.shape + tensor.rank);
    view.contiguous = is_contiguous(tensor);
    view.holder = std::move(holder);
    return view;
}

View borrow(const DlExchange& exchange, py::object object, const Argument& argument) {
    DlTensor tensor{};
    if (exchange.borrow(object.ptr(), &tensor) != 0) throw py::error_already_set();
    return view_of(tensor, std::move(object), argument);
}

// The keys and types are those that the interface's versions 2 and 3 ask for; a wrong one is a TypeError of its own.
View read_interface(const py::dict& described, py::object holder, const Argument& argument) {
    if (described.contains("mask") && !described["mask"].is_none())
        argument.type_error("expected an array without a mask");
    View view;
    const std::string type = py::str(described["typestr"]);
    if (type.size() < 3) argument.type_error("expected a dtype, got '" + type + "'");
    view.item_bytes = static_cast<std::size_t>(std::stoul(type.substr(2)));
    view.dtype = type[0] == '>' ? type : name_of_type(type[1], 8 * view.item_bytes);
    // NumPy's types have no bfloat16: what stands for it tells its name.
    if (const py::object dtype = attribute_of(holder, "dtype"); type.substr(1) == "V2" && dtype)
        if (std::string(py::str(dtype)) == name_of(DType::bfloat16)) view.dtype = name_of(DType::bfloat16);
    const py::tuple data = described["data"];
    view.data = reinterpret_cast<char*>(data[0].cast<std::uintptr_t>());
    view.read_only = data[1].cast<bool>();
    for (const py::handle extent : py::tuple(described["shape"])) view.extents.push_back(extent.cast<int64_t>());
    if (described.contains("strides") && !described["strides"].is_none()) {
        std::vector<int64_t> strides;
        for (const py::handle stride : py::tuple(described["strides"])) strides.push_back(stride.cast<int64_t>());
        auto expected = static_cast<int64_t>(view.item_bytes);
        for (std::size_t i = strides.size(); i-- > 0 && view.size() > 0;) {
            if (view.extents[i] != 1 && strides[i] != expected) view.contiguous = false;
            expected *= view.extents[i];
        }
    }
    if (described.contains("stream") && !described["stream"].is_none()) {
        view.has_stream = true;
        view.stream = stream_of(described["stream"].cast<std::uintptr_t>());
    }
    if (view.size() > 0) {
        view.device = cuda::device_of(view.data);
        if (view.device < 0) argument.type_error(in_memory + type_name(holder) + " elsewhere");
    }
    view.holder = std::move(holder);
    return view;
}

// DLPack's Python methods; `stream` is what they are told. The tensor is kept until the holder, a capsule of our own, is gone.
View import_capsule(py::handle object, std::intptr_t stream, const Argument& argument) {
    const py::tuple device = object.attr("__dlpack_device__")();
    const auto type = device[0].cast<std::int32_t>();
    if (!is_on_device({type, 0})) refuse_device(object, type, argument);
    const py::object capsule =
        type == dl_cpu ? object.attr("__dlpack__")() : object.attr("__dlpack__")(py::arg("stream") = stream);
    auto* managed = static_cast<DlManaged*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    const py::capsule owner(managed, [](void* tensor) {
        auto* self = static_cast<DlManaged*>(tensor);
        if (self->release) self->release(self);
    });
    return view_of(managed->tensor, owner, argument);
}

}  // namespace

int64_t View::size() const {
    int64_t count = 1;
    for (const int64_t extent : extents) count *= extent;
    return count;
}

Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<Stream>(handle == 1 ? 0 : handle); }

Place read_place(py::handle given) {
    const auto parts = py::reinterpret_borrow<py::tuple>(given);
    return {parts[0], parts[1], stream_of(parts[2].cast<std::uintptr_t>()), parts[3]};
}

bool read_exact(py::handle given, const char* op) {
    const Argument argument{op, "precision"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected 'tf32' or 'highest', got " + type_name(given));
    const std::string name = py::str(given);
    if (name != "tf32" && name != "highest") argument.value_error("expected 'tf32' or 'highest', got '" + name + "'");
    return name == "highest";
}

DType float_dtype(const View& view, const Argument& argument) {
    for (const DType dtype : {DType::float32, DType::float64})
        if (view.dtype == name_of(dtype)) return dtype;
    argument.type_error("expected dtype float32 or float64, got " + view.dtype);
}

DType float_or_bfloat16(const View& view, const Argument& argument) {
    if (view.dtype != name_of(DType::bfloat16)) {
        for (const DType dtype : {DType::float32, DType::float64})
            if (view.dtype == name_of(dtype)) return dtype;
        argument.type_error("expected dtype float32, float64 or bfloat16, got " + view.dtype);
    }
    const cuda::OnDevice here(view.device);
    if (const int capability = cuda::current_device().capability; capability < 80)
        argument.type_error(
            "expected dtype float32 or float64, got bfloat16, which needs a device of compute capability "
            "8.0 or more, not " +
            std::to_string(capability / 10) + "." + std::to_string(capability % 10));
    return DType::bfloat16;
}

View DeviceArrays::read(py::handle given, const Argument& argument) const {
    auto object = py::reinterpret_borrow<py::object>(given);
    if (const py::object is_neg = attribute_of(object, "is_neg"); is_neg && is_neg().cast<bool>())
        object = object.attr("resolve_neg")();
    if (const DlExchange* exchange = exchange_of(object)) return borrow(*exchange, std::move(object), argument);
    if (const py::object detach = attribute_of(object, "detach")) {
        // PyTorch before 2.10, whose array interface has no bfloat16, or not by that name. As above, it is not asked to wait.
        object = detach();  // shares memory, asks for no gradient
        View view = import_capsule(object, -1, argument);
        view.holder = std::move(object);  // the memory is the tensor's, which can be copied
        return view;
    }
    for (const char* name : {interface_name, "__cuda_array_interface__"})
        if (const py::object described = attribute_of(object, name)) {
            View view = read_interface(py::dict(described), std::move(object), argument);
            if (!view.has_stream) return view;
            const cuda::OnDevice here(view.device);  // whose stream the default one is
            cuda::wait_for(place_.stream, view.stream);
            return view;
        }
    if (!py::hasattr(object, "__dlpack__")) argument.type_error("expected an array, got " + type_name(given));
    const auto handle = reinterpret_cast<std::intptr_t>(place_.stream);
    return import_capsule(object, handle ? handle : 1, argument);
}

bool is_usable(const View& view) {
    return view.contiguous && reinterpret_cast<std::uintptr_t>(view.data) % view.item_bytes == 0;
}

void DeviceArrays::check_device(const View& view, const Argument& argument) const {
    if (view.device < 0 || device_ < 0 || view.device == device_) return;
    argument.value_error("expected an array on device " + std::to_string(device_) + ", as " + like_ +
                         ", got one on device " + std::to_string(view.device));
}

View DeviceArrays::check(View view, const char* dtype, Shape shape, const Argument& argument) const {
    if (view.dtype != dtype) argument.type_error(std::string("expected dtype ") + dtype + ", got " + view.dtype);
    check_shape(shape_of(view), shape, argument);
    check_device(view, argument);
    if (is_usable(view)) return view;
    const py::object copy = place_.contiguous(view.holder);
    if (copy.is_none()) argument.value_error("expected a C-contiguous array, got a strided one");
    view = read(copy, argument);
    if (!is_usable(view)) argument.value_error("expected a C-contiguous array, got a strided one");
    return view;
}

Input<std::uint8_t> DeviceArrays::mask(py::handle object, std::initializer_list<Extent> shape,
                                       const Argument& argument) const {
    if (object.is_none()) return {};
    View view = check(read(object, argument), "bool", shape_of(shape), argument);
    return {std::move(view.holder), reinterpret_cast<const std::uint8_t*>(view.data)};
}

View DeviceArrays::made(const ElementType& type, Shape shape, bool of_x) const {
    element_count(extents_of(shape));
    const Argument argument{"empty", "result"};
    if (place_.empty.is_none()) return read(new_device_array(type, shape, device_, place_.stream), argument);
    py::tuple extents(shape.rank);
    for (int64_t i = 0; i < shape.rank; ++i) extents[static_cast<std::size_t>(i)] = shape.extents[i];
    const py::object array =
        of_x ? place_.empty(extents) : place_.empty(extents, py::arg("dtype") = place_.library.attr(type.name));
    return check(read(array, argument), type.name, shape, argument);
}

DeviceIds::DeviceIds(const DeviceArrays& arrays, py::handle given, const Argument& argument, Stream stream)
    : given_(arrays.read(given, argument)),
      count_(given_.size()),
      wide_(given_.dtype == "int64"),
      stream_(stream),
      converted_(wide_ ? 0 : count_, stream) {
    if (!wide_ && given_.dtype != "int32") argument.type_error("expected dtype int32 or int64, got " + given_.dtype);
    given_ = arrays.check(given_, wide_ ? "int64" : "int32", shape_of(given_), argument);
}

const int64_t* DeviceIds::data() const {
    if (wide_) return reinterpret_cast<const int64_t*>(given_.data);
    cuda::widen(reinterpret_cast<const std::int32_t*>(given_.data), converted_, count_, {stream_, false});
    return converted_;
}

}  // namespace tbptt::python
