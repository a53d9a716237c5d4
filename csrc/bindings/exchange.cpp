// Arrays over the memory of another library's tensors, through the function table that its type offers: DLPack's C exchange
// (https://dmlc.github.io/dlpack), which costs a tenth of the protocol's Python methods.
#include <vector>

#include "check.h"
#include "dlpack.h"

namespace tbptt::python {

namespace {

DlTensor borrow(py::handle object, const Argument& argument) {
    const DlExchange* table = exchange_of(object);
    if (!table) argument.type_error("expected a type with DLPack's C exchange 1, got " + type_name(object));
    DlTensor tensor{};
    if (table->borrow(object.ptr(), &tensor) != 0) throw py::error_already_set();
    return tensor;
}

py::dtype dtype_of_tensor(const DlType& dtype, const Argument& argument) {
    constexpr char kinds[] = {'i', 'u', 'f', 0, 0, 0, 'b'};
    const char kind = dtype.code < sizeof(kinds) ? kinds[dtype.code] : '\0';
    const int bits = dtype.bits;
    if (dtype.lanes == 1 && kind == 'f' && bits == 32) return py::dtype::of<float>();
    if (dtype.lanes == 1 && kind == 'f' && bits == 64) return py::dtype::of<double>();
    if (dtype.lanes == 1 && kind == 'b' && bits == 8) return py::dtype::of<bool>();
    if (dtype.lanes == 1 && kind == 'i' && bits == 64) return py::dtype::of<std::int64_t>();
    if (dtype.lanes == 1 && kind == 'i' && bits == 32) return py::dtype::of<std::int32_t>();
    const std::string name = kind == 'f' ? "float" : kind == 'i' ? "int" : kind == 'u' ? "uint" : "another type of ";
    argument.type_error("expected float32, float64, bool, int32 or int64, got " + name + std::to_string(bits));
}

// The tensor's memory as an array. A tensor whose memory has the other sign, or another order, is copied by its own
// library, in parallel, which NumPy's copies are not.
py::array borrow_array(py::object object) {
    const Argument argument{"borrow_arrays", "tensors"};
    if (object.attr("is_neg")().cast<bool>()) object = object.attr("resolve_neg")();
    DlTensor tensor = borrow(object, argument);
    if (!is_contiguous(tensor)) {
        object = object.attr("contiguous")();
        tensor = borrow(object, argument);
    }
    if (tensor.device.type != dl_cpu)
        argument.type_error("expected a tensor in CPU memory, got one on device type " +
                            std::to_string(tensor.device.type));
    const py::dtype dtype = dtype_of_tensor(tensor.dtype, argument);
    const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank);
    std::vector<py::ssize_t> strides;
    for (std::int32_t i = 0; tensor.strides && i < tensor.rank; ++i)
        strides.push_back(static_cast<py::ssize_t>(tensor.strides[i]) * (tensor.dtype.bits / 8));
    return {dtype, shape, strides, static_cast<char*>(tensor.data) + tensor.byte_offset, object};
}

py::list borrow_arrays(const py::args& tensors) {
    py::list arrays(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const py::object tensor = tensors[i];
        arrays[i] = tensor.is_none() ? tensor : borrow_array(tensor);
    }
    return arrays;
}

}  // namespace

void register_exchange(py::module_& module) { module.def("borrow_arrays", &borrow_arrays); }

}  // namespace tbptt::python
