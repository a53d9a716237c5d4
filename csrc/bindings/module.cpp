// The native module: every family registers itself.
#include "check.h"

namespace {

// NumPy has one interpreter per process, and so has what pybind11 keeps: another one would wait for a lock that it holds.
bool refuse_sub_interpreter() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return false;
    PyErr_SetString(PyExc_ImportError, "tbptt_fast: expected the main interpreter, got a sub-interpreter");
    return true;
}

}  // namespace

PYBIND11_MODULE(_native_checked, module, pybind11::mod_gil_not_used()) {
    if (refuse_sub_interpreter()) throw pybind11::error_already_set();  // 3.13 calls PyInit in the main interpreter
    tbptt::python::register_runtime(module);
    tbptt::python::register_recurrent(module);
    tbptt::python::register_convrecurrent(module);
    tbptt::python::register_layers(module);
    tbptt::python::register_convolution(module);
    tbptt::python::register_embedding(module);
    tbptt::python::register_losses(module);
    tbptt::python::register_optimizers(module);
    tbptt::python::register_normalization(module);
    tbptt::python::register_pooling(module);
    tbptt::python::register_exchange(module);
#ifdef TBPTT_FAST_JAX
    tbptt::python::register_jax(module);
#endif
}

extern "C" PYBIND11_EXPORT PyObject* PyInit__native() {
    return refuse_sub_interpreter() ? nullptr : PyInit__native_checked();
}
