"""A script: layers on several devices of one host. Run by test_jax_transformations.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import tbptt_fast.jax as ours

MESH = jax.make_mesh(
    (2,),
    ("batch",),
    **({"axis_types": (jax.sharding.AxisType.Auto,)} if hasattr(jax.sharding, "AxisType") else {}),
)
P = PartitionSpec


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32") / 2


X, H, IMAGES = normal(5, 4, 3), normal(4, 6), normal(3, 4, 2, 5, 6)
LAYERS: dict[str, Any] = {
    "gru": (
        lambda w, x, h: ours.gru(x, h, *w, truncation=2)[0],
        (normal(18, 3), normal(18, 6), normal(18)),
        (X, H),
        (P(None, "batch"), P("batch")),
    ),
    "lstm": (
        lambda w, x, h: ours.lstm(x, (h, None), *w)[0],
        (normal(24, 3), normal(24, 6)),
        (X, H),
        (P(None, "batch"), P("batch")),
    ),
    "conv2d": (
        lambda w, x: ours.conv2d(x, w[0], w[1], padding="same", activation="tanh"),
        (normal(4, 2, 3, 3), normal(4)),
        (IMAGES[0],),
        (P("batch"),),
    ),
    "convgru": (
        lambda w, x: ours.convgru(x, None, *w)[0],
        (normal(9, 2, 3, 3), normal(9, 3, 3, 3)),
        (IMAGES,),
        (P(None, "batch"),),
    ),
}


def close(actual: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


def check(name: str) -> None:
    """The gradients of a sum over all rows, each device with its own; weights everywhere."""
    layer, weights, inputs, specs = LAYERS[name]

    def loss(weights: Any, *inputs: Any) -> Any:
        return (layer(weights, *inputs) ** 2).sum()

    by = (0, *range(1, 1 + len(inputs)))
    expected = jax.grad(loss, by)(weights, *inputs)
    batch = specs[0]

    values = jax.shard_map(layer, mesh=MESH, in_specs=(P(), *specs), out_specs=batch)
    close(jax.jit(values)(weights, *inputs), layer(weights, *inputs))

    # outside: the gradient of the whole, through shard_map
    def outside(weights: Any, *inputs: Any) -> Any:
        return (values(weights, *inputs) ** 2).sum()

    close(jax.jit(jax.grad(outside, by))(weights, *inputs), expected)

    # inside: weights that do not vary get the sum over the devices; unchecked, the caller sums
    for checked in (True, False):

        def inside(weights: Any, *inputs: Any, checked: bool = checked) -> Any:
            found = jax.grad(loss, by)(weights, *inputs)
            by_weights = found[0] if checked else jax.lax.psum(found[0], "batch")
            return by_weights, *found[1:]

        mapped = jax.shard_map(
            inside, mesh=MESH, in_specs=(P(), *specs), out_specs=(P(), *specs), check_vma=checked
        )
        close(jax.jit(mapped)(weights, *inputs), expected)

        # a mapped axis, and windows, within a device
        def mapped_inside(weights: Any, *inputs: Any) -> Any:
            return jax.vmap(partial(layer, weights))(*(jax.numpy.stack([a, a]) for a in inputs))

        twice = jax.shard_map(
            mapped_inside,
            mesh=MESH,
            in_specs=(P(), *specs),
            out_specs=P(None, *batch),
            check_vma=checked,
        )
        both = jax.jit(twice)(weights, *inputs)
        close(both[0], layer(weights, *inputs))
        close(both[1], both[0])


def check_sharded() -> None:
    """Arrays that lie on several devices, without shard_map: XLA brings them together."""
    layer, weights, (x, h), (rows, states) = LAYERS["gru"]
    x, h = (jax.device_put(a, NamedSharding(MESH, spec)) for a, spec in ((x, rows), (h, states)))
    close(jax.jit(layer)(weights, x, h), layer(weights, np.asarray(x), np.asarray(h)))
    found = ours.optim.sgd_step([h], [h], None, 0.5)
    close(found.params[0], 0.5 * np.asarray(h))


if __name__ == "__main__":
    assert jax.device_count() == 2
    for name in LAYERS:
        check(name)
        print(name)
    check_sharded()
    print("sharded")
