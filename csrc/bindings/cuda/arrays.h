// Arrays in a device's memory, of whatever library: read and checked once, here, by the rules of ../check.h.
#pragma once

#include <vector>

#include "../../cuda/machine.h"
#include "../dlpack.h"
#include "../host_arrays.h"

namespace tbptt::python {

using tbptt::cuda::Stream;

// An array as its library describes it.
struct View {
    py::object holder;
    char* data = nullptr;
    std::string dtype;  // such as "float32"
    std::size_t item_bytes = 0;
    int device = -1;  // -1: of no device, or empty
    std::vector<int64_t> extents;
    bool contiguous = true;
    bool has_stream = false;  // whoever made it did so on `stream`
    Stream stream = nullptr;

    int64_t size() const;
};

inline Shape shape_of(const View& view) { return {view.extents.data(), static_cast<int64_t>(view.extents.size())}; }

// Where a call takes place. `empty(shape)` makes an array of x's dtype on its device, or is None where a DeviceArray has to
// do; `contiguous(array)` makes a copy by the array's own library, or None where none is known.
struct Place {
    py::object empty, contiguous;
    Stream stream;
};

Place read_place(py::handle given);

// Whether `precision` asks for full float32.
bool read_exact(py::handle given, const char* op);

// 0, 1 and 2 are the default streams: 0 and 1 that of all threads, 2 that of this thread.
Stream stream_of(std::uintptr_t handle);

DType float_dtype(const View& view, const Argument& argument);

// See HostArrays.
class DeviceArrays {
   public:
    explicit DeviceArrays(const Place& place) : place_(place) {}

    // All arrays checked from here on have to be on this device, that of x.
    void stay_on(int device) { device_ = device; }

    View read(py::handle object, const Argument& argument) const;

    template <class T>
    Input<T> input(const View& view, Shape shape, const Argument& argument) const {
        View checked = check(view, name_of(dtype_of<T>), shape, argument);
        return {std::move(checked.holder), reinterpret_cast<const T*>(checked.data)};
    }
    template <class T, class Given>
    Input<T> input(const Given& given, std::initializer_list<int64_t> shape, const Argument& argument) const {
        return input<T>(as_view(given, argument), shape_of(shape), argument);
    }
    template <class T, class Given>
    Input<T> input(const Given& given, const Extents& shape, const Argument& argument) const {
        return input<T>(as_view(given, argument), shape_of(shape), argument);
    }
    template <class T>
    Input<T> optional_input(py::handle object, std::initializer_list<int64_t> shape, const Argument& argument) const {
        return object.is_none() ? Input<T>{} : input<T>(object, shape, argument);
    }
    Input<std::uint8_t> mask(py::handle object, std::initializer_list<int64_t> shape, const Argument& argument) const;

    template <class T>
    Made<T> make(Shape shape) const {
        View view = made(dtype_of<T>, shape);
        return {std::move(view.holder), reinterpret_cast<T*>(view.data)};
    }
    template <class T>
    Made<T> make(std::initializer_list<int64_t> shape) const {
        return make<T>(shape_of(shape));
    }
    template <class T>
    Made<T> make(const Extents& shape) const {
        return make<T>(shape_of(shape));
    }

   private:
    static View as_view(View view, const Argument&) { return view; }
    View as_view(py::handle object, const Argument& argument) const { return read(object, argument); }
    View check(View view, const char* dtype, Shape shape, const Argument& argument) const;
    View made(DType dtype, Shape shape) const;

    const Place& place_;
    int device_ = -1;
};

py::object new_device_array(DType dtype, Shape shape, int device, Stream stream);

void register_cuda_runtime(py::module_& module);
void register_device_array(py::module_& module);
void register_cuda_convolution(py::module_& module);
void register_cuda_recurrent(py::module_& module);
#ifdef TBPTT_EMULATED
void register_emulator(py::module_& module);
#endif

}  // namespace tbptt::python
