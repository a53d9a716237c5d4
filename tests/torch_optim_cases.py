"""What the tests of the optimizers for PyTorch share: the cases, and steps of both sides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from .cases import DTYPES, assert_close

torch = pytest.importorskip("torch")
optim = pytest.importorskip("tbptt_fast.torch.optim")

# Around the lanes and the blocks of the kernels, no element, no dimension, images.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (7,),
    (0, 4),
    (33,),
    (4097,),
    (90, 91),
    (8, 3, 5, 5),
)
STEPS = 4

# The class and its options. With weight decay a gradient may cancel to nearly nothing; a large eps
# then keeps its rounding error from being divided by itself.
DECAY = {"weight_decay": 0.1, "eps": 0.1}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-decay": ("SGD", {"weight_decay": 0.1, "maximize": True}),
    "sgd-momentum": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd-dampening": ("SGD", {"momentum": 0.9, "dampening": 0.4}),
    "sgd-nesterov": ("SGD", {"momentum": 0.8, "nesterov": True, "maximize": True}),
    "rmsprop": ("RMSprop", {"maximize": True}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.9, "alpha": 0.9, **DECAY}),
    "rmsprop-centered": ("RMSprop", {"centered": True, "alpha": 0.8, "eps": 0.1}),
    "rmsprop-both": ("RMSprop", {"centered": True, "momentum": 0.5, **DECAY}),
    "adam": ("Adam", {"maximize": True}),
    "adam-decay": ("Adam", {"betas": (0.8, 0.95), **DECAY}),
    "adam-amsgrad": ("Adam", {"betas": (0.8, 0.5), "amsgrad": True, "eps": 0.1}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adamw-amsgrad": ("AdamW", {"amsgrad": True, "betas": (0.5, 0.5), **DECAY}),
}
CLIPS = (None, 0.5, 1e6)

all_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
classes = pytest.mark.parametrize("kind", ["SGD", "RMSprop", "Adam", "AdamW"])


def draw(
    seed: int, dtype: str = "float32", shapes: Iterable[tuple[int, ...]] = SHAPES
) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(np.array(rng.standard_normal(s), dtype)) for s in shapes]


def parameters(dtype: str = "float32", shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    return [torch.nn.Parameter(values) for values in draw(0, dtype, shapes)]


def set_grads(params: Sequence[Any], seed: int, missing: Sequence[int] = ()) -> None:
    """The same values for every list of parameters of the same shapes, whatever their dtype."""
    grads = draw(seed, "float64", [tuple(p.shape) for p in params])
    for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
        p.grad = None if i in missing else torch.empty_like(p).copy_(grad)


def step_both(
    ours: tuple[Any, list[Any]],
    theirs: tuple[Any, list[Any]],
    seed: int,
    missing: Sequence[int] = (),
) -> None:
    """One step of each; torch's clips by the max_norm of ours."""
    for optimizer, params in (ours, theirs):
        set_grads(params, seed, missing)
        if optimizer is theirs[0]:
            limit = math.inf if ours[0].max_norm is None else ours[0].max_norm
            norm = torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], limit)
        optimizer.step()
    assert ours[0].grad_norm == pytest.approx(float(norm), rel=1e-5)


def assert_same(
    ours: Sequence[Any], theirs: Sequence[Any], steps: int = STEPS, eps: float | None = None
) -> None:
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype == q.dtype
        assert_close(p.detach().numpy(), q.detach().numpy(), "gradient", length=steps**2, eps=eps)


def assert_same_state(ours: Any, theirs: Any, eps: float | None = None) -> None:
    """State dicts of the same entries, names, types and, up to rounding, values."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, entries in a["state"].items():
        assert list(entries) == list(b["state"][key])
        for name, tensor in entries.items():
            other = b["state"][key][name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
            assert not tensor.numel() or tensor.stride() == other.stride(), name
            assert_close(
                tensor.numpy(), other.numpy(), "gradient", length=STEPS**2, eps=eps, name=name
            )


def pair(
    name: str, dtype: str = "float32", **options: Any
) -> tuple[tuple[Any, list[Any]], tuple[Any, list[Any]]]:
    """Ours and torch's over equal parameters."""
    kind, more = OPTIMIZERS[name]
    own, other = parameters(dtype), parameters(dtype)
    ours = getattr(optim, kind)(own, lr=0.05, **more, **options)
    theirs = getattr(torch.optim, kind)(other, lr=0.05, **more)
    return (ours, own), (theirs, other)
