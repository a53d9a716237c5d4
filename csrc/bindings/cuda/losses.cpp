// The losses on a device. What only the values tell, a target that is no class, shows there as a NaN.
#include "../../cuda/api.h"
#include "../loss_arguments.h"
#include "arrays.h"

namespace tbptt::python {

namespace {

// Where a loss goes: one value for all, or each in its place.
template <class T>
struct Losses {
    Losses(const DeviceCall& c, Reduction reduction, const Extents& shape)
        : mean(reduction == Reduction::mean), unused(reduction == Reduction::none ? 1 : 0, c.place.stream) {
        if (reduction == Reduction::none)
            each = c.arrays.make<T>(shape);
        else
            sum = c.arrays.make_other<double>(Extents{});
    }
    cuda::Total total() const { return {mean, sum.data ? sum.data : unused}; }
    py::object array() const { return sum.data ? sum.array : each.array; }

    bool mean;
    Made<T> each;
    Made<double> sum;
    cuda::Scratch<double> unused;
};

template <class T>
Input<T> read_weights(const DeviceCall& c, py::handle given, const RowShape& shape, const char* op) {
    if (given.is_none()) return {};
    return c.arrays.input<T>(given, shape.leading, {op, "weights"});
}

py::tuple softmax_cross_entropy(py::handle place, py::handle logits_given, py::handle targets_given,
                                py::handle weights_given, py::handle ignore_index, py::handle reduction) {
    const char* op = "softmax_cross_entropy";
    const DeviceCall c(place, logits_given, {op, "logits"});
    const RowShape shape = read_classes(shape_of(c.first), op);
    const DeviceIds targets(c.arrays, targets_given, {op, "targets"}, c.place.stream);
    check_extents(targets.extents(), shape.leading, {op, "targets"});
    const int64_t ignored = read_ignore_index(ignore_index, op);
    const Reduction wanted = read_reduction(reduction, op);
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> weights = read_weights<T>(c, weights_given, shape, op);
        const Input<T> logits = c.arrays.input<T>(c.first, shape_of(shape.extents), {op, "logits"});
        const Made<T> grad = c.arrays.make<T>(shape.extents);
        const Losses<T> losses(c, wanted, shape.leading);
        {
            const Unlocked unlocked;
            cuda::softmax_cross_entropy<T>(
                {shape.rows, shape.columns, ignored, 1, logits.data, targets.data(), weights.data, nullptr, grad.data},
                losses.each.data, losses.total(), c.call());
        }
        return py::make_tuple(losses.array(), grad.array);
    });
}

py::tuple pointwise_loss(const Pointwise& loss, py::handle place, py::handle prediction_given, py::handle target_given,
                         py::handle weights_given, py::handle reduction) {
    const char* op = loss.op;
    const DeviceCall c(place, prediction_given, {op, "prediction"});
    const Reduction wanted = read_reduction(reduction, op);
    const RowShape shape = read_rows(shape_of(c.first), {op, "prediction"});
    return with_dtype(c.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Input<T> target = c.arrays.input<T>(target_given, shape.extents, {op, "target"});
        const Input<T> weights = read_weights<T>(c, weights_given, shape, op);
        const Input<T> prediction = c.arrays.input<T>(c.first, shape_of(shape.extents), {op, "prediction"});
        const Made<T> grad = c.arrays.make<T>(shape.extents);
        const Losses<T> losses(c, wanted, shape.extents);
        {
            const Unlocked unlocked;
            cuda::pointwise_loss<T>({loss.kind, loss.delta, shape.rows, shape.columns, 1, prediction.data, target.data,
                                     weights.data, losses.each.data, grad.data, nullptr},
                                    losses.total(), c.call());
        }
        return py::make_tuple(losses.array(), grad.array);
    });
}

}  // namespace

void register_cuda_losses(py::module_& module) {
    module.def("softmax_cross_entropy", &softmax_cross_entropy);
    for (const Pointwise& loss : plain_losses)
        module.def(loss.op, [loss](py::handle place, py::handle prediction, py::handle target, py::handle weights,
                                   py::handle reduction) {
            return pointwise_loss(loss, place, prediction, target, weights, reduction);
        });
    module.def("huber_loss", [](py::handle place, py::handle prediction, py::handle target, py::handle delta,
                                py::handle weights, py::handle reduction) {
        return pointwise_loss(read_huber(delta), place, prediction, target, weights, reduction);
    });
}

}  // namespace tbptt::python
