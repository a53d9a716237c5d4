// The layouts of DLPack (https://dmlc.github.io/dlpack), as far as they are used here: what libraries of arrays tell one
// another about their memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace tbptt::python {

struct DlDevice {
    std::int32_t type, id;
};

constexpr std::int32_t dl_cpu = 1, dl_cuda = 2, dl_cuda_managed = 13;

struct DlType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

// DlType::code
constexpr std::uint8_t dl_int = 0, dl_unsigned = 1, dl_float = 2, dl_bfloat = 4, dl_bool = 6;

struct DlTensor {
    void* data;
    DlDevice device;
    std::int32_t rank;
    DlType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null for C-contiguous
    std::uint64_t byte_offset;
};

inline bool is_contiguous(const DlTensor& tensor) {
    for (std::int32_t i = 0; i < tensor.rank; ++i)
        if (tensor.shape[i] == 0) return true;  // whatever the strides are
    std::int64_t expected = 1;
    for (std::int32_t i = tensor.rank - 1; tensor.strides && i >= 0; --i) {
        if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
        expected *= tensor.shape[i];
    }
    return true;
}

// The content of a capsule "dltensor": whoever takes it renames it and calls `release` in the end.
struct DlManaged {
    DlTensor tensor;
    void* owner;
    void (*release)(DlManaged* self);
};

// The functions that a type offers in `__dlpack_c_exchange_api__`, which cost a tenth of the protocol's Python methods.
struct DlHeader {
    std::uint32_t major, minor;
    DlHeader* previous;
};
struct DlExchange {
    DlHeader header;
    void* managed[3];                           // not used here
    int (*borrow)(void* object, DlTensor* to);  // the tensor belongs to the object; may be null
};

// Null where the type has none of version 1 that lends tensors.
inline const DlExchange* exchange_of(pybind11::handle object) {
    const auto capsule = pybind11::reinterpret_steal<pybind11::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())), "__dlpack_c_exchange_api__"));
    const auto* table =
        capsule ? static_cast<const DlExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api")) : nullptr;
    PyErr_Clear();
    return table && table->header.major == 1 && table->borrow ? table : nullptr;
}

}  // namespace tbptt::python
