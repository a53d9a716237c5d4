// The library's functions that XLA calls, and what Python asks when it traces such a call.
#include "../convolution_options.h"
#include "convolution.h"
#include "convrecurrent.h"
#include "host.h"
#include "optimizers.h"
#include "recurrent.h"

namespace tbptt::python {

namespace {

constexpr jax::Target targets[] = {
    {"tbptt_fast_recurrent_forward", &jax::handle<jax::RecurrentForwardOp<jax::Host>>},
    {"tbptt_fast_recurrent_backward", &jax::handle<jax::RecurrentBackwardOp<jax::Host>>},
    {"tbptt_fast_convrecurrent_forward", &jax::handle<jax::ConvRecurrentForwardOp<jax::Host>>},
    {"tbptt_fast_convrecurrent_backward", &jax::handle<jax::ConvRecurrentBackwardOp<jax::Host>>},
    {"tbptt_fast_convolution_forward", &jax::handle<jax::ConvolutionForwardOp<jax::Host>>},
    {"tbptt_fast_convolution_backward", &jax::handle<jax::ConvolutionBackwardOp<jax::Host>>},
    {"tbptt_fast_sgd_step", &jax::handle<jax::SgdOp>},
    {"tbptt_fast_adam_step", &jax::handle<jax::AdamOp>},
};

Extents read_extents(const py::tuple& given) {
    Extents result;
    for (const py::handle extent : given) result.push_back(extent.cast<Extent>());
    return result;
}

template <class Numbers>
py::tuple as_tuple(const Numbers& numbers) {
    py::tuple result(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) result[i] = py::int_(numbers[i]);
    return result;
}

}  // namespace

void register_jax(py::module_& module) {
    module.def("jax_targets", [] { return jax::as_capsules(targets); });
    module.def("jax_convolution", [](const std::string& op, int rank, const py::tuple& x_given,
                                     const py::tuple& w_given, py::handle stride, py::handle padding,
                                     py::handle dilation, py::handle groups, py::handle layout, py::handle activation) {
        const ConvolutionOp which{op.c_str(), rank, false};
        const Extents x = read_extents(x_given), w = read_extents(w_given);
        const Convolution found =
            read_convolution(which, shape_of(x), shape_of(w), {stride, padding, {}, dilation, groups, layout, {}});
        return py::make_tuple(as_tuple(jax::numbers_of(found.shape)), as_tuple(found.y),
                              static_cast<int64_t>(read_activation(activation, op.c_str())));
    });
    module.def("jax_convrecurrent", [](const std::string& op, py::handle cell_name, const py::tuple& x_given,
                                       const py::tuple& w_ih_given, const py::tuple& w_hh_given, py::handle dilation,
                                       py::handle layout, py::handle algo, py::handle recompute) {
        const Cell cell = read_cell(cell_name, {op.c_str(), "cell"});
        const Extents x = read_extents(x_given), w_ih = read_extents(w_ih_given), w_hh = read_extents(w_hh_given);
        const ConvRecurrentShape s =
            read_conv_shape(cell, shape_of(x), shape_of(w_ih), shape_of(w_hh), {dilation, layout, algo}, op.c_str());
        const jax::ConvRecurrentSizes sizes(s, false, read_bool(recompute, {op.c_str(), "recompute"}));
        const ConvExtents extents(s);
        return py::make_tuple(as_tuple(jax::numbers_of(s)), as_tuple(extents.out()), as_tuple(extents.state()),
                              sizes.maps + sizes.beside);
    });
}

}  // namespace tbptt::python
