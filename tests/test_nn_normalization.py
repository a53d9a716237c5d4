"""The modules of normalization against PyTorch's: modes, running values, state dicts, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import checkpoint, nn

from .cases import assert_close, assert_identical
from .norm_cases import dtypes
from .test_batch_norm import channels_last
from .test_boundary import message


def torch_state(module: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.6, None])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 7)], ids=str)
def test_batch_norm_trains_as_in_torch(dtype: str, momentum: Any, shape: Any) -> None:
    """Three steps, with the state dict moved to PyTorch at first and back in the end."""
    torch = pytest.importorskip("torch")
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    ours, theirs = nn.BatchNorm2d(5, 1e-3, momentum, dtype=dtype), kind(5, 1e-3, momentum)
    theirs.to(getattr(torch, dtype))
    rng = np.random.default_rng(1)
    for parameter in ours.parameters().values():
        parameter[...] = rng.uniform(0.5, 1.5, parameter.shape)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in ours.state_dict().items()})
    for _ in range(3):
        x, grad = (rng.normal(size=shape).astype(dtype) + np.array(2, dtype) for _ in range(2))
        y, state, tape = ours.forward(x)
        grads = ours.backward(tape, grad)
        leaf = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        expected = theirs(leaf)
        expected.backward(torch.tensor(grad))
        assert state is None
        assert_close(y, expected.detach().numpy(), "forward", length=x.size)
        assert_close(grads.x, leaf.grad.numpy(), "gradient", length=x.size)
        for name, parameter in theirs.named_parameters():
            gradient = grads.params[name]
            assert_close(gradient, parameter.grad.numpy(), "gradient", length=x.size, name=name)
    state = torch_state(theirs)
    assert list(ours.state_dict()) == list(state)
    for name, array in ours.state_dict().items():
        assert array.dtype == state[name].dtype
        assert_close(
            array.astype("float64"),
            state[name].astype("float64"),
            "forward",
            length=x.size,
            eps=float(np.finfo(dtype).eps),
            name=name,
        )
    fresh = nn.BatchNorm2d(5, 1e-3, momentum, dtype=dtype)
    fresh.load_state_dict(state)
    assert_identical(
        {n: np.atleast_1d(a) for n, a in fresh.state_dict().items()},
        {n: np.atleast_1d(a) for n, a in state.items()},
    )
    theirs.eval()
    wanted = theirs(torch.from_numpy(x)).detach().numpy()
    for y in (fresh(x)[0], fresh.eval().forward(x)[0]):
        assert_close(y, wanted, "forward", length=1)
    assert fresh.state_dict()["num_batches_tracked"] == 3


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"bias": False}], ids=str)
def test_layer_norm_module_equals_torch(options: Any) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = nn.LayerNorm(6, **options), torch.nn.LayerNorm(6, **options)
    rng = np.random.default_rng(0)
    for parameter in ours.parameters().values():
        parameter[...] = rng.uniform(0.5, 1.5, parameter.shape)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in ours.state_dict().items()})
    x, grad = (rng.normal(size=(7, 3, 6)).astype(np.float32) for _ in range(2))
    y, _, tape = ours.forward(x)
    grads = ours.backward(tape, grad)
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    expected.backward(torch.tensor(grad))
    assert_close(y, expected.detach().numpy(), "forward", length=6)
    assert_close(grads.x, leaf.grad.numpy(), "gradient", length=6)
    assert list(grads.params) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        assert_close(grads.params[name], parameter.grad.numpy(), "gradient", length=x.size)
    ours.load_state_dict(torch_state(theirs))


def test_batch_norm_modes() -> None:
    """A call and evaluation use the running values and change nothing; training changes them."""
    norm = nn.BatchNorm2d(3, dtype="float64")
    x = np.random.default_rng(0).normal(2.0, 3.0, (5, 3, 2, 2))
    kept = norm.state_dict()
    np.testing.assert_array_equal(norm(x)[0], norm.eval().forward(x)[0])
    np.testing.assert_allclose(norm(x)[0], x / np.sqrt(1 + 1e-5))
    for name, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, kept[name])
    y = norm.train().forward(x)[0]
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, rtol=1e-5)
    assert norm.state_dict()["num_batches_tracked"] == 1
    np.testing.assert_allclose(
        norm.state_dict()["running_mean"], 0.1 * x.mean(axis=(0, 2, 3)), rtol=1e-12
    )
    single = norm.eval().forward(x[:1, :, :1, :1])[0]
    assert single.shape == (1, 3, 1, 1)


def test_batch_norm_without_running_values_always_uses_the_batch() -> None:
    norm = nn.BatchNorm2d(3, affine=False, track_running_stats=False, dtype="float64")
    x = np.random.default_rng(0).normal(2.0, 3.0, (5, 3))
    assert norm.state_dict() == {}
    y, _, tape = norm.forward(x)
    np.testing.assert_array_equal(norm(x)[0], y)
    np.testing.assert_array_equal(norm.eval().forward(x)[0], y)
    grads = norm.backward(tape, x)
    assert grads.params == {}
    assert norm.backward(tape, x, needs_x=False).x is None
    np.testing.assert_array_equal(
        grads.x,
        tbptt_fast.batch_norm_backward(x, x, None, *tape.saved[1:3], training=True).x,
    )


def test_layouts_of_the_module_agree() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32)
    first, last = nn.BatchNorm2d(3), nn.BatchNorm2d(3, layout="NHWC")
    y, _, tape = first.forward(x)
    other, _, other_tape = last.forward(channels_last(x))
    assert_close(np.moveaxis(other, -1, 1), y, "forward", length=1)
    grads, others = first.backward(tape, x), last.backward(other_tape, channels_last(x))
    assert others.x is not None
    assert_close(np.moveaxis(others.x, -1, 1), grads.x, "gradient", length=40)


def test_a_chain_trains_saves_and_loads(tmp_path: Any) -> None:
    """Buffers are in the state dict of the chain, not among what an optimizer trains."""

    def make(seed: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(4, 6, seed=seed), nn.BatchNorm2d(6), nn.Dropout(0.2, seed=1), nn.LayerNorm(6)
        )

    model, x = make(1), np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    y, _, tape = model.forward(x)
    grads = model.backward(tape, y)
    assert list(grads.params) == list(model.parameters())
    names = [name for name in model.state_dict() if name.startswith("1.")]
    assert names == [
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    checkpoint.save(tmp_path / "model", model.state_dict())
    other = make(2)
    other.load_state_dict(checkpoint.load(tmp_path / "model"))
    assert_identical({"y": other(x)[0]}, {"y": model(x)[0]})
    kept = other.state_dict()
    broken = {**model.state_dict(), "1.num_batches_tracked": np.zeros(())}
    with pytest.raises(
        TypeError, match=message("…1.num_batches_tracked: expected dtype int64, got float64")
    ):
        other.load_state_dict(broken)
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, kept[name])


def test_modules_name_what_is_wrong() -> None:
    norm, rows = nn.BatchNorm2d(3), nn.LayerNorm(3)
    f32: Callable[..., Any] = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features: expected a positive"),
        (lambda: nn.BatchNorm2d(3, eps=-1), ValueError, "BatchNorm2d: eps: expected …got -1"),
        (lambda: nn.BatchNorm2d(3, momentum=2), ValueError, "BatchNorm2d: momentum: expected …2"),
        (lambda: nn.BatchNorm2d(3, layout="CN"), ValueError, "BatchNorm2d: layout: …got 'CN'"),
        (lambda: nn.BatchNorm2d(3, dtype=int), TypeError, "BatchNorm2d: dtype: …got int64"),
        (lambda: norm.forward(f32(4, 2)), ValueError, "BatchNorm2d: x: expected shape [N, 3], got"),
        (lambda: norm.forward(f32(4, 2, 3, 3)), ValueError, "BatchNorm2d: x: …[N, 3, H, W], got"),
        (lambda: norm.forward(f32(2, 3, 4)), ValueError, "BatchNorm2d: x: …[N, 3, H, W], got"),
        (lambda: norm.forward(f32(1, 3)), ValueError, "batch_norm: x: expected at least 2 values"),
        (lambda: norm.forward(np.ones((4, 3))), TypeError, "BatchNorm2d: x: …float32, got float64"),
        (lambda: norm.forward(f32(4, 3), 0), ValueError, "BatchNorm2d: state: expected None"),
        (lambda: nn.LayerNorm(-3), ValueError, "LayerNorm: normalized_shape: expected a positive"),
        (lambda: nn.LayerNorm(3, eps=np.nan), ValueError, "LayerNorm: eps: expected …got nan"),
        (lambda: rows.forward(f32(4, 2)), ValueError, "LayerNorm: x: expected shape [..., 3], got"),
    ]
    for call, error, text in wrong:
        with pytest.raises(error, match=message(text)):
            call()
    assert norm.state_dict()["num_batches_tracked"] == 0
    tape = norm.forward(f32(4, 3))[2]
    with pytest.raises(TypeError, match=message("BatchNorm2d.backward: grad_y: expected an array")):
        norm.backward(tape, None)
