// The optimizers: one call updates all parameters.
#include <cmath>

#include "../dispatch.h"
#include "optimizer_arguments.h"

namespace tbptt::python {

namespace {

// None, a number, or the NaN that global_norm gives.
double read_norm(py::handle given, const Argument& argument) {
    const bool is_nan = given.is_none() || (PyFloat_Check(given.ptr()) && std::isnan(PyFloat_AS_DOUBLE(given.ptr())));
    return is_nan ? std::nan("") : read_number(given, not_negative, argument);
}

struct Gradients {
    Clipping clipping;
    bool norm_given;
    double norm;  // NaN when a gradient is not finite
};

Gradients read_gradients(py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle maximize,
                         py::handle norm, const char* op) {
    return {read_clipping(max_norm, clip_value, non_finite, maximize, op), !norm.is_none(),
            read_norm(norm, {op, "norm"})};
}

// Whoever reads the lists takes the dtype of the first parameter.
DType dtype_of_list(py::handle params, const char* op) {
    const py::tuple items = read_list(params, {op, "params"});
    if (items.empty()) return DType::float32;
    if (!py::isinstance<py::array>(items[0]))
        Item{op, "params", 0}.type_error("expected a NumPy array, got " + type_name(items[0]));
    return float_dtype(py::reinterpret_borrow<py::array>(items[0]), {op, "params[0]"});
}

// The norm, unless it is given, and the update; (norm, applied). `step(list)` makes the update.
template <class T, class Step>
py::tuple run(const ArrayLists<T>& lists, const Gradients& gradients, const char* op, Step step) {
    constexpr double torch_eps = 1e-6;  // as in torch.nn.utils.clip_grad_norm_
    const Clipping& clipping = gradients.clipping;
    double norm = gradients.norm;
    int64_t non_finite = -1;
    {
        const Unlocked unlocked;
        Parameters<T> list = lists.list(clipping.clip_value);
        if (!gradients.norm_given) kernels<T>().gradient_norm({list, &norm, &non_finite});
        if (!std::isnan(norm)) {
            const double factor = std::min(1.0, clipping.max_norm / (norm + torch_eps));
            list.factor = clipping.maximize ? -factor : factor;
            step(list);
        }
    }
    if (std::isnan(norm) && !clipping.skip) {
        const std::string where = gradients.norm_given ? "norm" : "grads[" + std::to_string(non_finite) + "]";
        const std::string message = std::string(op) + ": " + where + ": non-finite gradient";
        PyErr_SetString(PyExc_FloatingPointError, message.c_str());
        throw py::error_already_set();
    }
    return py::make_tuple(norm, !std::isnan(norm));
}

py::tuple sgd_step(py::handle params, py::handle grads, py::handle momentum, py::handle lr, py::handle mu,
                   py::handle dampening, py::handle nesterov, py::handle velocity, py::handle weight_decay,
                   py::handle maximize, py::handle max_norm, py::handle clip_value, py::handle non_finite,
                   py::handle norm) {
    const char* op = "sgd_step";
    const SgdOptions options = read_sgd(lr, mu, dampening, nesterov, velocity, weight_decay);
    const Gradients gradients = read_gradients(max_norm, clip_value, non_finite, maximize, norm, op);
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        add_sgd_lists(lists, grads, momentum, options);
        return run<T>(lists, gradients, op,
                      [&](const Parameters<T>& list) { kernels<T>().sgd_step(options.step(list)); });
    });
}

py::tuple rmsprop_step(py::handle params, py::handle grads, py::handle square_avg, py::handle momentum,
                       py::handle grad_avg, py::handle lr, py::handle alpha, py::handle eps, py::handle mu,
                       py::handle weight_decay, py::handle maximize, py::handle max_norm, py::handle clip_value,
                       py::handle non_finite, py::handle norm) {
    const char* op = "rmsprop_step";
    const RmspropOptions options = read_rmsprop(lr, alpha, eps, mu, weight_decay);
    const Gradients gradients = read_gradients(max_norm, clip_value, non_finite, maximize, norm, op);
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        add_rmsprop_lists(lists, grads, square_avg, momentum, grad_avg, options);
        return run<T>(lists, gradients, op, [&](const Parameters<T>& list) {
            kernels<T>().rmsprop_step(options.step(list, !grad_avg.is_none()));
        });
    });
}

py::tuple adam_step(py::handle params, py::handle grads, py::handle exp_avg, py::handle exp_avg_sq,
                    py::handle max_exp_avg_sq, py::handle step, py::handle lr, py::handle beta1, py::handle beta2,
                    py::handle eps, py::handle weight_decay, py::handle decoupled, py::handle maximize,
                    py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle norm) {
    const char* op = "adam_step";
    const auto count = static_cast<double>(read_integer(step, 1, {op, "step"}));
    const AdamOptions options = read_adam(lr, beta1, beta2, eps, weight_decay, decoupled);
    const Gradients gradients = read_gradients(max_norm, clip_value, non_finite, maximize, norm, op);
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        add_adam_lists(lists, grads, exp_avg, exp_avg_sq, max_exp_avg_sq);
        return run<T>(lists, gradients, op, [&](const Parameters<T>& list) {
            kernels<T>().adam_step(options.step(list, count, !max_exp_avg_sq.is_none()));
        });
    });
}

// The norm of all gradients of one dtype; NaN when one is not finite.
template <class T>
class NormOf {
   public:
    void add(py::array array) {
        array = to_contiguous(std::move(array));
        arrays_.push_back({array.size(), nullptr, static_cast<const T*>(array.data()), nullptr, nullptr, nullptr});
        holders_.push_back(std::move(array));
    }
    double norm(double clip_value) const {
        double norm = 0;
        int64_t non_finite = -1;
        kernels<T>().gradient_norm(
            {{arrays_.data(), static_cast<int64_t>(arrays_.size()), clip_value, 1}, &norm, &non_finite});
        return norm;
    }

   private:
    std::vector<OptimizerArray<T>> arrays_;
    std::vector<py::array> holders_;
};

double global_norm(py::handle arrays, py::handle clip_value) {
    const char* op = "global_norm";
    const double limit = read_limit(clip_value, {op, "clip_value"});
    const py::tuple items = read_list(arrays, {op, "arrays"});
    NormOf<float> singles;
    NormOf<double> doubles;
    for (std::size_t i = 0; i < items.size(); ++i) {
        const std::string name = Item{op, "arrays", static_cast<int64_t>(i)}.name();
        const Argument argument{op, name.c_str()};
        py::array array = to_array(items[i], argument);
        float_dtype(array, argument) == DType::float32 ? singles.add(std::move(array)) : doubles.add(std::move(array));
    }
    const Unlocked unlocked;
    const double of_singles = singles.norm(limit), of_doubles = doubles.norm(limit);
    // With one dtype these are the bits that a step computes by itself.
    if (of_doubles == 0) return of_singles;
    if (of_singles == 0) return of_doubles;
    return std::sqrt(of_singles * of_singles + of_doubles * of_doubles);
}

}  // namespace

void register_optimizers(py::module_& module) {
    module.def("global_norm", &global_norm);
    module.def("sgd_step", &sgd_step);
    module.def("rmsprop_step", &rmsprop_step);
    module.def("adam_step", &adam_step);
}

}  // namespace tbptt::python
