// The CUDA module, and its twin over host memory that tests use.
#include "arrays.h"

PYBIND11_MODULE(TBPTT_CUDA_MODULE, module, pybind11::mod_gil_not_used()) {
    tbptt::python::register_cuda_runtime(module);
    tbptt::python::register_device_array(module);
    tbptt::python::register_cuda_convolution(module);
    tbptt::python::register_cuda_convrecurrent(module);
    tbptt::python::register_cuda_recurrent(module);
    tbptt::python::register_cuda_layers(module);
    tbptt::python::register_cuda_losses(module);
    tbptt::python::register_cuda_normalization(module);
    tbptt::python::register_cuda_optimizers(module);
    tbptt::python::register_cuda_pooling(module);
#ifdef TBPTT_FAST_JAX
    tbptt::python::register_cuda_jax(module);
#endif
#ifdef TBPTT_EMULATED
    tbptt::python::register_emulator(module);
#endif
}
