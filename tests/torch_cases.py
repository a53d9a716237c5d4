"""What the tests of the PyTorch backend share: pairs of torch.nn's modules and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402

KINDS = ("RNN", "GRU", "LSTM")


def leaves(result: Any) -> list[Any]:
    """The tensors in nested tuples, lists and packed sequences."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return [result.data]
    return [] if result is None else [leaf for item in result for leaf in leaves(item)]


def close(given: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """All tensors are equal, up to `tolerance` of the greatest element."""
    given, expected = leaves(given), leaves(expected)
    assert len(given) == len(expected)
    for a, b in zip(given, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.numel():
            scale = max(1.0, b.detach().abs().max().item())
            assert (a - b).abs().max().item() <= tolerance * scale


def pair(kind: str, *arguments: Any, dtype: Any = None, **options: Any) -> tuple[Any, Any]:
    """torch.nn's module and ours with the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(*arguments, **options).to(dtype or torch.float32)
    mine = getattr(ours, kind)(*arguments, **options).to(dtype or torch.float32)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def results_and_gradients(module: Any, call: Callable[[], Any], inputs: Any = ()) -> list[Any]:
    """Outputs, gradients by `inputs` and by the parameters, for fixed random output gradients."""
    tensors = [*leaves(inputs), *module.parameters()]
    for tensor in tensors:
        tensor.grad = None
    result = leaves(call())
    torch.manual_seed(1)
    # in the order of indices, whatever that of the memory is
    torch.autograd.backward(result, [torch.randn(r.shape, dtype=r.dtype) for r in result])
    return [*result, *(t.grad for t in tensors)]
