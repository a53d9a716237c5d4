"""A call of every public function: arguments that fit together, drawn from a source.

A builder returns the positional and the keyword arguments. It draws small shapes, zero extents now
and then, and every option; `fuzz` then changes layouts and breaks arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import tbptt_fast

from .source import Source, chance, choice, numbers

Arguments: TypeAlias = tuple[list[Any], dict[str, Any]]
Builder: TypeAlias = Callable[[Source, str], Arguments]

ACTIVATIONS = (None, "relu", "tanh", "sigmoid")
NEEDS = ((), ("x",), ("w",), ("b",), ("x", "w"), ("w", "b"), ("x", "w", "b"))
LAYOUTS = ("NCHW", "NHWC")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def extent(s: Source, low: int = 1, high: int = 6) -> int:
    """Mostly small, rarely none at all, sometimes past a vector's width."""
    if chance(s, 3):
        return 0
    return s.integer(low, 40) if chance(s, 10) else s.integer(low, high)


def maybe(s: Source, value: Any) -> Any:
    return value if chance(s, 60) else None


def positive(array: Any) -> Any:
    """Its magnitudes; `abs` would make a number of an array without axes."""
    return np.absolute(array, out=array)


def image(s: Source, layout: str, batch: int, channels: int, height: int, width: int) -> list[int]:
    if layout == "NCHW":
        return [batch, channels, height, width]
    return [batch, height, width, channels]


def elementwise(s: Source, dtype: str) -> Arguments:
    shape = [extent(s) for _ in range(s.integer(0, 3))]
    return [numbers(s, shape, dtype)], {}


def rows(s: Source, dtype: str) -> Arguments:
    return [numbers(s, [extent(s), s.integer(1, 40)], dtype)], {}


def activation_backward(s: Source, dtype: str) -> Arguments:
    (x,), _ = elementwise(s, dtype)
    return [x, numbers(s, x.shape, dtype), choice(s, ACTIVATIONS[1:])], {}


def softmax_backward(s: Source, dtype: str) -> Arguments:
    (x,), _ = rows(s, dtype)
    return [x, numbers(s, x.shape, dtype)], {}


def linear(s: Source, dtype: str) -> Arguments:
    inputs, outputs = extent(s), s.integer(1, 20)
    leading = [extent(s) for _ in range(s.integer(0, 2))]
    arrays = [numbers(s, [*leading, inputs], dtype), numbers(s, [outputs, inputs], dtype)]
    bias = maybe(s, numbers(s, [outputs], dtype))
    return [*arrays, bias], {"activation": choice(s, ACTIVATIONS)}


def linear_backward(s: Source, dtype: str) -> Arguments:
    (x, w, _), options = linear(s, dtype)
    shape = [*x.shape[:-1], w.shape[0]]
    y = numbers(s, shape, dtype) if options["activation"] else None
    return [numbers(s, shape, dtype), x, w], {**options, "y": y, "needs": choice(s, NEEDS)}


def embedding(s: Source, dtype: str) -> Arguments:
    w = numbers(s, [s.integer(1, 9), extent(s)], dtype)
    ids = np.arange(extent(s) * extent(s)).reshape(-1, 1) % len(w)
    return [ids, w], {}


def embedding_backward(s: Source, dtype: str) -> Arguments:
    (ids, w), _ = embedding(s, dtype)
    return [numbers(s, [*ids.shape, w.shape[1]], dtype), ids, len(w)], {}


def cross_entropy(s: Source, dtype: str) -> Arguments:
    count, classes = extent(s), s.integer(1, 20)
    targets = np.arange(count) % classes
    if count and chance(s, 30):
        targets[0] = -100
    weights = maybe(s, positive(numbers(s, [count], dtype, strange=0)))
    reduction = choice(s, ("mean", "sum", "none"))
    return [numbers(s, [count, classes], dtype), targets], {
        "weights": weights,
        "reduction": reduction,
    }


def pointwise_loss(s: Source, dtype: str) -> Arguments:
    x = numbers(s, [extent(s) for _ in range(s.integer(1, 3))], dtype)
    weights = maybe(s, positive(numbers(s, x.shape[:-1], dtype, strange=0)))
    options = {"weights": weights, "reduction": choice(s, ("mean", "sum", "none"))}
    return [x, numbers(s, x.shape, dtype)], options


def hinge_loss(s: Source, dtype: str) -> Arguments:
    (x, target), options = pointwise_loss(s, dtype)
    return [x, np.where(target > 0, 1, -1).astype(dtype)], options


def huber_loss(s: Source, dtype: str) -> Arguments:
    arrays, options = pointwise_loss(s, dtype)
    return arrays, {**options, "delta": choice(s, (0.5, 1.0, 1e-30))}


def batch_norm(s: Source, dtype: str) -> Arguments:
    layout, channels = choice(s, LAYOUTS), extent(s)
    x = numbers(s, image(s, layout, extent(s), channels, extent(s), extent(s)), dtype)
    training = chance(s, 50)
    affine = [maybe(s, numbers(s, [channels], dtype)) for _ in range(2)]
    mean, var = numbers(s, [channels], dtype), positive(numbers(s, [channels], dtype))
    running = [mean, var] if not training or chance(s, 70) else [None, None]
    return [x, *affine, *running], {"training": training, "layout": layout}


def batch_norm_backward(s: Source, dtype: str) -> Arguments:
    (x, weight, _, _, _), options = batch_norm(s, dtype)
    channels = x.shape[1 if options["layout"] == "NCHW" else 3]
    mean, inv_std = numbers(s, [channels], dtype), numbers(s, [channels], dtype)
    arrays = [numbers(s, x.shape, dtype), x, weight, mean, inv_std]
    return arrays, {**options, "needs": choice(s, NEEDS)}


def layer_norm(s: Source, dtype: str) -> Arguments:
    (x,), _ = rows(s, dtype)
    return [x, *(maybe(s, numbers(s, x.shape[1:], dtype)) for _ in range(2))], {"eps": 1e-5}


def layer_norm_backward(s: Source, dtype: str) -> Arguments:
    (x, weight, _), _ = layer_norm(s, dtype)
    mean, inv_std = numbers(s, x.shape[:1], dtype), numbers(s, x.shape[:1], dtype)
    arrays = [numbers(s, x.shape, dtype), x, weight, mean, inv_std]
    return arrays, {"needs": choice(s, NEEDS)}


def dropout(s: Source, dtype: str) -> Arguments:
    (x,), _ = elementwise(s, dtype)
    return [x, choice(s, (0.0, 0.3, 0.99)), s.integer(0, 2**62)], {}


def _lists(s: Source, dtype: str) -> tuple[list[Any], Callable[[], list[Any]]]:
    """Parameters, and what makes arrays of their shapes."""
    shapes = [[extent(s) for _ in range(s.integer(0, 2))] for _ in range(s.integer(0, 4))]
    params = [numbers(s, shape, dtype) for shape in shapes]
    return params, lambda: [numbers(s, shape, dtype) for shape in shapes]


def global_norm(s: Source, dtype: str) -> Arguments:
    return [_lists(s, dtype)[0]], {"clip_value": maybe(s, 0.5)}


def _step_options(s: Source) -> dict[str, Any]:
    return {
        "lr": choice(s, (0.0, 0.1, 1e30)),
        "weight_decay": choice(s, (0.0, 0.01)),
        "max_norm": maybe(s, 1.0),
        "clip_value": maybe(s, 0.5),
        "non_finite": choice(s, ("raise", "skip")),
        "maximize": chance(s, 50),
    }


def sgd_step(s: Source, dtype: str) -> Arguments:
    params, like = _lists(s, dtype)
    grads, buffers = like(), like()
    mu = choice(s, (0.0, 0.9))
    options = {"mu": mu, "nesterov": mu > 0 and chance(s, 50), "velocity": chance(s, 50)}
    options |= _step_options(s)
    return [params, grads, buffers if mu else None], options


def rmsprop_step(s: Source, dtype: str) -> Arguments:
    params, like = _lists(s, dtype)
    squares = [positive(array) for array in like()]
    mu = choice(s, (0.0, 0.9))
    arrays = [params, like(), squares, like() if mu else None, maybe(s, like())]
    return arrays, {"mu": mu, **_step_options(s)}


def adam_step(s: Source, dtype: str) -> Arguments:
    params, like = _lists(s, dtype)
    squares = [positive(array) for array in like()]
    arrays = [params, like(), like(), squares, maybe(s, [positive(array) for array in like()])]
    return arrays, {"step": s.integer(1, 9), "decoupled": chance(s, 50), **_step_options(s)}


def _pool(s: Source, dtype: str) -> Arguments:
    layout = choice(s, LAYOUTS)
    x = numbers(s, image(s, layout, extent(s), extent(s), s.integer(3, 9), s.integer(3, 9)), dtype)
    kernel = (s.integer(1, 3), s.integer(1, 3))
    options = {
        "stride": maybe(s, s.integer(1, 3)),
        "padding": choice(s, (0, "same", (0, kernel[1] // 2))),
        "ceil_mode": chance(s, 50),
        "layout": layout,
    }
    return [x, kernel], options


def avg_pool(s: Source, dtype: str) -> Arguments:
    arrays, options = _pool(s, dtype)
    return arrays, {**options, "count_include_pad": chance(s, 50)}


def avg_pool_backward(s: Source, dtype: str) -> Arguments:
    (x, kernel), options = avg_pool(s, dtype)
    y = tbptt_fast.avg_pool2d(x, kernel, **options)
    return [numbers(s, y.shape, dtype), x.shape, kernel], options


def max_pool_backward(s: Source, dtype: str) -> Arguments:
    (x, kernel), options = _pool(s, dtype)
    y, indices = tbptt_fast.max_pool2d(x, kernel, **options)
    return [numbers(s, y.shape, dtype), indices, x.shape], {"layout": options["layout"]}


def global_pool(s: Source, dtype: str) -> Arguments:
    (x, _), options = _pool(s, dtype)
    return [x], {"layout": options["layout"]}


def global_pool_backward(s: Source, dtype: str) -> Arguments:
    (x,), options = global_pool(s, dtype)
    y = tbptt_fast.global_avg_pool2d(x, **options)
    return [numbers(s, y.shape, dtype), x.shape], options


def _filters(s: Source, dtype: str, axes: int) -> tuple[Any, int, int, int, list[int]]:
    """Weights, groups, channels in and out, kernel."""
    groups = choice(s, (1, 1, 1, 2, 3))
    inputs, outputs = groups * s.integer(1, 5), groups * s.integer(1, 5)
    kernel = [s.integer(1, 3) for _ in range(axes)]
    w = numbers(s, [outputs, inputs // groups, *kernel], dtype)
    return w, groups, inputs, outputs, kernel


def conv2d(s: Source, dtype: str) -> Arguments:
    layout = choice(s, LAYOUTS)
    w, groups, inputs, outputs, _ = _filters(s, dtype, 2)
    x = numbers(s, image(s, layout, extent(s), inputs, s.integer(5, 12), s.integer(5, 12)), dtype)
    options = {
        "stride": choice(s, (1, 2, (1, 3))),
        "padding": choice(s, (0, 1, "valid", (0, 2), ((1, 0), (0, 1)))),
        "dilation": choice(s, (1, 2)),
        "groups": groups,
        "activation": choice(s, ACTIVATIONS),
        "layout": layout,
        "algo": choice(s, ("auto", "direct")),
    }
    given = tbptt_fast.pack_conv2d(w) if chance(s, 15) else w
    return [x, given, maybe(s, numbers(s, [outputs], dtype))], options


def pack_conv2d(s: Source, dtype: str) -> Arguments:
    return [_filters(s, dtype, 2)[0]], {}


def _convolved(s: Source, dtype: str, name: str, builder: Builder) -> Arguments:
    """Arguments of the backward pass by those of the forward one."""
    (x, w, b), options = builder(s, dtype)
    y = getattr(tbptt_fast, name)(x, w, b, **options)
    grad = numbers(s, y.shape, dtype)
    needs = choice(s, NEEDS)
    return [grad, x, w], {**options, "y": y if options["activation"] else None, "needs": needs}


def conv1d(s: Source, dtype: str) -> Arguments:
    w, groups, inputs, outputs, _ = _filters(s, dtype, 1)
    layout, length = choice(s, ("NCL", "NLC")), s.integer(5, 20)
    shape = [extent(s), inputs, length] if layout == "NCL" else [extent(s), length, inputs]
    options = {
        "stride": s.integer(1, 3),
        "padding": choice(s, (0, 1, "causal", "valid", (2, 0))),
        "dilation": choice(s, (1, 2)),
        "groups": groups,
        "activation": choice(s, ACTIVATIONS),
        "layout": layout,
    }
    return [numbers(s, shape, dtype), w, maybe(s, numbers(s, [outputs], dtype))], options


def conv_transpose2d(s: Source, dtype: str) -> Arguments:
    layout = choice(s, LAYOUTS)
    w, groups, inputs, outputs, _ = _filters(s, dtype, 2)
    shape = image(s, layout, extent(s), outputs, s.integer(1, 7), s.integer(1, 7))
    stride = s.integer(1, 3)
    options = {
        "stride": stride,
        "output_padding": s.integer(0, stride - 1),
        "groups": groups,
        "activation": choice(s, ACTIVATIONS),
        "layout": layout,
    }
    return [numbers(s, shape, dtype), w, maybe(s, numbers(s, [inputs], dtype))], options


def recurrent(cell: str, maps: bool = False) -> Builder:
    """Builder of a forward pass; with `maps` that of the layer on images."""

    def build(s: Source, dtype: str) -> Arguments:
        steps, batch, inputs, hidden = extent(s), extent(s), extent(s), s.integer(1, 20)
        layout = choice(s, LAYOUTS)
        size = [s.integer(1, 6), s.integer(1, 6)]
        kernels = [[2 * s.integer(0, 1) + 1, 2 * s.integer(0, 1) + 1] for _ in range(2)]

        def maps_of(channels: int) -> list[int]:
            return image(s, layout, batch, channels, *size) if maps else [batch, channels]

        def weights_of(channels: int, kernel: list[int]) -> Any:
            shape = [GATES[cell] * hidden, channels, *(kernel if maps else [])]
            return numbers(s, shape, dtype)

        def state() -> Any:
            return maybe(s, numbers(s, maps_of(hidden), dtype))

        hx = maybe(s, (state(), state())) if cell == "lstm" else state()
        biases = [maybe(s, numbers(s, [GATES[cell] * hidden], dtype)) for _ in range(2)]
        arrays = [numbers(s, [steps, *maps_of(inputs)], dtype), hx]
        arrays += [weights_of(inputs, kernels[0]), weights_of(hidden, kernels[1]), *biases]
        options: dict[str, Any] = {"training": chance(s, 80)}
        if chance(s, 50):
            options["is_init"] = np.arange(steps * batch).reshape(steps, batch) % 3 == 0
        if cell == "rnn":
            options["nonlinearity"] = choice(s, ("tanh", "relu"))
        if maps:
            options |= {"layout": layout, "recompute": chance(s, 50)}
            options["dilation"] = choice(s, (1, 2))
            if cell == "lstm" and chance(s, 40):
                options["peephole"] = numbers(s, [3, hidden], dtype)
        return arrays, options

    return build


def _tape(s: Source, dtype: str, cell: str, maps: bool) -> tuple[Any, Any, str]:
    arrays, options = recurrent(cell, maps)(s, dtype)
    name = f"conv{cell}" if maps else cell
    options["training"] = True
    out, _, tape = getattr(tbptt_fast, f"{name}_forward")(*arrays, **options)
    return tape, out, options.get("layout", "")


def recurrent_backward(cell: str, maps: bool = False) -> Builder:
    def build(s: Source, dtype: str) -> Arguments:
        tape, out, _ = _tape(s, dtype, cell, maps)

        def state() -> Any:
            return maybe(s, numbers(s, out.shape[1:], dtype))

        grad_hx = maybe(s, (state(), state())) if cell == "lstm" else state()
        k1 = s.integer(1, 5)
        options: dict[str, Any] = {"truncation": choice(s, (None, k1, (k1, k1 + 2)))}
        if chance(s, 30):
            options["carry_scale"] = numbers(s, out.shape[:2], dtype)
        return [tape, numbers(s, out.shape, dtype), grad_hx], options

    return build


def lag_norms(s: Source, dtype: str) -> Arguments:
    tape, out, _ = _tape(s, dtype, choice(s, tuple(GATES)), False)
    return [tape, numbers(s, out.shape, dtype), s.integer(1, 5)], {"sums": chance(s, 50)}


BUILDERS: dict[str, Builder] = {
    **dict.fromkeys(("exp", "relu", "sigmoid", "tanh"), elementwise),
    "activation_backward": activation_backward,
    "softmax": rows,
    "softmax_backward": softmax_backward,
    "linear": linear,
    "linear_backward": linear_backward,
    "embedding": embedding,
    "embedding_backward": embedding_backward,
    "softmax_cross_entropy": cross_entropy,
    **dict.fromkeys(("mse_loss", "l1_loss"), pointwise_loss),
    "hinge_loss": hinge_loss,
    "huber_loss": huber_loss,
    "batch_norm": batch_norm,
    "batch_norm_backward": batch_norm_backward,
    "layer_norm": layer_norm,
    "layer_norm_backward": layer_norm_backward,
    **dict.fromkeys(("dropout", "dropout_backward"), dropout),
    "global_norm": global_norm,
    "sgd_step": sgd_step,
    "rmsprop_step": rmsprop_step,
    "adam_step": adam_step,
    "max_pool2d": _pool,
    "max_pool2d_backward": max_pool_backward,
    "avg_pool2d": avg_pool,
    "avg_pool2d_backward": avg_pool_backward,
    "global_avg_pool2d": global_pool,
    "global_avg_pool2d_backward": global_pool_backward,
    "pack_conv2d": pack_conv2d,
    "conv2d": conv2d,
    "conv2d_backward": lambda s, dtype: _convolved(s, dtype, "conv2d", conv2d),
    "conv1d": conv1d,
    "conv1d_backward": lambda s, dtype: _convolved(s, dtype, "conv1d", conv1d),
    "conv_transpose2d": conv_transpose2d,
    "conv_transpose2d_backward": lambda s, dtype: _convolved(
        s, dtype, "conv_transpose2d", conv_transpose2d
    ),
    **{f"{cell}_forward": recurrent(cell) for cell in GATES},
    **{f"{cell}_backward": recurrent_backward(cell) for cell in GATES},
    **{f"conv{cell}_forward": recurrent(cell, maps=True) for cell in GATES},
    **{f"conv{cell}_backward": recurrent_backward(cell, maps=True) for cell in GATES},
    "lag_norms": lag_norms,
}
