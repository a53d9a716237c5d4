// The checks of check.h.
#include "check.h"

#include <algorithm>
#include <limits>

#include "../memory.h"

namespace tbptt::python {

void Argument::type_error(const std::string& message) const {
    throw py::type_error(std::string(op) + ": " + name + ": " + message);
}

void Argument::value_error(const std::string& message) const {
    throw py::value_error(std::string(op) + ": " + name + ": " + message);
}

std::string format_shape(const Extent* shape, std::size_t rank) {
    std::string text = "[";
    for (std::size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

std::string format_shape(Shape shape) { return format_shape(shape.extents, static_cast<std::size_t>(shape.rank)); }

std::string format_shape(std::initializer_list<Extent> shape) { return format_shape(shape.begin(), shape.size()); }

Shape shape_of(const py::array& array) { return {array.shape(), array.ndim()}; }

std::string format_shape(const py::array& array) { return format_shape(shape_of(array)); }

std::string type_name(py::handle object) { return py::str(py::type::of(object).attr("__name__")); }

std::string dtype_name(const py::array& array) { return py::str(array.dtype()); }

py::array to_array(py::handle object, const Argument& argument) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    if (!py::hasattr(object, "__dlpack__")) argument.type_error("expected an array, got " + type_name(object));
    try {
        return py::module_::import("numpy").attr("from_dlpack")(object);
    } catch (py::error_already_set& error) {
        argument.type_error("expected an array in CPU memory, got " + type_name(object) +
                            " whose DLPack export failed: " + std::string(py::str(error.value())));
    }
}

py::array to_contiguous(py::array array) {
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & wanted) == wanted) return array;
    struct Copy {
        decltype(py::detail::npy_api::PyArray_FromAny_) from_any;
        PyObject* array;
    } request{py::detail::npy_api::get().PyArray_FromAny_, array.ptr()};
    const auto make = [](void* context) {  // gives up the lock while it copies
        const Copy& given = *static_cast<const Copy*>(context);
        return given.from_any(given.array, nullptr, 0, 0, wanted, nullptr);
    };
    auto copy = py::reinterpret_steal<py::array>(stay_in(make, &request));
    if (!copy) throw py::error_already_set();  // MemoryError
    return copy;
}

const char* name_of(DType dtype) {
    return dtype == DType::float32 ? "float32" : dtype == DType::float64 ? "float64" : "bfloat16";
}

namespace {

// NumPy's type numbers are part of its ABI.
constexpr int number_of(DType dtype) {
    return dtype == DType::float32 ? py::detail::npy_api::NPY_FLOAT_ : py::detail::npy_api::NPY_DOUBLE_;
}

const py::detail::PyArrayDescr_Proxy* descriptor(const py::array& array) {
    return py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr);
}

bool has_number(const py::array& array, int number) {
    return descriptor(array)->type_num == number && descriptor(array)->byteorder != '>';
}

}  // namespace

DType float_dtype(const py::array& array, const Argument& argument) {
    for (const DType dtype : {DType::float32, DType::float64})
        if (has_number(array, number_of(dtype))) return dtype;
    argument.type_error("expected dtype float32 or float64, got " + dtype_name(array));
}

void check_dtype(const py::array& array, DType dtype, const Argument& argument) {
    if (!has_number(array, number_of(dtype)))
        argument.type_error(std::string("expected dtype ") + name_of(dtype) + ", got " + dtype_name(array));
}

void check_rank(Shape given, int64_t rank, const Argument& argument) {
    if (given.rank != rank)
        argument.value_error("expected " + std::to_string(rank) + " dimensions, got shape " + format_shape(given));
}

void check_shape(Shape given, Shape expected, const Argument& argument) {
    const bool same =
        given.rank == expected.rank && std::equal(expected.extents, expected.extents + expected.rank, given.extents);
    if (!same) argument.value_error("expected shape " + format_shape(expected) + ", got " + format_shape(given));
}

void check_shape(Shape given, std::initializer_list<Extent> shape, const Argument& argument) {
    check_shape(given, shape_of(shape), argument);
}

void check_rank(const py::array& array, int64_t rank, const Argument& argument) {
    check_rank(shape_of(array), rank, argument);
}

void check_shape(const py::array& array, std::initializer_list<Extent> shape, const Argument& argument) {
    check_shape(shape_of(array), shape, argument);
}

Input<std::uint8_t> optional_mask(py::handle object, std::initializer_list<Extent> shape, const Argument& argument) {
    if (object.is_none()) return {};
    const py::array array = to_array(object, argument);
    if (!has_number(array, py::detail::npy_api::NPY_BOOL_))
        argument.type_error("expected dtype bool, got " + dtype_name(array));
    check_shape(array, shape, argument);
    py::array contiguous = to_contiguous(array);
    const auto* data = static_cast<const std::uint8_t*>(contiguous.data());
    return {std::move(contiguous), data};
}

py::object to_index(py::handle value) {
    if (!PyIndex_Check(value.ptr()) || py::isinstance<py::bool_>(value)) return {};
    auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) PyErr_Clear();  // an array of several values claims to be an index, too
    return number;
}

bool read_bool(py::handle value, const Argument& argument) {
    if (!py::isinstance<py::bool_>(value)) argument.type_error("expected True or False, got " + type_name(value));
    return value.ptr() == Py_True;
}

int64_t element_count(Shape shape) {
    // An extent of zero does not excuse the others: NumPy looks at them, too.
    int64_t count = 1;
    bool empty = false;
    for (int64_t i = 0; i < shape.rank; ++i) {
        const int64_t extent = shape.extents[i];
        if (extent == 0)
            empty = true;
        else if (__builtin_mul_overflow(count, extent, &count))
            throw std::bad_alloc();
    }
    if (count > std::numeric_limits<int64_t>::max() / 64) throw std::bad_alloc();
    return empty ? 0 : count;
}
int64_t element_count(std::initializer_list<Extent> shape) { return element_count(shape_of(shape)); }

Block::Block(std::size_t bytes) : data_(allocate(bytes)) {}
Block::~Block() { release(data_); }

py::array new_array(DType dtype, std::initializer_list<Extent> shape) {
    // Small arrays are cheaper from NumPy; big ones come without page faults from the cache.
    constexpr int64_t small = 1 << 15;
    const std::size_t size = dtype == DType::float32 ? sizeof(float) : sizeof(double);
    const int64_t count = element_count(shape);
    const py::dtype numpy_dtype(number_of(dtype));
    const std::vector<py::ssize_t> extents(shape);
    if (count < small) return py::array(numpy_dtype, extents);
    Block block(static_cast<std::size_t>(count) * size);
    const py::capsule owner(block.get(), [](void* memory) { release(memory); });
    void* data = block.detach();  // the capsule's now
    return py::array(numpy_dtype, extents, data, owner);
}

}  // namespace tbptt::python
