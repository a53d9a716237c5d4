"""What the tests of the Keras layers share: pairs of layers, and gradients on every backend.

A process has one backend of Keras, that of KERAS_BACKEND, or what `tests/conftest.py` sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import tbptt_fast.keras as ours  # noqa: E402
from tbptt_fast.keras._backend import adapter  # noqa: E402
from tbptt_fast.keras._layer import NativeLayer  # noqa: E402

__all__ = ["adapter", "keras", "ours"]  # for the tests that go with them

BACKEND = keras.backend.backend()
RECURRENT = ("SimpleRNN", "GRU", "LSTM")
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)

if BACKEND == "torch":
    import torch


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays(result: Any) -> list[Any]:
    """The tensors in nested tuples and lists as arrays."""
    return [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(result)]


def close(given: Sequence[Any], expected: Sequence[Any], tolerance: float | None = None) -> None:
    """All arrays are equal, up to a part of the greatest element."""
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        allowed = tolerance or TOLERANCE[str(b.dtype)]
        assert np.abs(a - b).max(initial=0) <= allowed * max(1.0, np.abs(b).max(initial=0))


def pair(kind: str, shape: Sequence[int | None], *given: Any, **options: Any) -> tuple[Any, Any]:
    """Keras's layer and ours with the same weights, none of which is zero; ours may have more."""
    mine_alone = {name: options.pop(name) for name in ("truncation",) if name in options}
    theirs = getattr(keras.layers, kind)(*given, **options)
    mine = getattr(ours, kind)(*given, **options, **mine_alone)
    rng = np.random.default_rng(3)
    for layer in (theirs, mine):
        layer.build(tuple(shape))
    values = [0.5 * rng.normal(size=tuple(w.shape)) for w in theirs.weights]
    for layer in (theirs, mine):
        for weight, value in zip(layer.trainable_variables, values, strict=False):
            weight.assign(value.astype(weight.dtype))
    return theirs, mine


def results_and_gradients(layer: Any, call: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
    """Outputs of a call of tensors, and gradients by these and by the layer's weights.

    The gradients by the outputs are random and the same every time.
    """

    def weighted(result: Sequence[Any]) -> Any:
        total = 0.0
        for i, tensor in enumerate(result, 1):
            factors = keras.ops.convert_to_tensor(random(*tensor.shape, seed=i), tensor.dtype)
            total = total + keras.ops.sum(tensor * factors)
        return total

    with nullcontext() if isinstance(layer, NativeLayer) else as_oracle():
        return _BACKENDS[BACKEND](layer.trainable_variables, call, inputs, weighted)


@contextmanager
def as_oracle() -> Iterator[None]:
    """Keras's layers in float64 throughout, and not compiled where that takes longer than to run.

    Keras on torch and JAX takes the products of float64 for float32, other than on TensorFlow.
    """
    types = keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE
    before, types["float64"] = types["float64"], "float64"
    with jax.disable_jit() if BACKEND == "jax" else nullcontext():
        yield
    types["float64"] = before


def _on_torch(variables: Any, call: Any, inputs: Any, weighted: Any) -> list[Any]:
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in inputs]
    result = keras.tree.flatten(call(*tensors))
    by = [*tensors, *(v.value for v in variables)]
    grads = torch.autograd.grad(weighted(result), by)
    return arrays([r.detach() for r in result]) + arrays(list(grads))


def _on_tensorflow(variables: Any, call: Any, inputs: Any, weighted: Any) -> list[Any]:
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(array) for array in inputs]
    values = [v.value for v in variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        result = keras.tree.flatten(call(*tensors))
        loss = weighted(result)
    grads = tape.gradient(loss, [*tensors, *values])
    return arrays(result) + arrays(list(grads))


def _on_jax(variables: Any, call: Any, inputs: Any, weighted: Any) -> list[Any]:
    def loss(tensors: Any, values: Any) -> Any:
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            result = keras.tree.flatten(call(*tensors))
        return weighted(result), result

    tensors = [jax.numpy.asarray(array) for array in inputs]
    values = [v.value for v in variables]
    (_, result), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(tensors, values)
    return arrays(result) + arrays(grads)


_BACKENDS = {"torch": _on_torch, "tensorflow": _on_tensorflow, "jax": _on_jax}
