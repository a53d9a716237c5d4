"""Measuring how gradients decay in a whole network, for `adaptive_k`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import nn, ops
from .._types import Array
from ..nn import Module, Sequential
from .checkpointed import Primitive
from .places import library_of, to_host

if TYPE_CHECKING:
    from .trainer import Flags, Loss

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM, Primitive)
# Layers without a state whose output at a step depends on that step's input alone.
_ONE_STEP = (
    nn.Dropout,
    nn.Embedding,
    nn.LayerNorm,
    nn.Linear,
    nn.ReLU,
    nn.Sigmoid,
    nn.Softmax,
    nn.Tanh,
    nn.TimeDistributed,
)


class LagStatistics(NamedTuple):
    """Gradients of losses by the network's state, by lag: what `adaptive_k` needs.

    `phi` [W + 1, N] has the norms for each of N losses, `gradient` [W + 1] the norm of the mean
    over losses of what the lags 0 … K give together.
    """

    phi: Array
    gradient: Array


def measure_lags(
    model: Module,
    loss: Loss,
    x: Array,
    y: Array,
    max_lag: int,
    *,
    state: Any = None,
    is_init: Flags | None = None,
    losses: int = 16,
) -> LagStatistics:
    """Norms of ∂L_s/∂(state that left step s - k) for k = 0 … max_lag, at some steps s of all rows.

    With one recurrent layer all losses walk back at once (`lag_norms`). With several, whose states
    count together, the pieces that end at the measured steps are run side by side, a step at a
    time, and the gradient takes every path between the layers. The network is used as after `eval`,
    and is not changed.

    Args:
        model: recurrent layers or a Sequential of them with layers in between that see one step at
            a time (Linear, Embedding, LayerNorm, Dropout, activations, TimeDistributed). One
            recurrent layer may also be a `Primitive`, which by itself may lie on a GPU, where the
            arrays of PyTorch or CuPy then are; the results are on the host, and waited for.
        loss: as for `TBPTT`; the loss of a step may depend on that step's output only.
        x, y: inputs [T, B, ...] and targets [T, B, ...], with T > max_lag.
        state: what enters step 0; None for zeros.
        is_init: [T, B], or None.
        losses: how many steps to measure, evenly among those with max_lag steps before them.

    Raises:
        TypeError: a model of another kind. ValueError: too few steps, or sizes below 1.

    >>> from tbptt_fast import nn
    >>> model = nn.Sequential(nn.LSTM(1, 8, seed=1), nn.Linear(8, 1, seed=2))
    >>> def square(y, target):
    ...     return float(((y - target) ** 2).sum()), 2 * (y - target), y.size
    >>> x = np.random.default_rng(0).normal(size=(60, 4, 1)).astype(np.float32)
    >>> found = measure_lags(model, square, x[:-1], x[1:], max_lag=20, losses=10)
    >>> found.phi.shape, bool(found.phi[20].mean() < found.phi[1].mean())
    ((21, 40), True)
    """
    if max_lag < 1 or losses < 1:
        raise ValueError(f"measure_lags: expected sizes of at least 1, got {max_lag} and {losses}")
    library_of(x, "measure_lags: x")  # its arrays can be cut
    if len(x) <= max_lag:
        raise ValueError(f"measure_lags: x: expected more than {max_lag} steps, got {len(x)}")
    body, head = _split(model)
    entering = (None,) * len(body) if state is None else _entering(model, state)[: len(body)]
    chosen = np.unique(np.linspace(max_lag, len(x) - 1, losses).round().astype(int))
    with _as_after_eval(model):
        if _is_one_layer(body):
            return _all_at_once(body, head, loss, x, y, max_lag, entering, is_init, chosen)
        return _step_by_step(body, head, loss, x, y, max_lag, entering, is_init, chosen)


def check_model(model: Module) -> None:
    """Raise a TypeError for a model that `measure_lags` cannot take."""
    _split(model)


def _split(model: Module) -> tuple[Sequential, Sequential]:
    """The network up to its last recurrent layer, and what is behind it."""
    children = list(model) if isinstance(model, nn.Sequential) else [model]
    where = [i for i, child in enumerate(children) if isinstance(child, _RECURRENT)]
    other = [child for child in children if not isinstance(child, (*_RECURRENT, *_ONE_STEP))]
    if other or not where:
        got = other[0] if other else model
        raise TypeError(
            f"measure_lags: model: expected recurrent layers, with layers that see one step at a "
            f"time between them, got {got!r}"
        )
    if len(where) > 1 and any(isinstance(children[i], Primitive) for i in where):
        raise TypeError(
            "measure_lags: model: expected a Primitive as the only recurrent layer, or layers of "
            f"tbptt_fast.nn, got {model!r}"
        )
    return nn.Sequential(*children[: where[-1] + 1]), nn.Sequential(*children[where[-1] + 1 :])


def _entering(model: Module, state: Any) -> tuple[Any, ...]:
    return tuple(state) if isinstance(model, nn.Sequential) else (state,)


def _is_one_layer(body: Sequential) -> bool:
    layers = [child.num_layers for child in body if isinstance(child, _RECURRENT)]
    return layers == [1]


def _gradient_of_hidden(head: Sequential, loss: Loss, hidden: Array, y: Array) -> Array:
    out, _, tape = head.forward(hidden)
    grads = head.backward(tape, loss(out, y)[1])
    assert grads.x is not None
    return grads.x


def _all_at_once(
    body: Sequential,
    head: Sequential,
    loss: Loss,
    x: Array,
    y: Array,
    max_lag: int,
    entering: tuple[Any, ...],
    is_init: Flags | None,
    chosen: Array,
) -> LagStatistics:
    before, layer = nn.Sequential(*list(body)[:-1]), body[len(body) - 1]
    inputs, _ = before(x)
    hidden, _, tape = layer.forward(inputs, entering[-1], is_init=is_init)
    grad = _gradient_of_hidden(head, loss, hidden, y)
    masked = library_of(grad, "measure_lags: loss").zeros_like(grad)
    steps = chosen.tolist()
    masked[steps] = grad[steps]  # the others cost nothing
    if isinstance(layer, Primitive):
        found = layer.lag_norms(tape, masked, max_lag)
    else:
        found = ops.lag_norms(tape.saved[0], masked, max_lag, sums=True)
    phi, total = (to_host(array, "measure_lags: x") for array in found)
    mean = total.reshape(max_lag + 1, -1) / (len(chosen) * x.shape[1])
    return LagStatistics(phi[:, chosen].reshape(max_lag + 1, -1), _norms_of_sums(mean))


def _step_by_step(
    body: Sequential,
    head: Sequential,
    loss: Loss,
    x: Array,
    y: Array,
    max_lag: int,
    entering: tuple[Any, ...],
    is_init: Flags | None,
    chosen: Array,
) -> LagStatistics:
    """The piece that ends at each chosen step is a row of one batch, run a step at a time."""
    state, states, at = entering, [], 0
    for begin in chosen - max_lag:
        if begin > at:
            flags = None if is_init is None else is_init[at:begin]
            _, state = body(x[at:begin], state, is_init=flags)
        states.append(state)
        at = begin
    steps = chosen - max_lag + np.arange(max_lag + 1)[:, None]  # [W + 1, pieces]

    def rows(a: Array) -> Array:
        picked = a[steps]
        joined: Array = picked.reshape(max_lag + 1, -1, *picked.shape[3:])
        return joined

    inputs, flags = rows(x), None if is_init is None else rows(is_init)
    state, tapes = _side_by_side(states), []
    for t in range(max_lag + 1):
        now = slice(t, t + 1)
        out, state, tape = body.forward(
            inputs[now], state, is_init=None if flags is None else flags[now]
        )
        tapes.append(tape)
    grad: Array | None = _gradient_of_hidden(head, loss, out, rows(y)[-1:])
    assert grad is not None

    # Within the loss's own step only the last layer's h has a path to it.
    norms, means = [_row_norms([grad[0]])], []
    own = grad[0].mean(axis=0, dtype=np.float64)
    grad_state = None
    for tape in tapes[:0:-1]:
        found = body.backward(tape, grad, grad_state=grad_state, needs_x=False)
        grad, grad_state = None, found.state
        parts = [part for array in _leaves(grad_state) for part in array]
        norms.append(_row_norms(parts))
        means.append(np.concatenate([part.mean(axis=0, dtype=np.float64) for part in parts]))
    first = np.zeros_like(means[0])
    first[_place_of_output(body, len(first))] = own
    return LagStatistics(np.stack(norms), _norms_of_sums(np.stack([first, *means])))


def _side_by_side(states: list[Any]) -> Any:
    """States [L, B, H] of several batches as those of one; None is zeros."""
    like = next((state for state in states if state is not None), None)
    if isinstance(like, tuple | list):
        filled = [(None,) * len(like) if state is None else state for state in states]
        return tuple(_side_by_side(list(entries)) for entries in zip(*filled, strict=True))
    if like is None:
        return None
    zeros = np.zeros_like(like)
    return np.concatenate([zeros if state is None else state for state in states], axis=1)


def _place_of_output(body: Sequential, size: int) -> slice:
    """Where the last layer's h lies among all states."""
    layer: Any = body[len(body) - 1]
    hidden = layer.hidden_size
    behind = layer.num_layers * hidden if isinstance(layer, nn.LSTM) else 0  # every layer's c
    return slice(size - behind - hidden, size - behind)


def _leaves(state: Any) -> Iterator[Array]:
    """The arrays [L, B, H] of a state, layer by layer."""
    if isinstance(state, tuple | list):
        for entry in state:
            yield from _leaves(entry)
    elif state is not None:
        yield state


def _row_norms(parts: list[Array]) -> Array:
    """Of arrays [B, H] side by side, in double precision: their squares may be tiny."""
    squares: Array = sum((part.astype(np.float64) ** 2).sum(axis=-1) for part in parts)
    return np.sqrt(squares)


def _norms_of_sums(mean: Array) -> Array:
    norms: Array = np.linalg.norm(np.cumsum(mean, axis=0), axis=1)
    return norms


@contextmanager
def _as_after_eval(model: Module) -> Iterator[None]:
    flags: list[tuple[Module, bool]] = []

    def collect(module: Module) -> None:
        flags.append((module, module.training))
        for child in module._children.values():
            collect(child)

    collect(model)
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
