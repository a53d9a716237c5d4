// Arrays in the host's memory as the readers see them that are written for every place where arrays may lie; their twin for
// devices is in cuda/arrays.h.
#pragma once

#include "arguments.h"

namespace tbptt::python {

// A fresh output; None until it is made.
template <class T>
struct Made {
    py::object array = py::none();
    T* data = nullptr;
};

// Borrowed memory: the caller's own array (or a contiguous copy), not to be changed before the backward pass.
struct Borrowed {
    py::object holder = py::none();
    const void* data = nullptr;

    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

template <class T>
Borrowed borrowed(const Input<T>& in) {
    return {in.holder ? in.holder : py::object(py::none()), in.data};
}

// NumPy's arrays, and what others export from CPU memory.
struct HostArrays {
    py::array read(py::handle given, const Argument& argument) const { return to_array(given, argument); }
    template <class T, class Given>
    Input<T> input(const Given& given, std::initializer_list<Extent> shape, const Argument& argument) const {
        return python::input<T>(given, shape, argument);
    }
    template <class T>
    Input<T> input(py::handle given, const Extents& shape, const Argument& argument) const {
        return input_of_extents<T>(given, shape, argument);
    }
    template <class T>
    Input<T> optional_input(py::handle given, std::initializer_list<Extent> shape, const Argument& argument) const {
        return python::optional_input<T>(given, shape, argument);
    }
    Input<std::uint8_t> mask(py::handle given, std::initializer_list<Extent> shape, const Argument& argument) const {
        return optional_mask(given, shape, argument);
    }
    template <class T>
    Made<T> make(std::initializer_list<Extent> shape) const {
        Output<T> output(shape);
        return {std::move(output.array), output.data};
    }
    template <class T>
    Made<T> make(const Extents& shape) const {
        Output<T> output({element_count(shape)});
        return {reshaped(output.array, shape), output.data};
    }
    // Of another dtype than x's, which is all the same here.
    template <class T>
    Made<T> make_other(const Extents& shape) const {
        return make<T>(shape);
    }
};

}  // namespace tbptt::python
