// Lists of parameters, gradients and optimizer states of one call, checked and flattened for the kernels, wherever they lie.
//
// A list may hold hundreds of small arrays: what is fine costs a few comparisons, names are put together for errors only.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../api.h"
#include "check.h"

namespace tbptt::python {

// Item `index` of the argument `list`, for messages.
struct Item {
    const char* op;
    const char* list;
    int64_t index;
    std::string name() const { return std::string(list) + "[" + std::to_string(index) + "]"; }
    [[noreturn]] void type_error(const std::string& message) const { Argument{op, name().c_str()}.type_error(message); }
    [[noreturn]] void value_error(const std::string& message) const {
        Argument{op, name().c_str()}.value_error(message);
    }
};

inline py::object read_list(py::handle given, const Argument& argument) {
    if (!py::isinstance<py::list>(given) && !py::isinstance<py::tuple>(given))
        argument.type_error("expected a list of arrays, got " + type_name(given));
    return py::tuple(py::reinterpret_borrow<py::object>(given));  // which no other thread can change
}

// Memory that a call writes.
class WrittenMemory {
   public:
    void add(const char* begin, int64_t bytes, const Item& item) {
        if (bytes > 0) spans_.push_back({begin, begin + bytes, item});
    }

    // After the last array.
    void check_overlap() {
        std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
        for (std::size_t i = 1; i < spans_.size(); ++i)
            if (spans_[i].begin < spans_[i - 1].end)
                spans_[i].item.value_error("expected memory of its own, got an array that overlaps " +
                                           spans_[i - 1].item.name());
    }

    // After check_overlap.
    bool contains_part_of(const char* begin, const char* end) const {
        const auto next = std::lower_bound(spans_.begin(), spans_.end(), end,
                                           [](const Span& span, const char* address) { return span.begin < address; });
        return next != spans_.begin() && (next - 1)->end > begin;
    }

   private:
    struct Span {
        const char* begin;
        const char* end;
        Item item;
    };
    std::vector<Span> spans_;
};

// NumPy's arrays of one dtype.
template <class T>
class HostItems {
   public:
    using Array = py::array;

    // An array that can be updated in place.
    Array written(py::handle object, const Item& item) const {
        using Api = py::detail::npy_api;
        if (!py::isinstance<py::array>(object)) item.type_error("expected a NumPy array, got " + type_name(object));
        const auto array = py::reinterpret_borrow<py::array>(object);
        check_dtype_of(array, item);
        constexpr int wanted = Api::NPY_ARRAY_C_CONTIGUOUS_ | Api::NPY_ARRAY_ALIGNED_ | Api::NPY_ARRAY_WRITEABLE_;
        if (!has_flags(array, wanted)) {
            if (!array.writeable()) item.value_error("expected a writable array, got a read-only one");
            if (!has_flags(array, Api::NPY_ARRAY_C_CONTIGUOUS_))
                item.value_error("expected a C-contiguous array, got a strided one");
            item.value_error("expected an aligned array, got a misaligned one");
        }
        return array;
    }

    Array read(py::handle object, const Item& item) const {
        py::array array = py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object)
                                                            : to_array(object, {item.op, item.name().c_str()});
        check_dtype_of(array, item);
        return array;
    }

    static Array contiguous(Array array, const Item&) { return to_contiguous(std::move(array)); }
    static Array copied(const Array& array) { return py::array(array.attr("copy")()); }
    static const char* data(const Array& array) { return static_cast<const char*>(array.data()); }
    static int64_t size(const Array& array) { return array.size(); }
    static py::object holder(const Array& array) { return array; }

   private:
    static bool has_flags(const py::array& array, int wanted) { return (array.flags() & wanted) == wanted; }

    void check_dtype_of(const py::array& array, const Item& item) const {
        if (py::detail::array_proxy(array.ptr())->descr == dtype_.ptr()) return;
        check_dtype(array, dtype_of<T>, {item.op, item.name().c_str()});
    }

    py::dtype dtype_ = py::dtype::of<T>();
};

// `Items` reads the arrays: HostItems or its like.
template <class T, class Items = HostItems<T>>
class ArrayLists {
   public:
    using Value = T;

    ArrayLists(const char* op, py::handle params, Items items = {}) : op_(op), items_(std::move(items)) {
        const py::tuple given = read_list(params, {op, "params"});
        arrays_.reserve(given.size());
        params_.reserve(given.size());
        holders_.reserve(3 * given.size());
        for (std::size_t i = 0; i < given.size(); ++i) {
            params_.push_back(add_written(given[i], {op, "params", static_cast<int64_t>(i)}));
            const auto& array = params_.back();
            arrays_.push_back({items_.size(array), data_of(array), nullptr, nullptr, nullptr, nullptr});
        }
    }

    void add_state(const char* name, py::handle given, T* OptimizerArray<T>::* member) {
        const py::tuple states = items_of(name, given);
        for (std::size_t i = 0; i < arrays_.size(); ++i) {
            const Item item{op_, name, static_cast<int64_t>(i)};
            const auto array = add_written(states[i], item);
            check_shape_of(array, i, item);
            arrays_[i].*member = data_of(array);
            holders_.push_back(items_.holder(array));
        }
    }

    // After the last state.
    void check_overlap() { written.check_overlap(); }

    // After check_overlap.
    void add_grads(py::handle given) {
        const py::tuple grads = items_of("grads", given);
        for (std::size_t i = 0; i < arrays_.size(); ++i) arrays_[i].grad = read_grad(grads[i], i);
    }

    Parameters<T> list(double clip_value) const {
        return {arrays_.data(), static_cast<int64_t>(arrays_.size()), clip_value, 1};
    }

    WrittenMemory written;

   private:
    using Array = typename Items::Array;

    T* data_of(const Array& array) const { return reinterpret_cast<T*>(const_cast<char*>(items_.data(array))); }

    py::tuple items_of(const char* name, py::handle given) const {
        py::tuple items = read_list(given, {op_, name});
        if (items.size() != arrays_.size())
            Argument{op_, name}.value_error("expected " + std::to_string(arrays_.size()) + " arrays, got " +
                                            std::to_string(items.size()));
        return items;
    }

    void check_shape_of(const Array& array, std::size_t i, const Item& item) const {
        const Shape given = shape_of(array), wanted = shape_of(params_[i]);
        if (given.rank != wanted.rank || !std::equal(given.extents, given.extents + given.rank, wanted.extents))
            item.value_error("expected shape " + format_shape(wanted) + ", got " + format_shape(given));
    }

    Array add_written(py::handle object, const Item& item) {
        Array array = items_.written(object, item);
        written.add(items_.data(array), items_.size(array) * static_cast<int64_t>(sizeof(T)), item);
        return array;
    }

    const T* read_grad(py::handle object, std::size_t i) {
        const Item item{op_, "grads", static_cast<int64_t>(i)};
        Array array = items_.read(object, item);
        check_shape_of(array, i, item);
        array = items_.contiguous(std::move(array), item);
        const char* data = items_.data(array);
        const char* end = data + items_.size(array) * static_cast<int64_t>(sizeof(T));
        if (data != static_cast<const void*>(arrays_[i].param) && written.contains_part_of(data, end))
            array = items_.copied(array);  // as it was before the step
        holders_.push_back(items_.holder(array));
        return data_of(array);
    }

    const char* op_;
    Items items_;
    std::vector<OptimizerArray<T>> arrays_;
    std::vector<Array> params_;
    std::vector<py::object> holders_;  // with params_, they keep every array of the call alive
};

}  // namespace tbptt::python
