// The losses.
#include "../dispatch.h"
#include "loss_arguments.h"

namespace tbptt::python {

namespace {

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
py::tuple softmax_cross_entropy(const RowShape& shape, const py::array& logits_array, const Ids& targets,
                                py::handle weights_given, int64_t ignore_index, Reduction reduction) {
    const char* op = "softmax_cross_entropy";
    const int64_t rows = shape.rows, classes = shape.columns;
    const Input<T> weights = read_weights<T>(weights_given, shape.leading, op);
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
    const py::array grad_logits = reshaped(grad.array, shape.extents);
    if (reduction == Reduction::none) return py::make_tuple(reshaped(each.array, shape.leading), grad_logits);
    return py::make_tuple(sum / divisor, grad_logits);
}

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
    const auto [extents, leading, rows, columns] = read_rows(shape_of(prediction_array), {op, "prediction"});
    const int64_t elements = element_count(extents);
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
        const RowShape shape = read_classes(shape_of(logits_array), op);
        const Ids targets = read_ids(targets_given, argument);
        check_extents(targets.extents, shape.leading, argument);
        const int64_t ignored = read_ignore_index(ignore_index, op);
        const Reduction wanted = read_reduction(reduction, op);
        check_ids(targets, shape.columns, &ignored, argument);
        return with_dtype(dtype, [&](auto zero) {
            return softmax_cross_entropy<decltype(zero)>(shape, logits_array, targets, weights, ignored, wanted);
        });
    });
    for (const Pointwise& loss : plain_losses)
        module.def(loss.op, [loss](py::handle prediction, py::handle target, py::handle weights, py::handle reduction) {
            return read_pointwise_loss(loss, prediction, target, weights, reduction);
        });
    module.def("huber_loss", [](py::handle prediction, py::handle target, py::handle delta, py::handle weights,
                                py::handle reduction) {
        return read_pointwise_loss(read_huber(delta), prediction, target, weights, reduction);
    });
}

}  // namespace tbptt::python
