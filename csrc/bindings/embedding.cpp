// The embedding.
#include "../dispatch.h"
#include "arguments.h"

namespace tbptt::python {

namespace {

template <class T>
py::array embedding(const Ids& ids, const py::array& w_array) {
    const int64_t width = w_array.shape(1);
    const Input<T> w = input<T>(w_array, {w_array.shape(0), width}, {"embedding", "w"});
    const Output<T> y({ids.count, width});
    {
        const Unlocked unlocked;
        kernels<T>().embedding_forward({ids.count, width, ids.data, w.data, y.data});
    }
    return reshaped(y.array, with_last(ids.extents, width));
}

template <class T>
py::array embedding_backward(const py::array& grad_array, const Ids& ids, int64_t embeddings) {
    const int64_t width = grad_array.shape(grad_array.ndim() - 1);
    const py::array contiguous = to_contiguous(grad_array);
    const Output<T> grad_w({embeddings, width});
    {
        const Unlocked unlocked;
        kernels<T>().embedding_backward(
            {ids.count, embeddings, width, ids.data, static_cast<const T*>(contiguous.data()), grad_w.data});
    }
    return grad_w.array;
}

}  // namespace

void register_embedding(py::module_& module) {
    module.def("embedding", [](py::handle ids_given, py::handle w) {
        const char* op = "embedding";
        const py::array w_array = to_array(w, {op, "w"});
        const DType dtype = float_dtype(w_array, {op, "w"});
        check_rank(w_array, 2, {op, "w"});
        const Ids ids = read_ids(ids_given, {op, "ids"});
        check_ids(ids, w_array.shape(0), nullptr, {op, "ids"});
        return with_dtype(dtype, [&](auto zero) { return embedding<decltype(zero)>(ids, w_array); });
    });
    module.def("embedding_backward", [](py::handle grad_out, py::handle ids_given, py::handle num_embeddings) {
        const char* op = "embedding_backward";
        const py::array grad_array = to_array(grad_out, {op, "grad_out"});
        const DType dtype = float_dtype(grad_array, {op, "grad_out"});
        const int64_t embeddings = read_integer(num_embeddings, 0, {op, "num_embeddings"});
        const Ids ids = read_ids(ids_given, {op, "ids"});
        check_extents(ids.extents, leading_extents(grad_array, 1, {op, "grad_out"}), {op, "ids"});
        check_ids(ids, embeddings, nullptr, {op, "ids"});
        return with_dtype(dtype,
                          [&](auto zero) { return embedding_backward<decltype(zero)>(grad_array, ids, embeddings); });
    });
}

}  // namespace tbptt::python
