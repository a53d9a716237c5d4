"""The functions that XLA calls on GPUs, on the emulated device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tbptt_fast as tf
from tbptt_fast.cuda import _module

from .cuda_cases import EmulatedDevice, emulated_module

jax = pytest.importorskip("jax")
backend = pytest.importorskip("tbptt_fast.jax")
_targets = pytest.importorskip("tbptt_fast.jax._targets")

PREFIX = "emulated_tbptt_fast_"


def module_with_jax() -> Any:
    """The emulated module."""
    module = emulated_module()
    if not hasattr(module, "jax_targets"):
        pytest.skip("the emulated CUDA kernels are built without their functions for JAX")
    return module


@pytest.fixture
def on_device(emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """XLA's programs for the host call the device's functions, which are the host's, too."""
    for name, function in module_with_jax().jax_targets().items():
        jax.ffi.register_ffi_target(f"emulated_{name}", function, platform="cpu")
    monkeypatch.setattr(_targets, "PREFIX", PREFIX)
    jax.clear_caches()
    with jax.default_matmul_precision("highest"):
        yield
    jax.clear_caches()


def draw(rng: np.random.Generator, *shape: int) -> Any:
    return (rng.standard_normal(shape) / 2).astype(np.float32)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("truncation", [None, 3, (2, 5)])
def test_recurrent(on_device: None, cell: str, gates: int, truncation: Any) -> None:
    rng = np.random.default_rng(0)
    steps, batch, inputs, hidden = 11, 3, 5, 8
    x, w_ih = draw(rng, steps, batch, inputs), draw(rng, gates * hidden, inputs)
    w_hh, b = draw(rng, gates * hidden, hidden), draw(rng, gates * hidden)
    states = (draw(rng, batch, hidden), draw(rng, batch, hidden))
    hx = states if cell == "lstm" else states[0]
    is_init = rng.random((steps, batch)) < 0.2
    grad = draw(rng, steps, batch, hidden)
    out, hx_n, tape = getattr(tf, f"{cell}_forward")(x, hx, w_ih, w_hh, b, None, is_init=is_init)
    expected = getattr(tf, f"{cell}_backward")(tape, grad, hx_n, truncation=truncation)

    def layer(*operands: Any) -> Any:
        x, hx, w_ih, w_hh, b = operands
        options = {"is_init": is_init, "truncation": truncation}
        return getattr(backend, cell)(x, hx, w_ih, w_hh, b, None, **options)

    (found, found_n), pullback = jax.vjp(layer, x, hx, w_ih, w_hh, b)
    grads = pullback((grad, jax.tree.map(jax.numpy.asarray, hx_n)))
    close(found, out)
    for one, other in zip(jax.tree.leaves(found_n), jax.tree.leaves(hx_n), strict=True):
        close(one, other)
    wanted = jax.tree.leaves([expected.x, expected.hx, expected.w_ih, expected.w_hh, expected.b_ih])
    for one, other in zip(jax.tree.leaves(grads), wanted, strict=True):
        close(one, other)


@pytest.mark.parametrize("empty", [(0, 2), (3, 0)])
def test_nothing_to_walk(on_device: None, empty: tuple[int, int]) -> None:
    steps, batch = empty
    rng = np.random.default_rng(1)
    x, h = np.zeros((steps, batch, 4), np.float32), draw(rng, batch, 6)
    w_ih, w_hh = draw(rng, 18, 4), draw(rng, 18, 6)
    (_, h_n), pullback = jax.vjp(lambda h, w: backend.gru(x, h, w, w_hh), h, w_ih)
    by_h, by_w = pullback((np.zeros((steps, batch, 6), np.float32), h_n))
    np.testing.assert_array_equal(h_n, h)
    np.testing.assert_array_equal(by_h, h)
    assert not by_w.any()


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_convolution(on_device: None, activation: Any, layout: Any) -> None:
    rng = np.random.default_rng(2)
    x = draw(rng, 2, 4, 9, 7) if layout == "NCHW" else draw(rng, 2, 9, 7, 4)
    w, b = draw(rng, 6, 2, 3, 3), draw(rng, 6)
    options: Any = {"stride": (2, 1), "padding": "same", "groups": 2, "activation": activation}
    y = tf.conv2d(x, w, b, layout=layout, **options)
    grad = draw(rng, *y.shape)
    expected = tf.conv2d_backward(
        grad, x, w, y=None if activation is None else y, layout=layout, **options
    )
    found, pullback = jax.vjp(lambda *a: backend.conv2d(*a, layout=layout, **options), x, w, b)
    close(found, y)
    for one, other in zip(pullback(grad), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("cell", "gates"), [("convrnn", 1), ("convgru", 3), ("convlstm", 4)])
def test_convrecurrent(on_device: None, cell: str, gates: int, recompute: bool) -> None:
    rng = np.random.default_rng(3)
    x, w_ih = draw(rng, 4, 2, 3, 6, 5), draw(rng, gates * 4, 3, 3, 3)
    w_hh = draw(rng, gates * 4, 4, 3, 3)
    more = {"peephole": draw(rng, 3, 4)} if cell == "convlstm" else {}
    out, _, tape = getattr(tf, f"{cell}_forward")(x, None, w_ih, w_hh, recompute=recompute, **more)
    grad = draw(rng, *out.shape)
    expected = getattr(tf, f"{cell}_backward")(tape, grad, truncation=(1, 2))

    def layer(x: Any, w_ih: Any, w_hh: Any, more: Any) -> Any:
        options = {"truncation": (1, 2), "recompute": recompute}
        return getattr(backend, cell)(x, None, w_ih, w_hh, **more, **options)[0]

    found, pullback = jax.vjp(layer, x, w_ih, w_hh, more)
    close(found, out)
    wanted = [expected.x, expected.w_ih, expected.w_hh]
    wanted += [expected.peephole] if more else []
    for one, other in zip(jax.tree.leaves(pullback(grad)), wanted, strict=True):
        close(one, other)


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_programs_for_gpus(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """What XLA is given for a GPU, on a machine that has none."""
    monkeypatch.setattr(_module, "native", module_with_jax)
    module_with_jax()
    _targets.register_cuda.cache_clear()
    x, w_hh = np.ones((3, 2, 4), np.float32), np.ones((20, 5), np.float32)

    def total(w_ih: Any) -> Any:
        return backend.lstm(x, None, w_ih, w_hh)[0].sum()

    with jax.default_matmul_precision(precision):
        traced = jax.jit(jax.grad(total)).trace(np.ones((20, 4), np.float32))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("tbptt_fast_recurrent_forward", "tbptt_fast_recurrent_backward"):
        assert program.count(f"@{name}") == 1
    assert program.count(f"exact = {'true' if precision == 'highest' else 'false'}") == 2
    _targets.register_cuda.cache_clear()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise RuntimeError("tbptt_fast.cuda: no NVIDIA driver was found")

    monkeypatch.setattr(_module, "native", missing)
    _targets.register_cuda.cache_clear()
    traced = jax.jit(lambda x: backend.conv1d(x, x)).trace(np.ones((1, 1, 3), np.float32))
    with pytest.raises(RuntimeError, match="no NVIDIA driver was found"):
        traced.lower(lowering_platforms=("cuda",))
