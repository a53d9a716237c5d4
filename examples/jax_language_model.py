"""A character model in JAX: gradients truncated to (k1, k2) = (32, 64) within each compiled call.

Each call reads the next 128 characters of 16 rows of CPython's documentation. The state goes from
call to call; it is donated, as parameters and moments are: the new ones take the old ones' memory.

    python examples/jax_language_model.py --steps 200
"""

from typing import Any

import jax
import optax
from jax import numpy as jnp

from _common import curves, parse, parser, progress, run
from _data import documentation
from tbptt_fast.cli.parser import whole
from tbptt_fast.data import Stream
from tbptt_fast.jax.layers import LSTM


def main(argv: list[str] | None = None) -> list[float]:
    """Train; returns the bits per character of every call."""
    found = parser(__file__, __doc__, epochs=3)
    found.add_argument("--steps", type=whole(1), help="calls (those of all epochs)")
    options = parse(found, argv)
    symbols, ids = documentation(0, 1)
    stream, lstm = Stream(ids[:-1], ids[1:], 16, 128, keep_last=False), LSTM(64, 192)
    keys = jax.random.split(jax.random.key(options.seed), 3)
    params: Any = {"lstm": lstm.init(keys[0]), "embed": jax.random.normal(keys[1], (symbols, 64))}
    params["head"] = jax.random.normal(keys[2], (192, symbols)) / 192**0.5
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def loss(params: Any, state: Any, x: Any, y: Any) -> Any:
        out, state = lstm.apply(params["lstm"], params["embed"][x], state, truncation=(32, 64))
        nats = optax.softmax_cross_entropy_with_integer_labels(out @ params["head"], y)
        return nats.mean() / jnp.log(2), state

    def update(params: Any, moments: Any, state: Any, x: Any, y: Any) -> Any:
        (bits, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x, y)
        changes, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, changes), moments, state, bits

    update, moments = jax.jit(update, donate_argnums=(0, 1, 2)), optimizer.init(params)
    every, total = list[float](), options.steps or options.epochs * len(stream)
    with progress(total, "language model") as bar:
        while len(every) < total:
            window = stream.next_window()
            if window.is_init is not None:  # the rows begin
                state = lstm.zero_state(16)
            params, moments, state, bits = update(params, moments, state, window.x, window.y)
            every.append(float(bits))
            bar.update()
    print(f"bits per character: {every[0]:.3f}, after {len(every)} calls {every[-1]:.3f}")
    curves(options.out, {"": every}, xlabel="call", ylabel="bits per character")
    return every


if __name__ == "__main__":
    run(main)
