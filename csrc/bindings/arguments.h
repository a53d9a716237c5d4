// Arguments beyond the arrays of fixed rank of check.h: leading dimensions that are rows to the kernels, ids, numbers.
#pragma once

#include <limits>
#include <vector>

#include "../api.h"
#include "check.h"

namespace tbptt::python {

using Extents = std::vector<Extent>;

// The first `array.ndim() - without` extents; a ValueError when there are fewer.
Extents leading_extents(Shape shape, int64_t without, const Argument& argument);
Extents leading_extents(const py::array& array, py::ssize_t without, const Argument& argument);
Extents extents_of(Shape shape);
Extents extents_of(const py::array& array);
inline Shape shape_of(const Extents& extents) { return {extents.data(), static_cast<int64_t>(extents.size())}; }
Extents with_last(Extents leading, int64_t columns);
int64_t element_count(const Extents& extents);
void check_extents(const Extents& given, const Extents& expected, const Argument& argument);

// A shape that is rows to the kernels.
struct RowShape {
    Extents extents, leading;
    int64_t rows, columns;
};
RowShape read_rows(Shape shape, const Argument& argument);

template <class T>
Input<T> input_of_extents(py::handle object, const Extents& expected, const Argument& argument) {
    const py::array array = to_array(object, argument);
    check_dtype(array, dtype_of<T>, argument);
    check_extents(extents_of(array), expected, argument);
    py::array contiguous = to_contiguous(array);
    const T* data = static_cast<const T*>(contiguous.data());
    return {std::move(contiguous), data};
}

// A fresh array, made as [rows, …], in its public shape.
py::array reshaped(const py::array& array, const Extents& extents);

// Integers of dtype int32 or int64, as int64.
struct Ids {
    Extents extents;
    int64_t count;
    Block converted;  // where they were int32
    Input<int64_t> given;
    const int64_t* data;
};

Ids read_ids(py::handle object, const Argument& argument);

// A ValueError unless all are in [0, end) or, where there is one, equal to `*ignored`.
void check_ids(const Ids& ids, int64_t end, const int64_t* ignored, const Argument& argument);

// None, "relu", "tanh" or "sigmoid".
Activation read_activation(py::handle given, const char* op);

// Whether the layout is `last` (true) or `first` (false).
bool read_channels_last(py::handle given, const char* op, const std::string& first = "NCHW",
                        const std::string& last = "NHWC");

// Which gradients a backward pass is to make.
struct Needs {
    bool x = false, w = false, b = false;
};
Needs read_needs(py::handle given, const char* op);

int64_t read_integer(py::handle object, int64_t least, const Argument& argument);

// The numbers that an option may take.
struct Interval {
    const char* description;
    double least;
    bool least_included;
    double end;  // excluded
};

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr Interval not_negative{"a finite number >= 0", 0, true, infinite};
constexpr Interval any_number{"a finite number", -infinite, false, infinite};
constexpr Interval positive{"a finite number > 0", 0, false, infinite};
constexpr Interval positive_or_none{"None or a finite number > 0", 0, false, infinite};
constexpr Interval fraction{"a number in [0, 1)", 0, true, 1};

double read_number(py::handle object, const Interval& interval, const Argument& argument);

}  // namespace tbptt::python
