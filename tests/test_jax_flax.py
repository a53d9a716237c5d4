"""tbptt_fast.jax.flax: modules beside the plain layers, flax.nnx's own cells and PyTorch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cases import assert_close

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
optax = pytest.importorskip("optax")
from flax import nnx  # noqa: E402
from jax import numpy as jnp  # noqa: E402

import tbptt_fast.jax as backend  # noqa: E402
from tbptt_fast.jax import flax, layers  # noqa: E402

pytestmark = pytest.mark.skipif(not backend.available(), reason="built without its JAX functions")

T, B, I, H = 9, 3, 4, 6  # noqa: E741
KINDS: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "RNN": ((I, H, 2), {"nonlinearity": "relu"}, (T, B, I)),
    "GRU": ((I, H, 2), {"bias": False}, (T, B, I)),
    "LSTM": ((I, H, 2), {}, (T, B, I)),
    "ConvRNN2d": ((1, 2, 3), {}, (T, B, 1, 5, 4)),
    "ConvGRU2d": ((1, 2, (3, 1)), {"layout": "NHWC"}, (T, B, 5, 4, 1)),
    "ConvLSTM2d": ((1, 2, 3, 2), {"peephole": True}, (T, B, 1, 5, 4)),
    "Conv1d": ((2, 4, 3), {"padding": "causal"}, (B, 2, 9)),
    "Conv2d": ((2, 4, 3), {"stride": 2, "activation": "tanh"}, (B, 2, 9, 8)),
}
kinds = pytest.mark.parametrize("kind", KINDS)
recurrent = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])


def make(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A module and x."""
    sizes, options, shape = KINDS[kind]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return getattr(flax, kind)(*sizes, **options, rngs=nnx.Rngs(seed)), jnp.asarray(x)


def pure(state: Any) -> dict[str, Any]:
    found: dict[str, Any] = nnx.to_pure_dict(state)
    return found


def params_of(module: Any) -> dict[str, Any]:
    return pure(nnx.state(module, nnx.Param))


def set_params(module: Any, params: dict[str, Any]) -> None:
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)


def close(found: Any, wanted: Any, length: int = T * B * I * H) -> None:
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, "gradient", length=length)


def output(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


@kinds
def test_a_module_is_its_layer(kind: str) -> None:
    module, x = make(kind)
    sizes, options, _ = KINDS[kind]
    layer = getattr(layers, kind)(*sizes, **options)
    assert module.layer == layer
    params = params_of(module)
    assert params.keys() == set(layer.names)
    for a, b in zip(
        jax.tree.leaves(module(x)), jax.tree.leaves(layer.apply(params, x)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    other, _ = make(kind, seed=1)  # rngs decide
    assert np.abs(output(other(x)) - output(module(x))).max() > 1e-3


@kinds
def test_gradients_under_jit(kind: str) -> None:
    module, x = make(kind)
    layer = module.layer

    def loss(model: Any, x: Any) -> Any:
        return (output(model(x)) ** 2).sum()

    value, grads = nnx.jit(nnx.value_and_grad(loss))(module, x)
    want, dparams = jax.value_and_grad(lambda p: (output(layer.apply(p, x)) ** 2).sum())(
        params_of(module)
    )
    close(value, want)
    found = pure(grads)
    assert found.keys() == dparams.keys()
    for name, gradient in dparams.items():
        assert np.abs(gradient).max() > 0
        close(found[name], gradient)


@recurrent
def test_options_of_a_call(kind: str) -> None:
    module, x = make(kind)
    rng = np.random.default_rng(2)
    options = {
        "is_init": jnp.asarray(rng.random((T, B)) < 0.2),
        "carry_scale": jnp.asarray(rng.uniform(0.5, 1.5, (T, B)).astype(np.float32)),
    }
    hx = jax.tree.map(lambda a: a + 0.5, module.zero_state(B))

    def loss(model: Any, hx: Any) -> Any:
        return (model(x, hx, truncation=(2, 4), **options)[0] ** 2).sum()

    found, dhx = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(module, hx)

    def plain(params: Any, hx: Any) -> Any:
        y, _ = module.layer.apply(params, x, hx, truncation=(2, 4), **options)
        return (y**2).sum()

    close((pure(found), dhx), jax.grad(plain, argnums=(0, 1))(params_of(module), hx))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "ConvGRU2d", "Conv2d"])
def test_split_and_merge(kind: str) -> None:
    module, x = make(kind)
    graph, state = nnx.split(module)
    assert hash(graph) == hash(nnx.split(make(kind, seed=5)[0])[0])  # one compilation for both
    merged = nnx.merge(graph, jax.tree.map(lambda a: 0 * a, state))
    assert not any(np.any(a) for a in jax.tree.leaves(params_of(merged)))
    again = nnx.merge(graph, state)
    np.testing.assert_array_equal(output(again(x)), output(module(x)))


def test_calls_compile_once() -> None:
    module, x = make("LSTM")
    traced = []

    def step(model: Any, x: Any, state: Any) -> Any:
        traced.append(1)
        return model(x, state)[1]

    compiled = nnx.jit(step)
    state = module.zero_state(B)
    for _ in range(3):
        state = compiled(module, x, state)
    assert len(traced) == 1


class Model(nnx.Module):  # type: ignore[misc]
    """A stack and a linear output."""

    def __init__(self, kind: str, rngs: Any) -> None:
        self.stack = getattr(flax, kind)(I, 16, 2, dropout=0.1, rngs=rngs)
        self.head = nnx.Linear(16, I, rngs=rngs)

    def __call__(self, x: Any, state: Any, **options: Any) -> Any:
        y, state = self.stack(x, state, **options)
        return self.head(y), state


@recurrent
def test_optax_trains_windows_with_a_carried_state(kind: str) -> None:
    """To predict the next step of a periodic series."""
    model = Model(kind, nnx.Rngs(0, dropout=1))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    takes_model = "model" in inspect.signature(optimizer.update).parameters  # since Flax 0.11
    steps = jnp.arange(33)[:, None, None] + jnp.arange(B)[None, :, None]
    series = jnp.sin(steps * (0.3 + 0.2 * jnp.arange(I)))

    def update(model: Any, optimizer: Any, state: Any) -> Any:
        def loss(model: Any) -> Any:
            y, carried = model(series[:-1], state, truncation=8)
            return ((y - series[1:]) ** 2).mean(), carried

        (value, carried), grads = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(*((model, grads) if takes_model else (grads,)))
        return value, carried

    compiled, state = nnx.jit(update), model.stack.zero_state(B)
    losses = []
    for _ in range(60):
        value, state = compiled(model, optimizer, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]
    assert all(np.isfinite(losses))


def test_dropout_follows_train_and_eval() -> None:
    model = Model("GRU", nnx.Rngs(0, dropout=7))
    x = jax.random.normal(jax.random.key(1), (T, B, I))
    first, second = model(x, None)[0], model(x, None)[0]
    assert np.abs(first - second).max() > 1e-3  # the stream moves on
    again = Model("GRU", nnx.Rngs(0, dropout=7))(x, None)[0]
    np.testing.assert_array_equal(first, again)
    run = nnx.jit(lambda model: model(x, None)[0])
    assert np.abs(run(model) - run(model)).max() > 1e-3  # and out of jit
    model.eval()
    np.testing.assert_array_equal(model(x, None)[0], model(x, None)[0])
    layer, params = model.stack.layer, params_of(model.stack)
    y, _ = layer.apply(params, x)
    np.testing.assert_array_equal(model.stack(x)[0], y)
    model.train()
    assert np.abs(model(x, None)[0] - model(x, None)[0]).max() > 1e-3


@recurrent
def test_weights_of_flax_cells(kind: str) -> None:
    """flax.nnx's cells hold kernels [in, out] of every gate, where PyTorch's rows are the gates."""
    rngs = nnx.Rngs(3)
    module = getattr(flax, kind)(I, H, rngs=rngs)
    if kind == "RNN":
        cell = nnx.SimpleCell(I, H, rngs=rngs)
        w_ih, w_hh = cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T
        b_ih, b_hh = cell.dense_i.bias[...], jnp.zeros(H)
    elif kind == "GRU":
        cell = nnx.GRUCell(I, H, rngs=rngs)
        w_ih, w_hh = cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T
        b_ih = cell.dense_i.bias[...] + 0.1 * jnp.arange(3.0 * H)
        cell.dense_i.bias[...] = b_ih
        b_hh = jnp.zeros(3 * H)
    else:
        cell = nnx.LSTMCell(I, H, rngs=rngs)
        gates = ("ii", "if_", "ig", "io")
        w_ih = jnp.concatenate([getattr(cell, gate).kernel[...].T for gate in gates])
        w_hh = jnp.concatenate([getattr(cell, f"h{gate}").kernel[...].T for gate in "ifgo"])
        b_ih = jnp.zeros(4 * H)
        b_hh = jnp.concatenate([getattr(cell, f"h{gate}").bias[...] for gate in "ifgo"])
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    set_params(module, dict(zip(names, (w_ih, w_hh, b_ih, b_hh), strict=True)))
    x = jax.random.normal(jax.random.key(4), (T, B, I))
    theirs = nnx.RNN(cell, time_major=True, return_carry=True)
    last, want = theirs(x)
    y, state = module(x)
    close(y, want)
    ours = (state[1][0], state[0][0]) if kind == "LSTM" else state[0]  # flax carries (c, h)
    close(ours, last)


@recurrent
def test_weights_of_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(I, H, 2)
    module = getattr(flax, kind)(I, H, 2, rngs=nnx.Rngs(0))
    set_params(module, {n: jnp.asarray(p.numpy()) for n, p in theirs.state_dict().items()})
    x = np.random.default_rng(5).standard_normal((T, B, I)).astype(np.float32)
    with torch.no_grad():
        want, last = theirs(torch.from_numpy(x))
    y, state = module(jnp.asarray(x))
    close(y, want.numpy())
    close(state, jax.tree.map(lambda a: a.numpy(), last))


@kinds
def test_save_and_restore(kind: str, tmp_path: Path) -> None:
    module, x = make(kind)
    path = tmp_path / "module.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in params_of(module).items()})
    other, _ = make(kind, seed=6)
    with np.load(path) as saved:
        set_params(other, {name: jnp.asarray(saved[name]) for name in saved.files})
    np.testing.assert_array_equal(output(other(x)), output(module(x)))


def test_without_flax_the_message_names_the_extra() -> None:
    code = """if True:
        import sys
        sys.modules["flax"] = None
        import tbptt_fast.jax
        try:
            import tbptt_fast.jax.flax
        except ImportError as error:
            print(error)
        """
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "needs Flax 0.10 or later: pip install 'tbptt_fast[flax]'" in found.stdout
