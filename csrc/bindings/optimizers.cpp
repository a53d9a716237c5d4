// The optimizers: one call updates all parameters.
#include <cmath>

#include "../dispatch.h"
#include "arguments.h"
#include "array_lists.h"

namespace tbptt::python {

namespace {

struct Clipping {
    double max_norm, clip_value;  // infinite for none
    bool skip;                    // a non-finite gradient skips the step instead of raising
};

double read_limit(py::handle given, const Argument& argument) {
    return given.is_none() ? infinite : read_number(given, positive_or_none, argument);
}

Clipping read_clipping(py::handle max_norm, py::handle clip_value, py::handle non_finite, const char* op) {
    const Argument argument{op, "non_finite"};
    if (!py::isinstance<py::str>(non_finite)) argument.type_error("expected a string, got " + type_name(non_finite));
    const std::string choice = py::str(non_finite);
    if (choice != "raise" && choice != "skip") argument.value_error("expected 'raise' or 'skip', got '" + choice + "'");
    return {read_limit(max_norm, {op, "max_norm"}), read_limit(clip_value, {op, "clip_value"}), choice == "skip"};
}

// Whoever reads the lists takes the dtype of the first parameter.
DType dtype_of_list(py::handle params, const char* op) {
    const py::tuple items = read_list(params, {op, "params"});
    if (items.empty()) return DType::float32;
    if (!py::isinstance<py::array>(items[0]))
        Item{op, "params", 0}.type_error("expected a NumPy array, got " + type_name(items[0]));
    return float_dtype(py::reinterpret_borrow<py::array>(items[0]), {op, "params[0]"});
}

// Both passes; (norm, applied). `step(list)` runs the second one.
template <class T, class Step>
py::tuple run(const ArrayLists<T>& lists, const Clipping& clipping, const char* op, Step step) {
    constexpr double torch_eps = 1e-6;  // as in torch.nn.utils.clip_grad_norm_
    double norm = 0;
    int64_t non_finite = -1;
    {
        const py::gil_scoped_release unlocked;
        Parameters<T> list = lists.list(clipping.clip_value);
        kernels<T>().gradient_norm({list, &norm, &non_finite});
        if (non_finite < 0) {
            list.factor = std::min(1.0, clipping.max_norm / (norm + torch_eps));
            step(list);
        }
    }
    if (non_finite >= 0 && !clipping.skip) {
        const std::string message =
            std::string(op) + ": grads[" + std::to_string(non_finite) + "]: non-finite gradient";
        PyErr_SetString(PyExc_FloatingPointError, message.c_str());
        throw py::error_already_set();
    }
    return py::make_tuple(norm, non_finite < 0);
}

// With mu = 0 the momentum may be given, and is left alone.
template <class T>
void add_momentum(ArrayLists<T>& lists, py::handle given, double mu, T* OptimizerArray<T>::* member, const char* op) {
    if (!given.is_none())
        lists.add_state("momentum", given, member);
    else if (mu > 0)
        Argument{op, "momentum"}.value_error("expected a list of arrays with mu > 0, got None");
}

py::tuple sgd_step(py::handle params, py::handle grads, py::handle momentum, py::handle lr, py::handle mu,
                   py::handle nesterov, py::handle weight_decay, py::handle max_norm, py::handle clip_value,
                   py::handle non_finite) {
    const char* op = "sgd_step";
    const double rate = read_number(lr, not_negative, {op, "lr"}), inertia = read_number(mu, not_negative, {op, "mu"}),
                 decay = read_number(weight_decay, not_negative, {op, "weight_decay"});
    const bool look_ahead = read_bool(nesterov, {op, "nesterov"});
    if (look_ahead && inertia == 0) Argument{op, "nesterov"}.value_error("expected mu > 0 with it, got mu = 0");
    const Clipping clipping = read_clipping(max_norm, clip_value, non_finite, op);
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        add_momentum(lists, momentum, inertia, &OptimizerArray<T>::first, op);
        lists.check_overlap();
        lists.add_grads(grads);
        return run<T>(lists, clipping, op, [&](const Parameters<T>& list) {
            kernels<T>().sgd_step({list, rate, inertia, decay, look_ahead});
        });
    });
}

py::tuple rmsprop_step(py::handle params, py::handle grads, py::handle square_avg, py::handle momentum, py::handle lr,
                       py::handle alpha, py::handle eps, py::handle mu, py::handle weight_decay, py::handle max_norm,
                       py::handle clip_value, py::handle non_finite) {
    const char* op = "rmsprop_step";
    const double rate = read_number(lr, not_negative, {op, "lr"}), share = read_number(alpha, fraction, {op, "alpha"}),
                 least = read_number(eps, positive, {op, "eps"}), inertia = read_number(mu, not_negative, {op, "mu"}),
                 decay = read_number(weight_decay, not_negative, {op, "weight_decay"});
    const Clipping clipping = read_clipping(max_norm, clip_value, non_finite, op);
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        lists.add_state("square_avg", square_avg, &OptimizerArray<T>::first);
        add_momentum(lists, momentum, inertia, &OptimizerArray<T>::second, op);
        lists.check_overlap();
        lists.add_grads(grads);
        return run<T>(lists, clipping, op, [&](const Parameters<T>& list) {
            kernels<T>().rmsprop_step({list, rate, share, least, inertia, decay});
        });
    });
}

py::tuple adam_step(py::handle params, py::handle grads, py::handle exp_avg, py::handle exp_avg_sq, py::handle step,
                    py::handle lr, py::handle beta1, py::handle beta2, py::handle eps, py::handle weight_decay,
                    py::handle decoupled, py::handle max_norm, py::handle clip_value, py::handle non_finite) {
    const char* op = "adam_step";
    const auto count = static_cast<double>(read_integer(step, 1, {op, "step"}));
    const double rate = read_number(lr, not_negative, {op, "lr"}), first = read_number(beta1, fraction, {op, "beta1"}),
                 second = read_number(beta2, fraction, {op, "beta2"}), least = read_number(eps, positive, {op, "eps"}),
                 decay = read_number(weight_decay, not_negative, {op, "weight_decay"});
    const bool apart = read_bool(decoupled, {op, "decoupled"});
    const Clipping clipping = read_clipping(max_norm, clip_value, non_finite, op);
    const double step_size = rate / (1 - std::pow(first, count)),
                 inverse_root = 1 / std::sqrt(1 - std::pow(second, count));
    return with_dtype(dtype_of_list(params, op), [&](auto zero) {
        using T = decltype(zero);
        ArrayLists<T> lists(op, params);
        lists.add_state("exp_avg", exp_avg, &OptimizerArray<T>::first);
        lists.add_state("exp_avg_sq", exp_avg_sq, &OptimizerArray<T>::second);
        lists.check_overlap();
        lists.add_grads(grads);
        return run<T>(lists, clipping, op, [&](const Parameters<T>& list) {
            kernels<T>().adam_step(
                {list, step_size, inverse_root, first, second, least, apart ? 0 : decay, apart ? 1 - rate * decay : 1});
        });
    });
}

}  // namespace

void register_optimizers(py::module_& module) {
    module.def("sgd_step", &sgd_step);
    module.def("rmsprop_step", &rmsprop_step);
    module.def("adam_step", &adam_step);
}

}  // namespace tbptt::python
