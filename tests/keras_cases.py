"""What the tests of the Keras layers share: pairs of layers, and gradients on every backend.

A process has one backend of Keras, that of KERAS_BACKEND, or what `tests/conftest.py` sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import tbptt_fast.keras as ours  # noqa: E402

BACKEND = keras.backend.backend()
RECURRENT = ("SimpleRNN", "GRU", "LSTM")
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)

if BACKEND == "torch":
    # Keras multiplies matrices of float64 in float32 here, which is no oracle for them.
    import torch

    def matmul(x1: Any, x2: Any) -> Any:
        return torch.matmul(*map(keras.ops.convert_to_tensor, (x1, x2)))

    keras.src.backend.numpy.matmul = matmul


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

    variables = layer.trainable_variables
    return [*_BACKENDS[BACKEND](variables, call, inputs, weighted)]


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
