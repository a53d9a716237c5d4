// Arrays in a device's memory, of whatever library: read and checked once, here, by the rules of ../check.h.
#pragma once

#include <vector>

#include "../../cuda/bfloat16.h"
#include "../../cuda/machine.h"
#include "../check.h"
#include "../dlpack.h"
#include "../recurrent_arguments.h"

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

// 0, 1 and 2 are the default streams: 0 and 1 that of all threads, 2 that of this thread.
Stream stream_of(std::uintptr_t handle);

DType float_dtype(const View& view, const Argument& argument);
// bfloat16, too, where the array's device has it.
DType float_or_bfloat16(const View& view, const Argument& argument);

// See HostArrays.
class DeviceArrays {
   public:
    explicit DeviceArrays(const Place& place) : place_(place) {}

    // All arrays checked from here on have to be on this device, that of x.
    void stay_on(int device) { device_ = device; }

    View read(py::handle object, const Argument& argument) const;

    template <class T>
    Input<T> input(const View& view, std::initializer_list<int64_t> shape, const Argument& argument) const {
        View checked = check(view, name_of(dtype_of<T>), shape, argument);
        return {std::move(checked.holder), reinterpret_cast<const T*>(checked.data)};
    }
    template <class T>
    Input<T> input(py::handle object, std::initializer_list<int64_t> shape, const Argument& argument) const {
        return input<T>(read(object, argument), shape, argument);
    }
    template <class T>
    Input<T> optional_input(py::handle object, std::initializer_list<int64_t> shape, const Argument& argument) const {
        return object.is_none() ? Input<T>{} : input<T>(object, shape, argument);
    }
    Input<std::uint8_t> mask(py::handle object, std::initializer_list<int64_t> shape, const Argument& argument) const;

    template <class T>
    Made<T> make(std::initializer_list<int64_t> shape) const {
        View view = made(dtype_of<T>, shape);
        return {std::move(view.holder), reinterpret_cast<T*>(view.data)};
    }

   private:
    View check(View view, const char* dtype, std::initializer_list<int64_t> shape, const Argument& argument) const;
    View made(DType dtype, std::initializer_list<int64_t> shape) const;

    const Place& place_;
    int device_ = -1;
};

py::object new_device_array(DType dtype, std::initializer_list<int64_t> shape, int device, Stream stream);

void register_cuda_runtime(py::module_& module);
void register_device_array(py::module_& module);
void register_cuda_recurrent(py::module_& module);
#ifdef TBPTT_EMULATED
void register_emulator(py::module_& module);
#endif

}  // namespace tbptt::python
