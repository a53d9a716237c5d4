// The native module: every family registers itself.
#include "check.h"

PYBIND11_MODULE(_native, module, pybind11::mod_gil_not_used()) {
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
}
