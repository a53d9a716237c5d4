"""How a layer of native kernels becomes part of JAX.

Three primitives serve all layers; what one of them computes is its parameter, a `Call`.

- `layer_p`: the layer itself. Under `vmap` its leading axis is folded into the batch.
- `tangent_p`: its linear map, which nobody evaluates: it is there to be transposed, by the backward
  pass. So the gradient of a mapped layer is one backward pass over the folded batch, with one
  product for the weights, where a custom_vjp rule would have to make the weights' gradient for
  every example before their sum.
- `gradient_p`: the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import jax
from jax import numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from . import _targets

Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = dict[str, Any]  # arrays, or their shapes, by the names of inputs


class Call(Protocol):
    """One layer with its options; hashable."""

    constants: ClassVar[tuple[str, ...]]  # names of inputs that have no gradients
    weights: ClassVar[tuple[str, ...]]  # names of inputs that belong to all rows of the batch

    @property
    def op(self) -> str:
        """The public function, for messages."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that are given, in the order of arguments."""

    def outputs(self, shapes: Values) -> list[Shape]:
        """The shapes of the results."""

    def saved(self, shapes: Values) -> Shape:
        """The shape of what a forward pass keeps for the backward pass, beside its results."""

    def batch_axis(self, name: str) -> int:
        """The axis of an input that is the batch."""

    def output_batch_axis(self, index: int) -> int:
        """The axis of a result that is the batch."""

    def forward(self, arrays: Values, keep: bool) -> list[Any]:
        """Results and what is kept (an empty array without `keep`), by a native call."""

    def backward(
        self, grads: Sequence[Any], outs: Sequence[Any], saved: Any, arrays: Values, needs: set[str]
    ) -> Values:
        """The needed gradients, by a native call; a gradient that is None is one of zeros."""


def _primitive(name: str) -> Primitive:
    made = Primitive(name)
    made.multiple_results = True
    return made


layer_p = _primitive("tbptt_fast_layer")
tangent_p = _primitive("tbptt_fast_tangent")
gradient_p = _primitive("tbptt_fast_gradient")


def _varying(aval: Any) -> frozenset[Any]:
    """The axes of a mesh along which it varies, within shard_map."""
    kind = getattr(aval, "manual_axis_type", None)  # as JAX has called it since 0.10
    found: frozenset[Any] = getattr(aval, "vma", frozenset()) if kind is None else kind.varying
    return found


def _arrays(shapes: Iterable[Shape], dtype: Any, avals: Sequence[Any]) -> list[ShapedArray]:
    """Results, which vary as inputs do."""
    like = avals[0]
    if not _varying(like):
        return [ShapedArray(shape, dtype) for shape in shapes]

    def like_it(shape: Shape) -> Any:
        spec = PartitionSpec(*(None for _ in shape))
        sharding = NamedSharding(like.sharding.mesh, spec)
        return like.update(shape=shape, dtype=dtype, sharding=sharding)

    return [like_it(shape) for shape in shapes]


def _shapes(call: Call, avals: Sequence[Any]) -> Values:
    return {name: aval.shape for name, aval in zip(call.inputs, avals, strict=True)}


def run_layer(call: Call, arrays: Sequence[Any]) -> list[Any]:
    """The results of a layer for its given inputs."""
    axes = frozenset[Any]().union(*(_varying(jax.typeof(array)) for array in arrays))
    if axes:  # the primitive takes what varies alike; weights that do not get the sum as gradient
        arrays = [_vary(array, axes) for array in arrays]
    results: list[Any] = layer_p.bind(*arrays, call=call, keep=False)[:-1]
    return results


def _vary(array: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(axes - _varying(jax.typeof(array)))
    if not missing:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, missing, to="varying")
    return jax.lax.pvary(array, missing)


# --- the layer


def _layer_shapes(*avals: Any, call: Call, keep: bool) -> list[ShapedArray]:
    shapes = _shapes(call, avals)
    kept = call.saved(shapes) if keep else (0,)
    return _arrays([*call.outputs(shapes), kept], avals[0].dtype, avals)


def _run_forward(*arrays: Any, call: Call, keep: bool) -> list[Any]:
    return call.forward(dict(zip(call.inputs, arrays, strict=True)), keep)


def _differentiate(
    primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, keep: bool
) -> tuple[list[Any], list[Any]]:
    if keep:
        raise NotImplementedError(f"{call.op}: second derivatives are not available")
    *outs, saved = layer_p.bind(*primals, call=call, keep=True)
    by = [
        (name, tangent)
        for name, tangent in zip(call.inputs, tangents, strict=True)
        if name not in call.constants and not isinstance(tangent, ad.Zero)
    ]
    results = [*outs, jnp.zeros((0,), saved.dtype)]  # those of the call without what is kept
    still = [_no_tangent(result) for result in results]
    if not by:
        return results, still
    names, given = zip(*by, strict=True)
    moved = tangent_p.bind(*given, *outs, saved, *primals, call=call, by=names)
    return results, [*moved, still[-1]]


def _no_tangent(array: Any) -> Any:
    return ad.Zero(jax.typeof(array).to_tangent_aval())


def _fold(arrays: Sequence[Any], axes: Sequence[int | None], call: Call) -> list[Any]:
    """The mapped axis becomes the outer part of the batch."""
    size = next(a.shape[d] for a, d in zip(arrays, axes, strict=True) if d is not None)
    folded = []
    for name, array, mapped in zip(call.inputs, arrays, axes, strict=True):
        if name in call.weights:
            folded.append(array)
            continue
        at = call.batch_axis(name)
        if mapped is None:
            array = jnp.broadcast_to(
                jnp.expand_dims(array, at), (*array.shape[:at], size, *array.shape[at:])
            )
        else:
            array = jnp.moveaxis(array, mapped, at)
        shape = array.shape
        folded.append(array.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))
    return folded


def _map_layer(
    arrays: Sequence[Any], axes: Sequence[int | None], *, call: Call, keep: bool
) -> tuple[list[Any], list[int]]:
    shared = all(
        axis is None for name, axis in zip(call.inputs, axes, strict=True) if name in call.weights
    )
    # Of the backward pass a mapped call wants each example's own gradients by the weights.
    if keep or not shared:
        return _one_by_one(functools.partial(layer_p.bind, call=call, keep=keep), arrays, axes)
    size = next(a.shape[d] for a, d in zip(arrays, axes, strict=True) if d is not None)
    *outs, saved = layer_p.bind(*_fold(arrays, axes, call), call=call, keep=False)
    example = {
        name: a.shape if d is None else (*a.shape[:d], *a.shape[d + 1 :])
        for name, a, d in zip(call.inputs, arrays, axes, strict=True)
    }
    unfolded, at = [], [call.output_batch_axis(i) for i in range(len(outs))]
    for out, shape, axis in zip(outs, call.outputs(example), at, strict=True):
        unfolded.append(out.reshape(*shape[:axis], size, *shape[axis:]))
    return [*unfolded, jnp.broadcast_to(saved, (size, 0))], [*at, 0]


def _one_by_one(
    run: Callable[..., list[Any]], arrays: Sequence[Any], axes: Sequence[int | None]
) -> tuple[list[Any], list[int]]:
    moved = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(arrays, axes, strict=True)]

    def one(slices: list[Any]) -> list[Any]:
        left = iter(slices)
        return list(
            run(*(a if d is None else next(left) for a, d in zip(moved, axes, strict=True)))
        )

    results = jax.lax.map(one, [a for a, d in zip(moved, axes, strict=True) if d is not None])
    return results, [0] * len(results)


# --- its linear map


def _tangent_shapes(*avals: Any, call: Call, by: tuple[str, ...]) -> list[ShapedArray]:
    primals = avals[-len(call.inputs) :]
    return _arrays(call.outputs(_shapes(call, primals)), avals[0].dtype, avals)


def _refuse_forward_mode(*_: Any, call: Call, **__: Any) -> Any:
    raise NotImplementedError(
        f"{call.op}: forward-mode derivatives (jvp) are not available; use grad or vjp"
    )


def _transpose(grads: Sequence[Any], *arguments: Any, call: Call, by: tuple[str, ...]) -> list[Any]:
    """The backward pass, for the gradients that are not zero."""
    tangents, rest = arguments[: len(by)], arguments[len(by) :]
    # A tangent that is known is one of zeros, made by a rule that wants arrays: it is no variable.
    asked = [ad.is_undefined_primal(tangent) for tangent in tangents]
    wanted = tuple(name for name, ask in zip(by, asked, strict=True) if ask)
    given = tuple(not isinstance(grad, ad.Zero) for grad in grads)
    found: list[Any] = [None] * len(arguments)
    if any(given):
        entering = [grad for grad, has in zip(grads, given, strict=True) if has]
        results = iter(gradient_p.bind(*entering, *rest, call=call, given=given, by=wanted))
        found[: len(by)] = [next(results) if ask else None for ask in asked]
    else:
        found[: len(by)] = [
            ad.Zero(tangent.aval) if ask else None
            for tangent, ask in zip(tangents, asked, strict=True)
        ]
    return found


def _map_tangent(
    arrays: Sequence[Any], axes: Sequence[int | None], *, call: Call, by: tuple[str, ...]
) -> tuple[list[Any], list[int]]:
    return _one_by_one(functools.partial(tangent_p.bind, call=call, by=by), arrays, axes)


# --- the backward pass


def _gradient_shapes(
    *avals: Any, call: Call, given: tuple[bool, ...], by: tuple[str, ...]
) -> list[ShapedArray]:
    shapes = _shapes(call, avals[-len(call.inputs) :])
    return _arrays([shapes[name] for name in by], avals[0].dtype, avals)


def _run_backward(
    *arrays: Any, call: Call, given: tuple[bool, ...], by: tuple[str, ...]
) -> list[Any]:
    entering, rest = iter(arrays[: sum(given)]), arrays[sum(given) :]
    grads = [next(entering) if has else None for has in given]
    outs, saved, primals = rest[: len(given)], rest[len(given)], rest[len(given) + 1 :]
    values = dict(zip(call.inputs, primals, strict=True))
    found = call.backward(grads, outs, saved, values, set(by))
    return [found[name] for name in by]


def _refuse_second_derivative(*_: Any, call: Call, **__: Any) -> Any:
    raise NotImplementedError(f"{call.op}: second derivatives are not available")


def _map_gradient(
    arrays: Sequence[Any], axes: Sequence[int | None], **parameters: Any
) -> tuple[list[Any], list[int]]:
    return _one_by_one(functools.partial(gradient_p.bind, **parameters), arrays, axes)


def _register(primitive: Primitive, run: Callable[..., list[Any]], batch: Any, jvp: Any) -> None:
    @functools.cache
    def compiled(**parameters: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **parameters))

    def evaluate(*arrays: Any, **parameters: Any) -> list[Any]:
        with jax.disable_jit(False):  # there is no other way to run it
            found: list[Any] = compiled(**parameters)(*arrays)
            return found

    primitive.def_impl(evaluate)
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp

    def run_on_cuda(*arrays: Any, **parameters: Any) -> list[Any]:
        _targets.register_cuda()
        return run(*arrays, **parameters)

    for platform, rule in (("cpu", run), ("cuda", run_on_cuda)):
        lowering = mlir.lower_fun(rule, multiple_results=True)
        mlir.register_lowering(primitive, lowering, platform=platform)


layer_p.def_abstract_eval(_layer_shapes)
tangent_p.def_abstract_eval(_tangent_shapes)
gradient_p.def_abstract_eval(_gradient_shapes)
_register(layer_p, _run_forward, _map_layer, _differentiate)
_register(gradient_p, _run_backward, _map_gradient, _refuse_second_derivative)
tangent_p.def_impl(_refuse_forward_mode)
mlir.register_lowering(tangent_p, mlir.lower_fun(_refuse_forward_mode, multiple_results=True))
batching.primitive_batchers[tangent_p] = _map_tangent
ad.primitive_jvps[tangent_p] = _refuse_second_derivative
ad.primitive_transposes[tangent_p] = _transpose
