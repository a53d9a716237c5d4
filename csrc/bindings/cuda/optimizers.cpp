// The optimizers on a device: one call updates all parameters, and nothing of it comes back but the norm, which stays there.
#include <memory>

#include "../../cuda/api.h"
#include "../optimizer_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

// Arrays of one dtype for ArrayLists.
template <class T>
class DeviceItems {
   public:
    using Array = View;

    explicit DeviceItems(const DeviceCall& call) : call_(&call) {}

    View written(py::handle object, const Item& item) const {
        View view = read(object, item);
        if (view.read_only) item.value_error("expected a writable array, got a read-only one");
        if (!view.contiguous) item.value_error("expected a C-contiguous array, got a strided one");
        if (!is_usable(view)) item.value_error("expected an aligned array, got a misaligned one");
        // A library that had to make a copy of it would not see the update.
        const bool same =
            view.holder.is(object) || !py::hasattr(object, "is_neg") || !object.attr("is_neg")().cast<bool>();
        if (!same) item.value_error("expected a writable array, got a negated view");
        return view;
    }

    View read(py::handle object, const Item& item) const {
        const std::string name = item.name();
        const Argument argument{item.op, name.c_str()};
        View view = call_->arrays.read(object, argument);
        if (view.dtype != element_type<T>.name)
            argument.type_error(std::string("expected dtype ") + element_type<T>.name + ", got " + view.dtype);
        call_->arrays.check_device(view, argument);
        return view;
    }

    View contiguous(View view, const Item& item) const {
        if (is_usable(view)) return view;
        const std::string name = item.name();
        return call_->arrays.check(view, element_type<T>.name, shape_of(view), {item.op, name.c_str()});
    }

    View copied(const View& view) {
        const int64_t bytes = size(view) * static_cast<int64_t>(sizeof(T));
        copies_.push_back(std::make_unique<cuda::Scratch<char>>(bytes, call_->place.stream));
        View copy = view;
        copy.data = *copies_.back();
        cuda::copy_bytes(copy.data, view.data, static_cast<std::size_t>(bytes), call_->place.stream);
        return copy;
    }

    static const char* data(const View& view) { return view.data; }
    static int64_t size(const View& view) { return view.size(); }
    static py::object holder(const View& view) { return view.holder; }

   private:
    const DeviceCall* call_;
    std::vector<std::unique_ptr<cuda::Scratch<char>>> copies_;
};

template <class T>
using DeviceLists = ArrayLists<T, DeviceItems<T>>;

// The first array of a list says where the call takes place.
py::object first_of(py::handle list, const Argument& argument) {
    const py::tuple items = read_list(list, argument);
    if (items.empty()) argument.value_error("expected at least one array, which says where it is, got none");
    return items[0];
}

Clipping read_skipping(py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle maximize,
                       const char* op) {
    const Clipping clipping = read_clipping(max_norm, clip_value, non_finite, maximize, op);
    if (!clipping.skip)
        Argument{op, "non_finite"}.value_error(
            "expected 'skip', got 'raise': no call waits for the device; the norm is NaN then");
    return clipping;
}

// The norm, unless it is given, and the update. `step(list, clip)` makes the update.
template <class T, class Step>
py::object run(const DeviceCall& c, const DeviceLists<T>& lists, const Clipping& clipping, py::handle norm_given,
               const char* op, Step step) {
    Input<double> given;
    Made<double> norm;
    if (norm_given.is_none())
        norm = c.arrays.make_other<double>(Extents{});
    else
        given = c.arrays.input<double>(norm_given, Extents{}, {op, "norm"});
    {
        const Unlocked unlocked;
        Parameters<T> list = lists.list(clipping.clip_value);
        if (norm.data) cuda::gradient_norm<T>({list, norm.data, nullptr}, c.call());
        list.factor = clipping.maximize ? -1 : 1;
        step(list, cuda::ClipByNorm{norm.data ? norm.data : given.data, clipping.max_norm});
    }
    return norm.data ? norm.array : given.holder;
}

py::object sgd_step(py::handle place, py::handle params, py::handle grads, py::handle momentum, py::handle lr,
                    py::handle mu, py::handle dampening, py::handle nesterov, py::handle velocity,
                    py::handle weight_decay, py::handle maximize, py::handle max_norm, py::handle clip_value,
                    py::handle non_finite, py::handle norm) {
    const char* op = "sgd_step";
    const SgdOptions options = read_sgd(lr, mu, dampening, nesterov, velocity, weight_decay);
    const Clipping clipping = read_skipping(max_norm, clip_value, non_finite, maximize, op);
    const DeviceCall c(place, first_of(params, {op, "params"}), {op, "params[0]"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        DeviceLists<T> lists(op, params, DeviceItems<T>(c));
        add_sgd_lists(lists, grads, momentum, options);
        return run<T>(c, lists, clipping, norm, op, [&](const Parameters<T>& list, const cuda::ClipByNorm& clip) {
            cuda::sgd_step(options.step(list), clip, c.call());
        });
    });
}

py::object rmsprop_step(py::handle place, py::handle params, py::handle grads, py::handle square_avg,
                        py::handle momentum, py::handle grad_avg, py::handle lr, py::handle alpha, py::handle eps,
                        py::handle mu, py::handle weight_decay, py::handle maximize, py::handle max_norm,
                        py::handle clip_value, py::handle non_finite, py::handle norm) {
    const char* op = "rmsprop_step";
    const RmspropOptions options = read_rmsprop(lr, alpha, eps, mu, weight_decay);
    const Clipping clipping = read_skipping(max_norm, clip_value, non_finite, maximize, op);
    const DeviceCall c(place, first_of(params, {op, "params"}), {op, "params[0]"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        DeviceLists<T> lists(op, params, DeviceItems<T>(c));
        add_rmsprop_lists(lists, grads, square_avg, momentum, grad_avg, options);
        return run<T>(c, lists, clipping, norm, op, [&](const Parameters<T>& list, const cuda::ClipByNorm& clip) {
            cuda::rmsprop_step(options.step(list, !grad_avg.is_none()), clip, c.call());
        });
    });
}

// Adam's number of the step: an integer, or counters on the device, one for all arrays or one for each.
class StepNumber {
   public:
    explicit StepNumber(py::handle given) : given_(given) {
        const bool is_list = py::isinstance<py::list>(given) || py::isinstance<py::tuple>(given);
        counted_ = is_list || (!PyLong_Check(given.ptr()) &&
                               (py::hasattr(given, "__cuda_array_interface__") || py::hasattr(given, "__dlpack__")));
        if (!counted_) number_ = static_cast<double>(read_integer(given, 1, argument_));
    }

    // Before the lists are checked for overlaps: counters are written, too.
    template <class T>
    void read_counters(const DeviceCall& c, DeviceLists<T>& lists, int64_t arrays) {
        if (!counted_) return;
        const bool is_list = py::isinstance<py::list>(given_) || py::isinstance<py::tuple>(given_);
        const py::tuple items = is_list ? py::tuple(read_list(given_, argument_)) : py::make_tuple(given_);
        if (is_list && static_cast<int64_t>(items.size()) != arrays)
            argument_.value_error("expected " + std::to_string(arrays) + " arrays, got " +
                                  std::to_string(items.size()));
        for (std::size_t i = 0; i < items.size(); ++i) {
            const Item item{argument_.op, argument_.name, static_cast<int64_t>(i)};
            const std::string name = is_list ? item.name() : argument_.name;
            View view = c.arrays.read(items[i], {argument_.op, name.c_str()});
            check_counter(c, view, i == 0, {argument_.op, name.c_str()});
            lists.written.add(view.data, static_cast<int64_t>(view.item_bytes), item);
            counters_.push_back(view.data);
            holders_.push_back(std::move(view.holder));
        }
    }

    double number() const { return number_; }
    cuda::StepCounters counters(double lr) const {
        return {counted_ ? counters_.data() : nullptr, static_cast<int64_t>(counters_.size()), floats_, lr};
    }

   private:
    void check_counter(const DeviceCall& c, const View& view, bool first, const Argument& argument) {
        if (first) floats_ = view.dtype == "float32";
        const char* wanted = floats_ ? "float32" : "int64";
        if (view.dtype != wanted)
            argument.type_error(std::string("expected dtype ") + (first ? "int64 or float32" : wanted) + ", got " +
                                view.dtype);
        if (view.size() != 1)
            argument.value_error("expected an array of 1 element, got shape " + format_shape(shape_of(view)));
        c.arrays.check_device(view, argument);
        if (view.read_only) argument.value_error("expected a writable array, got a read-only one");
        if (!is_usable(view)) argument.value_error("expected an aligned array, got a misaligned one");
    }

    static constexpr Argument argument_{"adam_step", "step"};
    py::handle given_;
    bool counted_ = false, floats_ = false;
    double number_ = 1;
    std::vector<void*> counters_;
    std::vector<py::object> holders_;
};

py::object adam_step(py::handle place, py::handle params, py::handle grads, py::handle exp_avg, py::handle exp_avg_sq,
                     py::handle max_exp_avg_sq, py::handle step, py::handle lr, py::handle beta1, py::handle beta2,
                     py::handle eps, py::handle weight_decay, py::handle decoupled, py::handle maximize,
                     py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle norm) {
    const char* op = "adam_step";
    StepNumber number(step);
    const AdamOptions options = read_adam(lr, beta1, beta2, eps, weight_decay, decoupled);
    const Clipping clipping = read_skipping(max_norm, clip_value, non_finite, maximize, op);
    const DeviceCall c(place, first_of(params, {op, "params"}), {op, "params[0]"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        DeviceLists<T> lists(op, params, DeviceItems<T>(c));
        number.read_counters(c, lists, lists.list(1).count);
        add_adam_lists(lists, grads, exp_avg, exp_avg_sq, max_exp_avg_sq);
        return run<T>(c, lists, clipping, norm, op, [&](const Parameters<T>& list, const cuda::ClipByNorm& clip) {
            cuda::adam_step(options.step(list, number.number(), !max_exp_avg_sq.is_none()), number.counters(options.lr),
                            clip, c.call());
        });
    });
}

// Arrays of one dtype, for their norm.
template <class T>
class NormOf {
   public:
    void add(const View& view) {
        arrays_.push_back({view.size(), nullptr, reinterpret_cast<const T*>(view.data), nullptr, nullptr, nullptr});
        holders_.push_back(view.holder);
    }
    bool empty() const { return arrays_.empty(); }
    void norm(double clip_value, double* to, const cuda::Call& call) const {
        const Parameters<T> list{arrays_.data(), static_cast<int64_t>(arrays_.size()), clip_value, 1};
        cuda::gradient_norm<T>({list, to, nullptr}, call);
    }

   private:
    std::vector<OptimizerArray<T>> arrays_;
    std::vector<py::object> holders_;
};

py::object global_norm(py::handle place, py::handle arrays_given, py::handle clip_value) {
    const char* op = "global_norm";
    const double limit = read_limit(clip_value, {op, "clip_value"});
    const DeviceCall c(place, first_of(arrays_given, {op, "arrays"}), {op, "arrays[0]"});
    const py::tuple items = read_list(arrays_given, {op, "arrays"});
    NormOf<float> singles;
    NormOf<double> doubles;
    for (std::size_t i = 0; i < items.size(); ++i) {
        const std::string name = Item{op, "arrays", static_cast<int64_t>(i)}.name();
        const Argument argument{op, name.c_str()};
        View view = c.arrays.read(items[i], argument);
        const DType dtype = float_dtype(view, argument);
        view = c.arrays.check(view, name_of(dtype), shape_of(view), argument);
        dtype == DType::float32 ? singles.add(view) : doubles.add(view);
    }
    const Made<double> norm = c.arrays.make_other<double>(Extents{});
    {
        const Unlocked unlocked;
        if (doubles.empty()) {
            singles.norm(limit, norm.data, c.call());
        } else if (singles.empty()) {
            doubles.norm(limit, norm.data, c.call());
        } else {
            const cuda::Scratch<double> of_singles(1, c.place.stream), of_doubles(1, c.place.stream);
            singles.norm(limit, of_singles, c.call());
            doubles.norm(limit, of_doubles, c.call());
            cuda::combine_norms(of_singles, of_doubles, norm.data, c.call());
        }
    }
    return norm.array;
}

}  // namespace

void register_cuda_optimizers(py::module_& module) {
    module.def("global_norm", &global_norm);
    module.def("sgd_step", &sgd_step);
    module.def("rmsprop_step", &rmsprop_step);
    module.def("adam_step", &adam_step);
}

}  // namespace tbptt::python
