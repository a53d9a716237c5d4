// The losses.
#include "../dispatch.h"
#include "arguments.h"

namespace tbptt::python {

namespace {

enum class Reduction { mean, sum, none };

Reduction read_reduction(py::handle given, const char* op) {
    const Argument argument{op, "reduction"};
    if (!py::isinstance<py::str>(given)) argument.type_error("expected a string, got " + type_name(given));
    const std::string name = py::str(given);
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    if (name == "none") return Reduction::none;
    argument.value_error("expected 'mean', 'sum' or 'none', got '" + name + "'");
}

template <class T>
Input<T> read_weights(py::handle given, const Extents& leading, const char* op) {
    if (given.is_none()) return {};
    return input_of_extents<T>(given, leading, {op, "weights"});
}

// Σ weights of the rows that count, in double and in the order of the rows.
template <class T, class Counts>
double total_weight(int64_t rows, const T* weights, Counts counts) {
    double total = 0;
    for (int64_t i = 0; i < rows; ++i)
        if (counts(i)) total += weights ? static_cast<double>(weights[i]) : 1.0;
    return total;
}

template <class T>
py::tuple softmax_cross_entropy(const py::array& logits_array, const Ids& targets, py::handle weights_given,
                                int64_t ignore_index, Reduction reduction) {
    const char* op = "softmax_cross_entropy";
    const int64_t rows = targets.count, classes = logits_array.shape(logits_array.ndim() - 1);
    const Input<T> weights = read_weights<T>(weights_given, targets.extents, op);
    const py::array logits = to_contiguous(logits_array);
    const Output<T> grad({rows, classes}), each({reduction == Reduction::none ? rows : 0});
    const Block losses(static_cast<std::size_t>(rows) * sizeof(double));
    auto* loss = static_cast<double*>(losses.get());
    double sum = 0, divisor = 1;
    {
        const Unlocked unlocked;
        if (reduction == Reduction::mean)
            divisor = total_weight(rows, weights.data, [&](int64_t i) { return targets.data[i] != ignore_index; });
        kernels<T>().softmax_cross_entropy({rows, classes, ignore_index, divisor, static_cast<const T*>(logits.data()),
                                            targets.data, weights.data, loss, grad.data});
        if (reduction == Reduction::none)
            for (int64_t i = 0; i < rows; ++i) each.data[i] = static_cast<T>(loss[i]);
        else
            for (int64_t i = 0; i < rows; ++i) sum += loss[i];
    }
    const py::array grad_logits = reshaped(grad.array, extents_of(logits_array));
    if (reduction == Reduction::none) return py::make_tuple(reshaped(each.array, targets.extents), grad_logits);
    return py::make_tuple(sum / divisor, grad_logits);
}

// A loss that looks at every value by itself.
struct Pointwise {
    const char* op;
    Loss kind;
    double delta;
};

template <class T>
void check_signs(const T* target, int64_t count, const char* op) {
    for (int64_t i = 0; i < count; ++i)
        if (target[i] != T(1) && target[i] != T(-1))
            Argument{op, "target"}.value_error("expected -1 or 1, got " + std::string(py::str(py::float_(target[i]))));
}

template <class T>
py::tuple pointwise_loss(const Pointwise& loss, const py::array& prediction_array, py::handle target_given,
                         py::handle weights_given, Reduction reduction) {
    const char* op = loss.op;
    const Extents extents = extents_of(prediction_array),
                  leading = leading_extents(prediction_array, 1, {op, "prediction"});
    const int64_t rows = element_count(leading), columns = extents.back(), elements = element_count(extents);
    const Input<T> target = input_of_extents<T>(target_given, extents, {op, "target"});
    if (loss.kind == Loss::hinge) check_signs(target.data, elements, op);
    const Input<T> weights = read_weights<T>(weights_given, leading, op);
    const py::array prediction = to_contiguous(prediction_array);
    const Output<T> grad({elements}), each({reduction == Reduction::none ? elements : 0});
    double sum = 0, divisor = 1;
    {
        const Unlocked unlocked;
        if (reduction == Reduction::mean)
            divisor = static_cast<double>(columns) *
                      (weights.data ? total_weight(rows, weights.data, [](int64_t) { return true; })
                                    : static_cast<double>(rows));
        kernels<T>().pointwise_loss({loss.kind, loss.delta, rows, columns, divisor,
                                     static_cast<const T*>(prediction.data()), target.data, weights.data,
                                     reduction == Reduction::none ? each.data : nullptr, grad.data, &sum});
    }
    const py::array grad_prediction = reshaped(grad.array, extents);
    if (reduction == Reduction::none) return py::make_tuple(reshaped(each.array, extents), grad_prediction);
    return py::make_tuple(sum / divisor, grad_prediction);
}

py::tuple read_pointwise_loss(const Pointwise& loss, py::handle prediction, py::handle target, py::handle weights,
                              py::handle reduction) {
    const Argument argument{loss.op, "prediction"};
    const py::array array = to_array(prediction, argument);
    const DType dtype = float_dtype(array, argument);
    const Reduction wanted = read_reduction(reduction, loss.op);
    return with_dtype(dtype,
                      [&](auto zero) { return pointwise_loss<decltype(zero)>(loss, array, target, weights, wanted); });
}

}  // namespace

void register_losses(py::module_& module) {
    module.def("softmax_cross_entropy", [](py::handle logits, py::handle targets_given, py::handle weights,
                                           py::handle ignore_index, py::handle reduction) {
        const char* op = "softmax_cross_entropy";
        const Argument argument{op, "targets"};
        const py::array logits_array = to_array(logits, {op, "logits"});
        const DType dtype = float_dtype(logits_array, {op, "logits"});
        const Extents leading = leading_extents(logits_array, 1, {op, "logits"});
        const int64_t classes = logits_array.shape(logits_array.ndim() - 1);
        if (classes < 1)
            Argument{op, "logits"}.value_error("expected at least 1 class, got shape " + format_shape(logits_array));
        const Ids targets = read_ids(targets_given, argument);
        check_extents(targets.extents, leading, argument);
        const int64_t ignored = read_integer(ignore_index, std::numeric_limits<int64_t>::min(), {op, "ignore_index"});
        const Reduction wanted = read_reduction(reduction, op);
        check_ids(targets, classes, &ignored, argument);
        return with_dtype(dtype, [&](auto zero) {
            return softmax_cross_entropy<decltype(zero)>(logits_array, targets, weights, ignored, wanted);
        });
    });
    const auto define = [&module](const char* name, Loss kind) {
        module.def(name,
                   [name, kind](py::handle prediction, py::handle target, py::handle weights, py::handle reduction) {
                       return read_pointwise_loss({name, kind, 0}, prediction, target, weights, reduction);
                   });
    };
    define("mse_loss", Loss::squared);
    define("l1_loss", Loss::absolute);
    define("hinge_loss", Loss::hinge);
    module.def("huber_loss", [](py::handle prediction, py::handle target, py::handle delta, py::handle weights,
                                py::handle reduction) {
        const char* op = "huber_loss";
        return read_pointwise_loss({op, Loss::huber, read_number(delta, positive, {op, "delta"})}, prediction, target,
                                   weights, reduction);
    });
}

}  // namespace tbptt::python
