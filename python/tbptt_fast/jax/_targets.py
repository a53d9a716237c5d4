"""The native functions that XLA calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from .. import _native
from ..cuda import _module

PREFIX = "tbptt_fast_"
_EXACT = ("highest", "float32")
_AVAILABLE = hasattr(_native, "jax_targets")

if _AVAILABLE:
    for _name, _function in _native.jax_targets().items():
        jax.ffi.register_ffi_target(_name, _function, platform="cpu")


def available() -> bool:
    """Whether the native module was built with its functions for JAX."""
    return _AVAILABLE


@cache
def register_cuda() -> None:
    """Make the functions for GPUs known to XLA.

    Raises:
        RuntimeError: there are none, or they cannot run here.
    """
    module = _module.native()
    if not hasattr(module, "jax_targets"):
        raise RuntimeError(
            "tbptt_fast.jax: the CUDA kernels were built without their functions for JAX: "
            "-C cmake.define.TBPTT_FAST_JAX=ON"
        )
    for name, function in module.jax_targets().items():
        jax.ffi.register_ffi_target(name, function, platform="CUDA")


def check_available(op: str, instead: str = "") -> None:
    """
    Raises:
        RuntimeError: the native module was built without them.
    """
    if not _AVAILABLE:
        raise RuntimeError(
            f"{op}: tbptt_fast was built without its functions for JAX: install it with "
            f"pip install -C cmake.define.TBPTT_FAST_JAX=ON{instead}"
        )


def call(
    name: str,
    arrays: Sequence[Any],
    results: Sequence[tuple[int, ...]],
    aliases: dict[int, int] | None = None,
    **options: Any,
) -> list[Any]:
    """A native function of arrays of one dtype; None stands for a missing one.

    `aliases`: which input each result may take the memory of.
    """
    dtype = next(a.dtype for a in arrays if a is not None)
    nothing = jnp.zeros((0,), dtype)
    found = jax.ffi.ffi_call(
        PREFIX + name,
        [jax.ShapeDtypeStruct(shape, dtype) for shape in results],
        input_output_aliases=aliases,
    )(
        *(nothing if a is None else a for a in arrays),
        exact=jax.config.jax_default_matmul_precision in _EXACT,  # else TF32, on GPUs alone
        **{key: _option(value) for key, value in options.items()},
    )
    return list(found)


def _option(value: Any) -> Any:
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    if isinstance(value, float):
        return np.float64(value)
    return np.int64(value) if isinstance(value, int) and not isinstance(value, bool) else value
