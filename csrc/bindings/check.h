// The boundary: the only place where arguments are checked. Errors name the op, the argument, what was expected and what
// was given: TypeError for the kind of object or its dtype, ValueError for shape, value or layout.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include "unlocked.h"

namespace tbptt::python {

namespace py = pybind11;
using std::int64_t;

// One argument of one call, for messages.
struct Argument {
    const char* op;
    const char* name;
    [[noreturn]] void type_error(const std::string& message) const;
    [[noreturn]] void value_error(const std::string& message) const;
};

using Extent = py::ssize_t;  // as NumPy has them; on macOS another type than int64_t

// The extents of an array, wherever it lies.
struct Shape {
    const Extent* extents;
    int64_t rank;
};

inline Shape shape_of(std::initializer_list<Extent> shape) {
    return {shape.begin(), static_cast<int64_t>(shape.size())};
}

std::string format_shape(const Extent* shape, std::size_t rank);
std::string format_shape(Shape shape);
std::string format_shape(std::initializer_list<Extent> shape);
std::string format_shape(const py::array& array);
Shape shape_of(const py::array& array);
std::string type_name(py::handle object);
std::string dtype_name(const py::array& array);

// An ndarray, or what another library exports through DLPack from CPU memory.
py::array to_array(py::handle object, const Argument& argument);

// The same values C-contiguous and aligned; copies only when they are not.
py::array to_contiguous(py::array array);

enum class DType { float32, float64, bfloat16 };  // the last one on GPUs alone
template <class T>
constexpr DType dtype_of = std::is_same_v<T, float> ? DType::float32 : DType::float64;
const char* name_of(DType dtype);
DType float_dtype(const py::array& array, const Argument& argument);

void check_rank(Shape given, int64_t rank, const Argument& argument);
void check_shape(Shape given, Shape expected, const Argument& argument);
void check_shape(Shape given, std::initializer_list<Extent> shape, const Argument& argument);
void check_rank(const py::array& array, int64_t rank, const Argument& argument);
void check_shape(const py::array& array, std::initializer_list<Extent> shape, const Argument& argument);

// A contiguous float input that is kept alive by its holder. A missing optional input has a null pointer.
template <class T>
struct Input {
    py::object holder;
    const T* data = nullptr;
};

void check_dtype(const py::array& array, DType dtype, const Argument& argument);

template <class T>
Input<T> input(const py::array& array, std::initializer_list<Extent> shape, const Argument& argument) {
    check_dtype(array, dtype_of<T>, argument);
    check_shape(array, shape, argument);
    py::array contiguous = to_contiguous(array);
    const T* data = static_cast<const T*>(contiguous.data());
    return {std::move(contiguous), data};
}

template <class T>
Input<T> input(py::handle object, std::initializer_list<Extent> shape, const Argument& argument) {
    return input<T>(to_array(object, argument), shape, argument);
}

template <class T>
Input<T> optional_input(py::handle object, std::initializer_list<Extent> shape, const Argument& argument) {
    if (object.is_none()) return {};
    return input<T>(object, shape, argument);
}

// The integer that `value` stands for (__index__), or a null object if it is none; truth values are none.
py::object to_index(py::handle value);

bool read_bool(py::handle value, const Argument& argument);

// Truth values [.., ..] of dtype bool, or nothing.
Input<std::uint8_t> optional_mask(py::handle object, std::initializer_list<Extent> shape, const Argument& argument);

// The number of elements; std::bad_alloc (MemoryError) when it cannot be addressed.
int64_t element_count(Shape shape);
int64_t element_count(std::initializer_list<Extent> shape);

// Memory of the caching allocator, owned.
class Block {
   public:
    Block() = default;
    explicit Block(std::size_t bytes);
    Block(Block&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Block& operator=(Block&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Block();
    void* get() const { return data_; }
    void* detach() { return std::exchange(data_, nullptr); }

   private:
    void* data_ = nullptr;
};

py::array new_array(DType dtype, std::initializer_list<Extent> shape);

// A fresh, uninitialised output.
template <class T>
struct Output {
    explicit Output(std::initializer_list<Extent> shape)
        : array(new_array(dtype_of<T>, shape)), data(static_cast<T*>(array.mutable_data())) {}
    py::array array;
    T* data;
};

// Calls body(float()) or body(double()).
template <class Body>
auto with_dtype(DType dtype, Body&& body) {
    return dtype == DType::float32 ? body(float()) : body(double());
}

void register_recurrent(py::module_& module);
void register_convrecurrent(py::module_& module);
void register_layers(py::module_& module);
void register_convolution(py::module_& module);
void register_embedding(py::module_& module);
void register_losses(py::module_& module);
void register_optimizers(py::module_& module);
void register_normalization(py::module_& module);
void register_pooling(py::module_& module);
void register_runtime(py::module_& module);
void register_exchange(py::module_& module);
void register_jax(py::module_& module);  // where TBPTT_FAST_JAX is on

}  // namespace tbptt::python
