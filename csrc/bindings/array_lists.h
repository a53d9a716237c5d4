// Lists of parameters, gradients and optimizer states of one call, checked and flattened for the kernels.
//
// A list may hold hundreds of small arrays: what is fine costs a few comparisons, names are put together for errors only.
#pragma once

#include <algorithm>
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

// Memory of an array that is written.
struct Span {
    const char* begin;
    const char* end;
    Item item;
};

inline py::object read_list(py::handle given, const Argument& argument) {
    if (!py::isinstance<py::list>(given) && !py::isinstance<py::tuple>(given))
        argument.type_error("expected a list of arrays, got " + type_name(given));
    return py::tuple(py::reinterpret_borrow<py::object>(given));  // which no other thread can change
}

inline bool has_flags(const py::array& array, int wanted) { return (array.flags() & wanted) == wanted; }

template <class T>
class ArrayLists {
   public:
    ArrayLists(const char* op, py::handle params) : op_(op) {
        const py::tuple items = read_list(params, {op, "params"});
        arrays_.reserve(items.size());
        params_.reserve(items.size());
        holders_.reserve(4 * items.size());
        for (std::size_t i = 0; i < items.size(); ++i) {
            const Item item{op, "params", static_cast<int64_t>(i)};
            const py::array& array = add_written(items[i], item);
            params_.push_back(array);
            arrays_.push_back(
                {array.size(), static_cast<T*>(const_cast<void*>(array.data())), nullptr, nullptr, nullptr, nullptr});
        }
    }

    void add_state(const char* name, py::handle given, T* OptimizerArray<T>::* member) {
        const py::tuple items = items_of(name, given);
        for (std::size_t i = 0; i < arrays_.size(); ++i) {
            const Item item{op_, name, static_cast<int64_t>(i)};
            const py::array& array = add_written(items[i], item);
            check_shape_of(array, i, item);
            arrays_[i].*member = static_cast<T*>(const_cast<void*>(array.data()));
        }
    }

    // After the last state.
    void check_overlap() {
        std::sort(written_.begin(), written_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
        for (std::size_t i = 1; i < written_.size(); ++i)
            if (written_[i].begin < written_[i - 1].end)
                written_[i].item.value_error("expected memory of its own, got an array that overlaps " +
                                             written_[i - 1].item.name());
    }

    // After check_overlap.
    void add_grads(py::handle given) {
        const py::tuple items = items_of("grads", given);
        for (std::size_t i = 0; i < arrays_.size(); ++i) arrays_[i].grad = read_grad(items[i], i);
    }

    Parameters<T> list(double clip_value) const {
        return {arrays_.data(), static_cast<int64_t>(arrays_.size()), clip_value, 1};
    }

   private:
    py::tuple items_of(const char* name, py::handle given) const {
        py::tuple items = read_list(given, {op_, name});
        if (items.size() != arrays_.size())
            Argument{op_, name}.value_error("expected " + std::to_string(arrays_.size()) + " arrays, got " +
                                            std::to_string(items.size()));
        return items;
    }

    void check_dtype_of(const py::array& array, const Item& item) const {
        if (py::detail::array_proxy(array.ptr())->descr == dtype_.ptr()) return;
        check_dtype(array, dtype_of<T>, {op_, item.name().c_str()});
    }

    void check_shape_of(const py::array& array, std::size_t i, const Item& item) const {
        const py::array& param = params_[i];
        if (array.ndim() != param.ndim() || !std::equal(array.shape(), array.shape() + array.ndim(), param.shape()))
            item.value_error("expected shape " + format_shape(param) + ", got " + format_shape(array));
    }

    const py::array& add_written(py::handle object, const Item& item) {
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
        const char* begin = static_cast<const char*>(array.data());
        if (array.size() > 0) written_.push_back({begin, begin + array.nbytes(), item});
        holders_.push_back(array);
        return holders_.back();
    }

    const T* read_grad(py::handle object, std::size_t i) {
        const Item item{op_, "grads", static_cast<int64_t>(i)};
        py::array array = py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object)
                                                            : to_array(object, {op_, item.name().c_str()});
        check_dtype_of(array, item);
        check_shape_of(array, i, item);
        array = to_contiguous(std::move(array));
        const auto* data = static_cast<const char*>(array.data());
        if (data != static_cast<const void*>(arrays_[i].param) && is_written(data, data + array.nbytes())) {
            array = py::array(array.attr("copy")());  // as it was before the step
            data = static_cast<const char*>(array.data());
        }
        holders_.push_back(std::move(array));
        return reinterpret_cast<const T*>(data);
    }

    bool is_written(const char* begin, const char* end) const {
        const auto next = std::lower_bound(written_.begin(), written_.end(), end,
                                           [](const Span& span, const char* address) { return span.begin < address; });
        return next != written_.begin() && (next - 1)->end > begin;
    }

    const char* op_;
    py::dtype dtype_ = py::dtype::of<T>();
    std::vector<OptimizerArray<T>> arrays_;
    std::vector<py::array> params_, holders_;  // holders_ keeps every array of the call alive
    std::vector<Span> written_;
};

}  // namespace tbptt::python
