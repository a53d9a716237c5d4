"""JAX on these kernels: recurrent layers and convolutions as pure functions of arrays.

    from tbptt_fast.jax import lstm

They work under `jit`, `grad`, `vmap`, `lax.scan` and `shard_map`, in float32 and float64, on the
CPU and on a GPU where `tbptt_fast.cuda` runs (there float32 is computed in TF32 unless
`jax.default_matmul_precision` is "highest" or "float32", as JAX's own products are). XLA calls the
kernels itself, through its foreign function interface: nothing is copied, and no Python runs. The
native module must have been built for it (`-C cmake.define.TBPTT_FAST_JAX=ON`);
`available()` tells, and `backend="scan"` computes the recurrent layers without it. Threads are
those of `tbptt_fast.set_num_threads`.
"""

try:
    import jax as _jax
except ImportError as error:
    raise ImportError(
        "tbptt_fast.jax needs JAX 0.6.1 or later: pip install 'tbptt_fast[jax]'"
    ) from error
if _jax.__version_info__ < (0, 6, 1):
    raise ImportError(f"tbptt_fast.jax needs JAX 0.6.1 or later, got {_jax.__version__}")

from . import optim
from ._targets import available
from .convolution import conv1d, conv2d
from .convrecurrent import convgru, convlstm, convrnn
from .recurrent import gru, lstm, rnn

__all__ = [
    "available",
    "conv1d",
    "conv2d",
    "convgru",
    "convlstm",
    "convrnn",
    "gru",
    "lstm",
    "optim",
    "rnn",
]
