"""The reference of recurrent layers in JAX's own operations: `lax.scan`, windows one by one.

It runs on every device and has every derivative. Every window of the truncation runs again from the
state in which its reach begins, and only its own outputs count: the definition of BPTT(h=k2; h'=k1)
(Williams & Peng 1990), with nothing shared between windows.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import numpy as jnp

from .._options import Cell, state_names


def _pass(state: Any, scale: Any) -> Any:
    return state


def _multiply(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    state, scale = primals
    return state, jnp.where(scale == 0, 0, tangents[0]) * scale


# By its tangent, which JAX can transpose: so it has derivatives of both modes, and of every order.
_scale_gradient: Any = jax.custom_jvp(_pass)
_scale_gradient.defjvp(_multiply)


def _step(cell: Cell, states: tuple[Any, ...], product: Any, w_hh: Any, b_hh: Any) -> Any:
    recurrent = states[0] @ w_hh.T
    if b_hh is not None:
        recurrent = recurrent + b_hh
    if cell in ("rnn_tanh", "rnn_relu"):
        activation = jnp.tanh if cell == "rnn_tanh" else jax.nn.relu
        return (activation(product + recurrent),)
    if cell == "gru":
        (h,) = states
        xr, xz, xn = jnp.split(product, 3, axis=-1)
        hr, hz, hn = jnp.split(recurrent, 3, axis=-1)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)
        return (n + z * (h - n),)
    i, f, g, o = jnp.split(product + recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def scan_layer(cell: Cell, arrays: dict[str, Any], truncation: tuple[int, int] | None) -> list[Any]:
    """The results of `rnn`, `gru` or `lstm` for checked arrays."""
    x, w_ih, w_hh = (arrays[name] for name in ("x", "w_ih", "w_hh"))
    steps, batch = x.shape[:2]
    names = state_names(cell)
    zeros = jnp.zeros((batch, w_hh.shape[1]), x.dtype)
    first = tuple(arrays.get(name, zeros) for name in names)
    products = x @ w_ih.T
    if "b_ih" in arrays:
        products = products + arrays["b_ih"]
    starts = arrays.get("is_init")
    scale = arrays.get("carry_scale")

    def advance(states: Any, at: Any) -> Any:
        product, start, factor = at
        if factor is not None:
            states = tuple(_scale_gradient(s, factor[:, None]) for s in states)
        if start is not None:
            states = tuple(jnp.where(start[:, None], 0, s) for s in states)
        states = _step(cell, states, product, w_hh, arrays.get("b_hh"))
        return states, states

    def walk(states: Any, begin: int, end: int) -> Any:
        parts = (None if a is None else a[begin:end] for a in (products, starts, scale))
        return jax.lax.scan(advance, states, tuple(parts))

    last, every = walk(first, 0, steps)
    if truncation is None or truncation[0] >= steps:
        return [every[0], *last]
    k1, k2 = truncation
    fixed = [jax.lax.stop_gradient(states) for states in every]
    outputs = []
    for window in range(0, steps, k1):
        begin = max(0, window + k1 - k2)
        end = min(window + k1, steps)
        entering = first if begin == 0 else tuple(states[begin - 1] for states in fixed)
        last, states = walk(entering, begin, end)
        outputs.append(states[0][window - begin :])
    return [jnp.concatenate(outputs), *last]
