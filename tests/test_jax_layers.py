"""tbptt_fast.jax.layers: parameters, values and gradients beside tbptt_fast.nn and PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn

from .cases import assert_close

jax = pytest.importorskip("jax")
from jax import numpy as jnp  # noqa: E402

import tbptt_fast.jax as backend  # noqa: E402
from tbptt_fast.jax import layers  # noqa: E402

pytestmark = pytest.mark.skipif(not backend.available(), reason="built without its JAX functions")

T, B, I, H = 7, 3, 5, 6  # noqa: E741
IMAGES = (T, B, 2, 6, 5)
SIZE = IMAGES[3:]

# The plain layer, arguments of both, and the shape of x.
STACKS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "rnn": ("RNN", (I, H), {"nonlinearity": "tanh"}, (T, B, I)),
    "rnn_relu": ("RNN", (I, H, 2), {"nonlinearity": "relu"}, (T, B, I)),
    "gru": ("GRU", (I, H, 2), {}, (T, B, I)),
    "lstm": ("LSTM", (I, H, 3), {}, (T, B, I)),
    "lstm_no_bias": ("LSTM", (I, H), {"bias": False}, (T, B, I)),
    "convrnn": ("ConvRNN2d", (2, 4, 3, 2), {"nonlinearity": "relu"}, IMAGES),
    "convgru": ("ConvGRU2d", (2, 4, (3, 1)), {"recompute": True, "dilation": 2}, IMAGES),
    "convlstm": ("ConvLSTM2d", (2, 4, 3, 2), {"peephole": True}, IMAGES),
    "convlstm_maps": ("ConvLSTM2d", (2, 4, 3), {"peephole": SIZE, "bias": False}, IMAGES),
}
CONVS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "conv2d": ("Conv2d", (4, 6, 3), {"padding": "same", "activation": "relu"}, (2, 4, 7, 6)),
    "conv2d_groups": ("Conv2d", (4, 6, (3, 2), 2, [[0, 1], [2, 1]], 1, 2), {}, (2, 4, 7, 6)),
    "conv2d_nhwc": ("Conv2d", (4, 6, 3), {"layout": "NHWC", "bias": False}, (2, 7, 6, 4)),
    "conv1d": ("Conv1d", (3, 4, 3), {"padding": "causal"}, (2, 3, 9)),
}
both = pytest.mark.parametrize("name", [*STACKS, *CONVS])
stacks = pytest.mark.parametrize("name", STACKS)


def pair(name: str, *, dtype: Any = np.float32) -> tuple[Any, Any, Any, Any]:
    """The layer, the module of tbptt_fast.nn, the module's parameters for the layer, and x."""
    kind, sizes, options, shape = {**STACKS, **CONVS}[name]
    module = getattr(nn, kind)(*sizes, **options, seed=0, dtype=dtype)
    if name.startswith("convlstm"):  # whose peepholes begin at zero
        rng = np.random.default_rng(1)
        for key, value in module.parameters().items():
            if "peephole" in key:
                value[...] = 0.3 * rng.standard_normal(value.shape)
    layer = getattr(layers, kind)(*sizes, **options, dtype=dtype)
    params = {key: jnp.asarray(value) for key, value in module.state_dict().items()}
    x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    return layer, module, params, x


@both
def test_parameters_are_those_of_nn(name: str) -> None:
    layer, module, _, _ = pair(name)
    params = layer.init(jax.random.key(0))
    wanted = module.parameters()
    assert layer.names == tuple(params)
    assert params.keys() == wanted.keys()
    for key, value in params.items():
        assert value.dtype == jnp.float32
        assert value.shape == wanted[key].shape, key
        bound = np.abs(wanted[key]).max()
        if "peephole" in key:
            assert not value.any()
        else:  # uniform within the same bound
            assert 0.5 * bound < np.abs(value).max() < 1.5 * bound, key


def test_first_values_are_uniform() -> None:
    params = layers.LSTM(64, 100, 2).init(jax.random.key(3))
    for value in params.values():
        assert np.abs(value).max() <= 0.1
        assert abs(float(value.mean())) < 0.01
        np.testing.assert_allclose(value.std(), 0.1 / 3**0.5, rtol=0.1)
    drawn = np.concatenate([value.ravel() for value in params.values()])
    assert len(np.unique(drawn)) > 0.9 * len(drawn)  # every parameter has draws of its own


def arguments(
    name: str, layer: Any, rng: np.random.Generator, dtype: Any
) -> tuple[Any, dict[str, Any]]:
    """A state that enters, and the masks of a pass."""
    shape = STACKS[name][3]
    sizes = (B,) if len(shape) == 3 else (B, SIZE)

    def normal(zeros: Any) -> Any:
        return jnp.asarray(rng.standard_normal(zeros.shape).astype(dtype))

    hx = jax.tree.map(normal, layer.zero_state(*sizes))
    return hx, {"is_init": rng.random((T, B)) < 0.2}


@stacks
@pytest.mark.parametrize("truncation", [None, 3, (2, 5)], ids=str)
def test_values_and_gradients_are_those_of_nn(name: str, truncation: Any) -> None:
    layer, module, params, x = pair(name)
    rng = np.random.default_rng(4)
    hx, masks = arguments(name, layer, rng, np.float32)
    y, state, tape = module.forward(x, jax.tree.map(np.asarray, hx), **masks)
    grad_y = rng.standard_normal(y.shape).astype(np.float32)
    scale = rng.uniform(0.5, 1.5, (T, B)).astype(np.float32)
    grads = module.backward(tape, grad_y, truncation=truncation, carry_scale=scale)

    def run(params: Any, x: Any, hx: Any) -> Any:
        options = {"truncation": truncation, "carry_scale": scale, **masks}
        (y, state), pull = jax.vjp(lambda *a: layer.apply(*a, **options), params, x, hx)
        return y, state, *pull((grad_y, jax.tree.map(jnp.zeros_like, state)))

    y2, state2, dparams, dx, dhx = jax.jit(run)(params, x, hx)
    for got, want in ((y2, y), (state2, state)):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert_close(a, b, "forward", length=I + H, name=name)
    length = T * B * I * H * (1 if len(x.shape) == 3 else 30)
    found = {**{f"d{key}": value for key, value in dparams.items()}, "dx": dx}
    wanted = {**{f"d{key}": value for key, value in grads.params.items()}, "dx": grads.x}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert_close(found[key], value, "gradient", length=length, name=key)
    for a, b in zip(jax.tree.leaves(dhx), jax.tree.leaves(grads.state), strict=True):
        assert_close(a, b, "gradient", length=length, name="dhx")


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_are_those_of_nn(name: str) -> None:
    layer, module, params, x = pair(name)
    y, _, tape = module.forward(x)
    grad_y = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    grads = module.backward(tape, grad_y)
    y2, pull = jax.vjp(layer.apply, params, x)
    dparams, dx = pull(grad_y)
    assert_close(y2, y, "forward", length=36)
    assert_close(dx, grads.x, "gradient", length=54)
    assert dparams.keys() == grads.params.keys()
    for key, value in grads.params.items():
        assert_close(dparams[key], value, "gradient", length=100, name=key)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_checkpoints_of_pytorch_fit(kind: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(I, H, 2)
    layer = getattr(layers, kind)(I, H, 2)
    params = {key: jnp.asarray(value.numpy()) for key, value in theirs.state_dict().items()}
    x = np.random.default_rng(6).standard_normal((T, B, I)).astype(np.float32)
    y, state = layer.apply(params, x)
    with torch.no_grad():
        want, last = theirs(torch.from_numpy(x))
    assert_close(y, want.numpy(), "forward", length=I + H)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        assert_close(a, b.numpy(), "forward", length=I + H)
    back = {key: torch.from_numpy(np.array(value)) for key, value in params.items()}
    theirs.load_state_dict(back)  # by names and shapes


@stacks
def test_a_carried_state_is_one_long_pass(name: str) -> None:
    layer, _, params, x = pair(name)
    whole, last = layer.apply(params, x)
    sizes = (B,) if x.ndim == 3 else (B, SIZE)
    state = layer.zero_state(*sizes)
    parts = []
    for piece in (x[:3], x[3:]):
        y, state = layer.apply(params, piece, state)
        parts.append(y)
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)


@both
def test_layers_are_static_arguments(name: str) -> None:
    layer, _, params, x = pair(name)
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer: Any, params: Any, x: Any) -> Any:
        traced.append(layer)
        return layer.apply(params, x)

    run(layer, params, x)
    again = dataclasses.replace(layer)
    assert again == layer
    assert again is not layer
    assert hash(again) == hash(layer)
    run(again, params, x)
    assert len(traced) == 1


def test_scan_over_windows_and_vmap() -> None:
    layer, _, params, x = pair("gru")
    pieces = jnp.stack([x, x[::-1], 2 * x])

    def loss(params: Any, pieces: Any) -> Any:
        def window(state: Any, piece: Any) -> Any:
            y, state = layer.apply(params, piece, state, truncation=2)
            return jax.lax.stop_gradient(state), (y**2).sum()

        return jax.lax.scan(window, layer.zero_state(B), pieces)[1].sum()

    found = jax.jit(jax.grad(loss))(params, pieces)
    wanted = {key: jnp.zeros_like(value) for key, value in params.items()}
    state = layer.zero_state(B)
    for piece in pieces:

        def one(params: Any, piece: Any = piece, state: Any = state) -> Any:
            y, state = layer.apply(params, piece, state, truncation=2)
            return (y**2).sum(), state

        grads, state = jax.grad(one, has_aux=True)(params)
        wanted = jax.tree.map(jnp.add, wanted, grads)
    for key, value in wanted.items():
        assert_close(found[key], value, "gradient", length=3 * T * B * H, name=key)

    y, state = jax.vmap(layer.apply, in_axes=(None, 0))(params, pieces)
    for i, piece in enumerate(pieces):
        want, last = layer.apply(params, piece)
        assert_close(y[i], want, "forward", length=I + H)
        assert_close(state[i], last, "forward", length=I + H)


def test_dropout_acts_between_layers_where_a_key_is_given() -> None:
    layer = layers.RNN(I, 400, 2, dropout=0.25)
    params = layer.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (T, B, I))
    plain, _ = dataclasses.replace(layer, dropout=0.0).apply(params, x)
    np.testing.assert_array_equal(layer.apply(params, x)[0], plain)
    first, same, other = (layer.apply(params, x, key=jax.random.key(n))[0] for n in (2, 2, 3))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.01

    # A second layer that passes its input on shows the masks.
    shown = {
        **{f"{key}_l0": params[f"{key}_l0"] for key in ("weight_ih", "weight_hh")},
        **{f"{key}_l{n}": jnp.zeros(400) for key in ("bias_ih", "bias_hh") for n in (0, 1)},
        "weight_ih_l1": jnp.eye(400),
        "weight_hh_l1": jnp.zeros((400, 400)),
    }
    relu = dataclasses.replace(layer, nonlinearity="relu")
    kept, _ = relu.apply(shown, x)
    dropped, _ = relu.apply(shown, x, key=jax.random.key(4))
    ratio = np.asarray(dropped)[np.asarray(kept) > 1e-3] / np.asarray(kept)[np.asarray(kept) > 1e-3]
    zero = ratio == 0
    assert abs(zero.mean() - 0.25) < 0.03
    np.testing.assert_allclose(ratio[~zero], 4 / 3, rtol=1e-5)


def test_the_reference_of_scan_computes_without_the_native_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, _, params, x = pair("lstm")
    want, _ = layer.apply(params, x, truncation=2)
    monkeypatch.setattr(backend._targets, "_AVAILABLE", False)
    found, _ = dataclasses.replace(layer, backend="scan").apply(params, x, truncation=2)
    assert_close(found, want, "forward", length=I + H)
    with pytest.raises(RuntimeError, match="lstm: tbptt_fast was built without its functions"):
        layer.apply(params, x)


def test_float64() -> None:
    with pytest.raises(ValueError, match="GRU: dtype: float64 needs jax_enable_x64"):
        layers.GRU(I, H, dtype=jnp.float64).init(jax.random.key(0))
    jax.config.update("jax_enable_x64", True)
    try:
        layer, module, params, x = pair("gru", dtype=np.float64)
        assert layer.init(jax.random.key(0))["weight_ih_l0"].dtype == jnp.float64
        assert_close(layer.apply(params, x)[0], module(x)[0], "forward", length=I + H)
        with pytest.raises(TypeError, match="gru: w_ih: expected float32, got float64"):
            layer.apply(params, x.astype(np.float32))
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "error", "match"),
    [
        ("RNN", (0, 4), {}, ValueError, "RNN: input_size: expected a positive integer, got 0"),
        ("GRU", (3, 4, 0), {}, ValueError, "GRU: num_layers: expected a positive integer, got 0"),
        ("RNN", (3, 4), {"nonlinearity": "elu"}, ValueError, "RNN: nonlinearity: expected 'tanh'"),
        ("LSTM", (3, 4), {"dropout": 0.5}, ValueError, "LSTM: dropout: acts between layers"),
        ("LSTM", (3, 4, 2), {"dropout": 1.0}, ValueError, r"dropout: expected a value in \[0, 1\)"),
        ("GRU", (3, 4), {"dtype": "float16"}, TypeError, "GRU: dtype: expected float32 or float64"),
        ("ConvRNN2d", (1, 2, 2), {}, ValueError, "ConvRNN2d: kernel_size: expected odd sizes"),
        ("ConvGRU2d", (1, 2, (3,)), {}, ValueError, "kernel_size: expected an integer or 2 of"),
        ("ConvGRU2d", (1, 2, 3), {"layout": "HWC"}, ValueError, "ConvGRU2d: layout: expected"),
        ("ConvLSTM2d", (1, 2, 3), {"peephole": (0, 2)}, ValueError, "peephole: expected a posit"),
        ("Conv2d", (3, 4, 3), {"groups": 2}, ValueError, "Conv2d: groups: expected a divisor"),
        ("Conv1d", (3, 4, 0), {}, ValueError, "Conv1d: kernel_size: expected a positive integer"),
    ],
)
def test_wrong_options(
    kind: str, sizes: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        getattr(layers, kind)(*sizes, **options)


def test_wrong_arguments() -> None:
    layer, _, params, x = pair("lstm")
    missing = {key: value for key, value in params.items() if key != "bias_hh_l1"}
    with pytest.raises(ValueError, match=r"LSTM: params: missing \['bias_hh_l1'\], unexpected"):
        layer.apply(missing, x)
    h, c = layer.zero_state(B)
    with pytest.raises(ValueError, match=r"LSTM: hx: expected a pair \(h, c\), got ArrayImpl"):
        layer.apply(params, x, h)
    with pytest.raises(ValueError, match=r"LSTM: hx: expected a pair \(h, c\), got 3 items"):
        layer.apply(params, x, (h, c, c))
    with pytest.raises(ValueError, match=r"LSTM: hx: expected shape \[3, ...\], got \[2, 3, 6\]"):
        layer.apply(params, x, (h, c[:2]))
    with pytest.raises(ValueError, match=r"lstm: c: expected shape \[3, 6\], got \[2, 6\]"):
        layer.apply(params, x, (h, c[:, :2]))
    conv, _, params, x = pair("conv2d")
    with pytest.raises(ValueError, match=r"Conv2d: params: missing \['bias'\]"):
        conv.apply({"weight": params["weight"]}, x)
