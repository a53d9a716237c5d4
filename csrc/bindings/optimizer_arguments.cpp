// The checks of optimizer_arguments.h.
#include "optimizer_arguments.h"

namespace tbptt::python {

double read_limit(py::handle given, const Argument& argument) {
    return given.is_none() ? infinite : read_number(given, positive_or_none, argument);
}

Clipping read_clipping(py::handle max_norm, py::handle clip_value, py::handle non_finite, py::handle maximize,
                       const char* op) {
    const Argument argument{op, "non_finite"};
    if (!py::isinstance<py::str>(non_finite)) argument.type_error("expected a string, got " + type_name(non_finite));
    const std::string choice = py::str(non_finite);
    if (choice != "raise" && choice != "skip") argument.value_error("expected 'raise' or 'skip', got '" + choice + "'");
    return {read_limit(max_norm, {op, "max_norm"}), read_limit(clip_value, {op, "clip_value"}), choice == "skip",
            read_bool(maximize, {op, "maximize"})};
}

SgdOptions read_sgd(py::handle lr, py::handle mu, py::handle dampening, py::handle nesterov, py::handle velocity,
                    py::handle weight_decay) {
    const char* op = "sgd_step";
    const SgdOptions options{read_number(lr, not_negative, {op, "lr"}),
                             read_number(mu, not_negative, {op, "mu"}),
                             read_number(dampening, any_number, {op, "dampening"}),
                             read_number(weight_decay, not_negative, {op, "weight_decay"}),
                             read_bool(nesterov, {op, "nesterov"}),
                             read_bool(velocity, {op, "velocity"})};
    if (options.nesterov && options.mu == 0)
        Argument{op, "nesterov"}.value_error("expected mu > 0 with it, got mu = 0");
    return options;
}

RmspropOptions read_rmsprop(py::handle lr, py::handle alpha, py::handle eps, py::handle mu, py::handle weight_decay) {
    const char* op = "rmsprop_step";
    return {read_number(lr, not_negative, {op, "lr"}), read_number(alpha, fraction, {op, "alpha"}),
            read_number(eps, positive, {op, "eps"}), read_number(mu, not_negative, {op, "mu"}),
            read_number(weight_decay, not_negative, {op, "weight_decay"})};
}

AdamOptions read_adam(py::handle lr, py::handle beta1, py::handle beta2, py::handle eps, py::handle weight_decay,
                      py::handle decoupled) {
    const char* op = "adam_step";
    return {read_number(lr, not_negative, {op, "lr"}),
            read_number(beta1, fraction, {op, "beta1"}),
            read_number(beta2, fraction, {op, "beta2"}),
            read_number(eps, positive, {op, "eps"}),
            read_number(weight_decay, not_negative, {op, "weight_decay"}),
            read_bool(decoupled, {op, "decoupled"})};
}

}  // namespace tbptt::python
