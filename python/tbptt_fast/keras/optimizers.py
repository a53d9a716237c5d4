"""Optimizers for Keras: clipping and the update of all variables in one fused native step.

    model.compile(optimizer=Adam(1e-3, global_clipnorm=1.0), loss="mse")

`ClippedSGD` and `Adam` are keras.optimizers.SGD and Adam with their arguments, formulas, variables
and configurations: rates are floats or schedules; callbacks, saved models, gradient accumulation,
moving averages and loss scaling are Keras's own. Where Keras runs one operation after another for
each variable, a single call clips and updates them all, in place on the torch backend.

`non_finite` says what follows a gradient that is not finite: "raise" (FloatingPointError, on
TensorFlow inside the error of a failing operation), or "skip", which leaves variables and states
as they are; the iteration is counted all the same. None is "raise", but "skip" on JAX, where a
compiled step cannot raise.

Variables are on the CPU, all float32 or all float64. On TensorFlow a step is a `tf.numpy_function`:
it runs eagerly and in a `tf.function`, but not under XLA (`jit_compile=True`, which Keras's "auto"
means on machines with a GPU), nor under a `tf.distribute` strategy; both raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from .. import _native
from .._types import Array

NonFinite: TypeAlias = Literal["raise", "skip"]

_register = keras.saving.register_keras_serializable("tbptt_fast")
_NORM_EPS = 1e-6  # which the native steps add to a norm that they divide by, and Keras does not
_ALIGNMENT = 64  # of arrays that TensorFlow takes as they are


class _Fused:
    """What the optimizers share: Keras's hooks around one native step."""

    non_finite: NonFinite | None

    # What differs between the optimizers.

    def _slots(self) -> list[Sequence[Any]]:
        """The optimizer's own variables in Keras's order, list by list."""
        raise NotImplementedError

    def _fuses_weight_decay(self) -> bool:
        """Whether the native step makes the decay that Keras means."""
        raise NotImplementedError

    _native_step: Callable[..., None]
    """The native call on params, grads and own arrays, in place; `count` is 1 at first."""

    _jax_step: Callable[..., list[Sequence[Any]]]
    """The same on JAX's arrays, which stay as they are; the new params and own arrays."""

    # Keras's hooks.

    def _set_up(self: Any, non_finite: NonFinite | None) -> None:
        on_jax = keras.backend.backend() == "jax"
        if non_finite not in ((None, "skip") if on_jax else (None, "raise", "skip")):
            expected = "'skip' on JAX" if on_jax else "'raise' or 'skip'"
            raise ValueError(
                f"{type(self).__name__}: non_finite: expected {expected}, got {non_finite!r}"
            )
        self.non_finite = non_finite
        # The native op knows the ranges: a step over no arrays.
        empty: list[list[Array]] = [[]] * (2 + self._number_of_slots())
        options = {"max_norm": self.global_clipnorm or None, "clip_value": self.clipvalue or None}
        self._native_step(*empty, lr=0.0, count=1, norm=0.0, **options)

    def build(self: Any, variables: Sequence[Any]) -> None:
        """Make the optimizer's variables.

        Raises:
            TypeError: variables are neither all float32 nor all float64.
            ValueError: TensorFlow distributes them.
        """
        if self.built:
            return
        dtypes = sorted({keras.backend.standardize_dtype(v.dtype) for v in variables})
        if dtypes not in (["float32"], ["float64"]):
            raise TypeError(
                f"{type(self).__name__}: expected variables all float32 or all float64, "
                f"got {', '.join(dtypes)}"
            )
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if tf.distribute.has_strategy():
                raise ValueError(
                    f"{type(self).__name__}: expected no tf.distribute strategy, got "
                    f"{type(tf.distribute.get_strategy()).__name__}"
                )
        super().build(variables)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """Keras's configuration and `non_finite`."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return config | {"non_finite": self.non_finite}

    def _clip_gradients(self: Any, grads: Any) -> Any:
        """Each gradient by its own norm is Keras's to clip; the rest is the native step's."""
        return super()._clip_gradients(grads) if self.clipnorm else grads  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if not self._decays():
            super()._apply_weight_decay(variables)  # type: ignore[misc]

    def _decays(self: Any) -> bool:
        """Whether decay is the native step's: it has one for all variables."""
        excluded = getattr(self, "_exclude_from_weight_decay", None)
        pattern = getattr(self, "_exclude_from_weight_decay_pattern", None)
        return not excluded and pattern is None and self._fuses_weight_decay()

    def _native_decay(self: Any) -> float:
        return float(self.weight_decay or 0.0) if self._decays() else 0.0

    def _backend_update_step(
        self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        indices = [self._get_variable_index(v) for v in trainable_variables]
        states = [[slot[index] for index in indices] for slot in self._slots()]
        variables = [list(trainable_variables), *states]
        _UPDATES[keras.backend.backend()](self, variables, list(grads), learning_rate)

    # Where arrays are NumPy's.

    def _step(self: Any, lists: list[list[Array]], names: list[str], lr: float, count: int) -> None:
        """Clip and update params [0] and own arrays [2:] in place by the gradients [1].

        Raises:
            FloatingPointError: a gradient is not finite, and `non_finite` is "raise".
        """
        clip_value, limit = self.clipvalue or None, self.global_clipnorm or None
        norm = _native.global_norm(lists[1], clip_value)
        if math.isnan(norm):
            if self.non_finite == "skip":
                return
            found = next(
                n for n, g in zip(names, lists[1], strict=True) if not np.isfinite(g).all()
            )
            raise FloatingPointError(
                f"{type(self).__name__}: gradient of {found}: non-finite gradient"
            )
        if limit is not None:
            limit = limit * (norm + _NORM_EPS) / norm if norm > limit else None
        self._native_step(
            *lists, lr=lr, count=count, max_norm=limit, clip_value=clip_value, norm=norm
        )


@_register
class ClippedSGD(_Fused, keras.optimizers.SGD):
    """Gradient descent with momentum and Nesterov's look-ahead, clipped by the global norm.

    v = momentum·v - lr·g; w += v, or with nesterov w += momentum·v - lr·g: what
    keras.optimizers.SGD computes, whose arguments these are, and `non_finite`, see
    `tbptt_fast.keras.optimizers`. Only the default of global_clipnorm differs: 1, and None for no
    clipping. weight_decay takes lr·weight_decay·w from w before the step; with momentum that is a
    pass of its own.

    Raises:
        ValueError, TypeError: an argument is out of range, by Keras or by the native step.

    Source: keras.optimizers.SGD; Sutskever et al. (2013), "On the importance of initialization and
    momentum in deep learning"; Pascanu et al. (2013), "On the difficulty of training recurrent
    neural networks".

    >>> w = keras.Variable([1.0, 1.0])
    >>> ClippedSGD(0.5).apply([keras.ops.array([3.0, 4.0])], [w])
    >>> keras.ops.convert_to_numpy(w).astype("float64").round(3).tolist()
    [0.7, 0.6]
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        global_clipnorm: float | None = 1.0,
        non_finite: NonFinite | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            learning_rate, momentum, nesterov, global_clipnorm=global_clipnorm, **options
        )
        self._set_up(non_finite)

    def _number_of_slots(self) -> int:
        return 1 if self.momentum else 0

    def _slots(self) -> list[Sequence[Any]]:
        return [self.momentums] if self.momentum else []

    def _fuses_weight_decay(self) -> bool:
        return not self.momentum  # where it would join the velocity

    def _native_step(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array] | None = None,
        *,
        lr: float,
        count: int,
        max_norm: float | None,
        clip_value: float | None,
        norm: float,
    ) -> None:
        _native.sgd_step(
            params,
            grads,
            velocities,
            lr,
            self.momentum,
            0.0,
            self.nesterov and self.momentum > 0,
            True,
            self._native_decay(),
            False,
            max_norm,
            clip_value,
            "raise",
            norm,
        )

    def _jax_step(self, *lists: Sequence[Any], lr: Any, count: Any) -> list[Sequence[Any]]:
        from ..jax import optim

        found = optim.sgd_step(
            lists[0],
            lists[1],
            lists[2] if self.momentum else None,
            lr,
            mu=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            velocity=True,
            weight_decay=self._native_decay(),
            max_norm=self.global_clipnorm or None,
            clip_value=self.clipvalue or None,
            norm_eps=0.0,
        )
        return [found.params, found.momentum or []]


@_register
class Adam(_Fused, keras.optimizers.Adam):
    """Adam and AMSGrad with decoupled weight decay, clipped by the global norm.

    m = beta_1·m + (1 - beta_1)·g; v = beta_2·v + (1 - beta_2)·g²;
    w -= lr·√(1 - beta_2ᵗ) / (1 - beta_1ᵗ) · m / (√v + epsilon): what keras.optimizers.Adam
    computes, whose arguments these are, and `non_finite`, see `tbptt_fast.keras.optimizers`.
    weight_decay takes lr·weight_decay·w from w before the step, as in AdamW.

    Raises:
        ValueError, TypeError: an argument is out of range, by Keras or by the native step.

    Source: keras.optimizers.Adam; Kingma & Ba (2015), arXiv:1412.6980, the formula before section
    2.1; Loshchilov & Hutter (2019), arXiv:1711.05101; Reddi et al. (2018), "On the convergence of
    Adam and beyond".

    >>> w = keras.Variable([1.0, 1.0])
    >>> Adam(0.1).apply([keras.ops.array([0.3, -0.4])], [w])
    >>> keras.ops.convert_to_numpy(w).astype("float64").round(3).tolist()
    [0.9, 1.1]
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        *,
        non_finite: NonFinite | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, **options)
        self._set_up(non_finite)

    def _number_of_slots(self) -> int:
        return 3 if self.amsgrad else 2

    def _slots(self) -> list[Sequence[Any]]:
        slots = [self._momentums, self._velocities]
        return [*slots, self._velocity_hats] if self.amsgrad else slots

    def _fuses_weight_decay(self) -> bool:
        return True

    def _native_step(
        self,
        params: Sequence[Array],
        grads: Sequence[Array],
        momentums: Sequence[Array],
        velocities: Sequence[Array],
        velocity_hats: Sequence[Array] | None = None,
        *,
        lr: float,
        count: int,
        max_norm: float | None,
        clip_value: float | None,
        norm: float,
    ) -> None:
        _native.adam_step(
            params,
            grads,
            momentums,
            velocities,
            velocity_hats,
            count,
            lr,
            self.beta_1,
            self.beta_2,
            # The native step adds it to √(v / (1 - beta_2ᵗ)).
            self.epsilon / math.sqrt(1 - self.beta_2**count),
            self._native_decay(),
            True,
            False,
            max_norm,
            clip_value,
            "raise",
            norm,
        )

    def _jax_step(self, *lists: Sequence[Any], lr: Any, count: Any) -> list[Sequence[Any]]:
        from ..jax import optim

        params, grads, momentums, velocities, *hats = lists
        found = optim.adam_step(
            params,
            grads,
            momentums,
            velocities,
            hats[0] if hats else None,
            count,
            lr,
            beta1=self.beta_1,
            beta2=self.beta_2,
            eps=self.epsilon / (1 - self.beta_2**count) ** 0.5,
            weight_decay=self._native_decay(),
            decoupled=True,
            max_norm=self.global_clipnorm or None,
            clip_value=self.clipvalue or None,
            norm_eps=0.0,
        )
        return [found.params, found.exp_avg, found.exp_avg_sq, found.max_exp_avg_sq or []]


# A step of each backend: variables are lists of params and own arrays, `grads` are tensors.


def _torch_update(optimizer: Any, variables: list[Any], grads: list[Any], rate: Any) -> None:
    import torch

    from ..torch._bridge import to_arrays

    def arrays(own: list[Any]) -> list[Array]:
        tensors = [v.value for v in own]
        for tensor in tensors:
            if not tensor.is_contiguous():  # an initializer's transpose: from now on it is not
                tensor.data = tensor.data.contiguous()
        return to_arrays(*tensors)

    params, *states = [arrays(own) for own in variables]
    given = to_arrays(*(g.to(v.value.dtype) for g, v in zip(grads, variables[0], strict=True)))
    names = [v.path for v in variables[0]]
    lr = float(rate.value if isinstance(rate, keras.Variable) else rate)
    optimizer._step([params, given, *states], names, lr, int(optimizer.iterations) + 1)
    for variable in variables[0]:
        torch.autograd.graph.increment_version(variable.value)


def _tensorflow_update(optimizer: Any, variables: list[Any], grads: list[Any], rate: Any) -> None:
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    name = type(optimizer).__name__
    if not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise ValueError(
            f"{name}: expected a model compiled with jit_compile=False: a native step is no "
            "operation of XLA's"
        )
    count, names = len(grads), [v.path for v in variables[0]]
    flat = [v.value for own in variables for v in own]

    def step(lr: Any, iterations: Any, *arrays: Array) -> list[Array]:
        new = _copies(arrays[count:])
        lists = [new[i : i + count] for i in range(0, len(new), count)]
        lists.insert(1, list(arrays[:count]))
        optimizer._step(lists, names, float(lr), int(iterations) + 1)
        return new

    given = [tf.cast(tf.convert_to_tensor(g), v.dtype) for g, v in zip(grads, flat, strict=False)]
    results = tf.numpy_function(
        step, [rate, optimizer.iterations, *given, *flat], [v.dtype for v in flat]
    )
    for variable, result in zip(flat, tf.nest.flatten(results), strict=True):
        result.set_shape(variable.shape)
        variable.assign(result)


def _copies(arrays: Sequence[Array]) -> list[Array]:
    """Copies of arrays of one dtype, in one piece of memory, each where TensorFlow will take it."""
    size, dtype = arrays[0].itemsize, arrays[0].dtype
    ends = np.cumsum([-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays])
    memory = np.empty(int(ends[-1]) + _ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % _ALIGNMENT :][: int(ends[-1])].view(dtype)
    copies = []
    for array, begin in zip(arrays, [0, *ends[:-1]], strict=True):
        copy = memory[begin // size :][: array.size].reshape(array.shape)
        np.copyto(copy, array)
        copies.append(copy)
    return copies


def _jax_update(optimizer: Any, variables: list[Any], grads: list[Any], rate: Any) -> None:
    dtype = variables[0][0].dtype
    values = [[v.value for v in own] for own in variables]
    given = [keras.ops.cast(g, dtype) for g in grads]
    results = optimizer._jax_step(
        values[0],
        given,
        *values[1:],
        lr=keras.ops.cast(rate, dtype),
        count=keras.ops.cast(optimizer.iterations + 1, dtype),
    )
    for own, new in zip(variables, results, strict=False):
        for variable, value in zip(own, new, strict=True):
            variable.assign(value)


_UPDATES: dict[str, Callable[[Any, list[Any], list[Any], Any], None]] = {
    "torch": _torch_update,
    "tensorflow": _tensorflow_update,
    "jax": _jax_update,
}
