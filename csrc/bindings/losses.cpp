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
        const py::gil_scoped_release unlocked;
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

template <class T>
py::tuple mse_loss(const py::array& prediction_array, py::handle target_given, py::handle weights_given,
                   Reduction reduction) {
    const char* op = "mse_loss";
    const Extents extents = extents_of(prediction_array),
                  leading = leading_extents(prediction_array, 1, {op, "prediction"});
    const int64_t rows = element_count(leading), columns = extents.back(), elements = element_count(extents);
    const Input<T> target = input_of_extents<T>(target_given, extents, {op, "target"});
    const Input<T> weights = read_weights<T>(weights_given, leading, op);
    const py::array prediction = to_contiguous(prediction_array);
    const Output<T> grad({elements}), each({reduction == Reduction::none ? elements : 0});
    double sum = 0, divisor = 1;
    {
        const py::gil_scoped_release unlocked;
        if (reduction == Reduction::mean)
            divisor = static_cast<double>(columns) *
                      (weights.data ? total_weight(rows, weights.data, [](int64_t) { return true; })
                                    : static_cast<double>(rows));
        kernels<T>().squared_error({rows, columns, divisor, static_cast<const T*>(prediction.data()), target.data,
                                    weights.data, reduction == Reduction::none ? each.data : nullptr, grad.data, &sum});
    }
    const py::array grad_prediction = reshaped(grad.array, extents);
    if (reduction == Reduction::none) return py::make_tuple(reshaped(each.array, extents), grad_prediction);
    return py::make_tuple(sum / divisor, grad_prediction);
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
    module.def("mse_loss", [](py::handle prediction, py::handle target, py::handle weights, py::handle reduction) {
        const char* op = "mse_loss";
        const py::array prediction_array = to_array(prediction, {op, "prediction"});
        const DType dtype = float_dtype(prediction_array, {op, "prediction"});
        const Reduction wanted = read_reduction(reduction, op);
        return with_dtype(
            dtype, [&](auto zero) { return mse_loss<decltype(zero)>(prediction_array, target, weights, wanted); });
    });
}

}  // namespace tbptt::python
