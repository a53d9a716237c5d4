// Arrays in a device's memory, of whatever library: read and checked once, here, by the rules of ../check.h.
#pragma once

#include <vector>

#include "../../cuda/bfloat16.h"
#include "../../cuda/machine.h"
#include "../arguments.h"
#include "../dlpack.h"
#include "../host_arrays.h"

namespace tbptt::python {

using tbptt::cuda::Stream;

template <>
constexpr DType dtype_of<cuda::Bfloat16> = DType::bfloat16;

// Calls body(float()), body(double()) or body(cuda::Bfloat16()).
template <class Body>
auto with_device_dtype(DType dtype, const Body& body) {
    return dtype == DType::bfloat16 ? body(cuda::Bfloat16{}) : with_dtype(dtype, body);
}

// An array as its library describes it.
struct View {
    py::object holder;
    char* data = nullptr;
    std::string dtype;  // such as "float32"
    std::size_t item_bytes = 0;
    int device = -1;  // -1: of no device, or empty
    Extents extents;
    bool contiguous = true;
    bool read_only = false;
    bool has_stream = false;  // whoever made it did so on `stream`
    Stream stream = nullptr;

    int64_t size() const;
};

inline Shape shape_of(const View& view) { return {view.extents.data(), static_cast<int64_t>(view.extents.size())}; }

// Where a call takes place. `empty(shape)` makes an array of x's dtype on its device, with `dtype=` one of another, or is None
// where a DeviceArray has to do; `contiguous(array)` makes a copy by the array's own library, or None where none is known;
// `library` has the dtypes by their names.
struct Place {
    py::object empty, contiguous;
    Stream stream;
    py::object library;
};

Place read_place(py::handle given);

// Whether `precision` asks for full float32.
bool read_exact(py::handle given, const char* op);

// 0, 1 and 2 are the default streams: 0 and 1 that of all threads, 2 that of this thread.
Stream stream_of(std::uintptr_t handle);

DType float_dtype(const View& view, const Argument& argument);
// bfloat16, too, where the array's device has it.
DType float_or_bfloat16(const View& view, const Argument& argument);

// The types of results.
struct ElementType {
    const char *name, *interface_name;
    DlType type;
};
template <class T>
constexpr ElementType element_type{};
template <>
inline constexpr ElementType element_type<float>{"float32", "<f4", {dl_float, 32, 1}};
template <>
inline constexpr ElementType element_type<double>{"float64", "<f8", {dl_float, 64, 1}};
template <>  // NumPy has no bfloat16; ml_dtypes, which adds it, describes it so
inline constexpr ElementType element_type<cuda::Bfloat16>{"bfloat16", "<V2", {dl_bfloat, 16, 1}};
template <>
inline constexpr ElementType element_type<int64_t>{"int64", "<i8", {dl_int, 64, 1}};

// See HostArrays.
class DeviceArrays {
   public:
    explicit DeviceArrays(const Place& place) : place_(place) {}

    // All arrays checked from here on have to be on this device, that of the argument `like`.
    void stay_on(int device, const char* like = "x") {
        device_ = device;
        like_ = like;
    }
    int device() const { return device_; }

    View read(py::handle object, const Argument& argument) const;

    template <class T>
    Input<T> input(const View& view, Shape shape, const Argument& argument) const {
        View checked = check(view, name_of(dtype_of<T>), shape, argument);
        return {std::move(checked.holder), reinterpret_cast<const T*>(checked.data)};
    }
    template <class T, class Given>
    Input<T> input(const Given& given, std::initializer_list<Extent> shape, const Argument& argument) const {
        return input<T>(as_view(given, argument), shape_of(shape), argument);
    }
    template <class T, class Given>
    Input<T> input(const Given& given, const Extents& shape, const Argument& argument) const {
        return input<T>(as_view(given, argument), shape_of(shape), argument);
    }
    template <class T>
    Input<T> optional_input(py::handle object, std::initializer_list<Extent> shape, const Argument& argument) const {
        return object.is_none() ? Input<T>{} : input<T>(object, shape, argument);
    }
    Input<std::uint8_t> mask(py::handle object, std::initializer_list<Extent> shape, const Argument& argument) const;

    template <class T>
    Made<T> make(Shape shape) const {
        return made_as<T>(shape, true);
    }
    template <class T>
    Made<T> make(std::initializer_list<Extent> shape) const {
        return make<T>(shape_of(shape));
    }
    template <class T>
    Made<T> make(const Extents& shape) const {
        return make<T>(shape_of(shape));
    }
    // Of another dtype than x's.
    template <class T>
    Made<T> make_other(const Extents& shape) const {
        return made_as<T>(shape_of(shape), false);
    }

    // What is neither contiguous nor aligned is copied by its own library.
    View check(View view, const char* dtype, Shape shape, const Argument& argument) const;
    void check_device(const View& view, const Argument& argument) const;

   private:
    static View as_view(View view, const Argument&) { return view; }
    View as_view(py::handle object, const Argument& argument) const { return read(object, argument); }
    template <class T>
    Made<T> made_as(Shape shape, bool of_x) const {
        View view = made(element_type<T>, shape, of_x);
        return {std::move(view.holder), reinterpret_cast<T*>(view.data)};
    }
    View made(const ElementType& type, Shape shape, bool of_x) const;

    const Place& place_;
    int device_ = -1;
    const char* like_ = "x";
};

// A call that takes place on the device of its first array, of float32 or float64.
struct DeviceCall {
    DeviceCall(py::handle place_given, py::handle first_given, const Argument& argument)
        : place(read_place(place_given)),
          arrays(place),
          first(arrays.read(first_given, argument)),
          dtype(float_dtype(first, argument)),
          here(first.device) {
        arrays.stay_on(first.device, argument.name);
    }
    cuda::Call call() const { return {place.stream, false}; }

    Place place;
    DeviceArrays arrays;
    View first;
    DType dtype;
    cuda::OnDevice here;
};

// Zeros where `from` is null.
template <class T>
void copy_or_zero(const T* from, T* to, int64_t count, Stream stream) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (from)
        cuda::copy_bytes(to, from, bytes, stream);
    else
        cuda::set_bytes(to, 0, bytes, stream);
}

// Whether kernels can use the array as it is.
bool is_usable(const View& view);

// Integers of dtype int32 or int64, as int64; see Ids. The values are not looked at.
class DeviceIds {
   public:
    DeviceIds(const DeviceArrays& arrays, py::handle given, const Argument& argument, Stream stream);

    const Extents& extents() const { return given_.extents; }
    int64_t count() const { return count_; }
    // Puts their conversion on the stream where they are int32.
    const int64_t* data() const;

   private:
    View given_;
    int64_t count_;
    bool wide_;
    Stream stream_;
    cuda::Scratch<int64_t> converted_;
};

py::object new_device_array(const ElementType& type, Shape shape, int device, Stream stream);

void register_cuda_runtime(py::module_& module);
void register_device_array(py::module_& module);
void register_cuda_convolution(py::module_& module);
void register_cuda_convrecurrent(py::module_& module);
void register_cuda_recurrent(py::module_& module);
void register_cuda_layers(py::module_& module);
void register_cuda_losses(py::module_& module);
void register_cuda_normalization(py::module_& module);
void register_cuda_optimizers(py::module_& module);
void register_cuda_pooling(py::module_& module);
void register_cuda_jax(py::module_& module);  // where TBPTT_FAST_JAX is on
#ifdef TBPTT_EMULATED
void register_emulator(py::module_& module);
#endif

}  // namespace tbptt::python
