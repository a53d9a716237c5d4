"""Softmax, the embedding and the losses in a device's memory; part of `tbptt_fast.cuda`.

The host does not look at the arrays' values: an id or a target that is none gives NaN, no error.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

from ..ops_layers import Reduction
from . import _module
from ._docs import describe
from ._places import place_of


def softmax(x: Any, *, stream: Any = None) -> Any:
    return _module.native().softmax(place_of(x, stream), x)


def softmax_backward(grad_out: Any, y: Any, *, stream: Any = None) -> Any:
    return _module.native().softmax_backward(place_of(y, stream), grad_out, y)


def embedding(ids: Any, w: Any, *, stream: Any = None) -> Any:
    return _module.native().embedding(place_of(w, stream), ids, w)


def embedding_backward(
    grad_out: Any, ids: Any, num_embeddings: SupportsIndex, *, stream: Any = None
) -> Any:
    place = place_of(grad_out, stream)
    return _module.native().embedding_backward(place, grad_out, ids, num_embeddings)


def softmax_cross_entropy(
    logits: Any,
    targets: Any,
    *,
    weights: Any = None,
    ignore_index: SupportsIndex = -100,
    reduction: Reduction = "mean",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().softmax_cross_entropy, place_of(logits, stream)
    return run(place, logits, targets, weights, ignore_index, reduction)  # type: ignore[no-any-return]


def mse_loss(
    prediction: Any,
    target: Any,
    *,
    weights: Any = None,
    reduction: Reduction = "mean",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().mse_loss, place_of(prediction, stream)
    return run(place, prediction, target, weights, reduction)  # type: ignore[no-any-return]


def l1_loss(
    prediction: Any,
    target: Any,
    *,
    weights: Any = None,
    reduction: Reduction = "mean",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().l1_loss, place_of(prediction, stream)
    return run(place, prediction, target, weights, reduction)  # type: ignore[no-any-return]


def huber_loss(
    prediction: Any,
    target: Any,
    *,
    delta: float = 1.0,
    weights: Any = None,
    reduction: Reduction = "mean",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().huber_loss, place_of(prediction, stream)
    return run(place, prediction, target, delta, weights, reduction)  # type: ignore[no-any-return]


def hinge_loss(
    prediction: Any,
    target: Any,
    *,
    weights: Any = None,
    reduction: Reduction = "mean",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().hinge_loss, place_of(prediction, stream)
    return run(place, prediction, target, weights, reduction)  # type: ignore[no-any-return]


def _describe() -> None:
    describe(
        softmax,
        first="x",
        args="x: [..., C].",
        returns="[..., C], by x's library.",
        example="x = torch.zeros(2, 4, device='cuda')\nassert cuda.softmax(x)[0, 0].item() == 0.25",
    )
    describe(
        softmax_backward,
        first="y",
        args="grad_out, y: [..., C].",
        returns="[..., C], by y's library.",
        example="y = cuda.softmax(torch.zeros(2, 4, device='cuda'))\n"
        "assert cuda.softmax_backward(torch.ones_like(y), y).abs().max().item() == 0",
    )
    describe(
        embedding,
        first="w",
        args="ids: [...], int32 or int64.\n        w: [N, D].",
        returns="[..., D], by w's library; a row of NaN for an id that is not in [0, N).",
        example="w = torch.tensor([[0.0, 1.0], [2.0, 3.0]], device='cuda')\n"
        "ids = torch.tensor([1, 0], device='cuda')\n"
        "assert cuda.embedding(ids, w).tolist() == [[2.0, 3.0], [0.0, 1.0]]",
    )
    describe(
        embedding_backward,
        first="grad_out",
        args="grad_out: [..., D].\n        ids: [...], int32 or int64, at most 2**31 - 4096 of them.",
        returns="[N, D], by grad_out's library; NaN throughout where an id is not in [0, N).",
        example="grad, ids = torch.ones(3, 2, device='cuda'), torch.ones(3, device='cuda')\n"
        "grad_w = cuda.embedding_backward(grad, ids.long(), 2)\n"
        "assert grad_w.tolist() == [[0.0, 0.0], [3.0, 3.0]]",
    )
    describe(
        softmax_cross_entropy,
        first="logits",
        args="logits: [..., C].\n        targets: [...], int32 or int64.\n"
        "        weights: [...] or None.",
        returns='The loss, float64 [] (with reduction "none" [...] of logits\' dtype), and the\n'
        "        gradient [..., C], both by logits' library. A row whose target is neither in\n"
        "        [0, C) nor ignore_index has a loss and gradients of NaN.",
        example="logits = torch.zeros(1, 4, device='cuda')\n"
        "targets = torch.tensor([1], device='cuda')\n"
        "loss, grad = cuda.softmax_cross_entropy(logits, targets)\n"
        "assert grad.tolist() == [[0.25, -0.75, 0.25, 0.25]]",
    )
    for function in (mse_loss, l1_loss, huber_loss, hinge_loss):
        name = function.__name__
        signs = " The values of target are not\n        checked." if name == "hinge_loss" else ""
        describe(
            function,
            first="prediction",
            args=f"prediction, target: [..., D].\n        weights: [...] or None.{signs}",
            returns='The loss, float64 [] (with reduction "none" [..., D] of the same dtype), and\n'
            "        the gradient [..., D], both by prediction's library.",
            example="x = torch.ones(3, 2, device='cuda')\n"
            f"loss, grad = cuda.{name}(x, x)\n"
            "assert loss.item() == 0 and grad.shape == x.shape",
        )


_describe()
