"""Native layers in place of torch.nn's, inside a model that exists; part of `tbptt_fast.torch`."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import nn

from .convolution import Conv1d, Conv2d
from .recurrent import GRU, LSTM, RNN

_NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
}
_ORIGINAL = {native: original for original, native in _NATIVE.items()}

Model = TypeVar("Model", bound=nn.Module)


class SwapReport(NamedTuple):
    """What `accelerate` did: names of the layers, as in `model.named_modules()`.

    swapped: name → class, of the layers that now run native kernels.
    left: name → reason, of the layers of these kinds that were left alone.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{name or '(model)'}: {kind} on tbptt_fast" for name, kind in self.swapped.items()
        ]
        lines += [f"{name or '(model)'}: left alone, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "no recurrent layer or convolution found"


def _reason_to_leave(module: nn.Module) -> str | None:
    native = _NATIVE[type(module)]
    reason: str | None = native.missing_kernel(module)  # type: ignore[attr-defined]
    return reason


def accelerate(model: nn.Module) -> SwapReport:
    """Let the RNN, GRU, LSTM, Conv1d and Conv2d layers of a model run on native kernels.

    Layers change their class in place: they stay the same objects, with their parameters, hooks,
    names, device and training mode, and optimizers that hold the parameters keep them. A layer
    without a native kernel is left alone.

    Args:
        model: any module; itself, too, if it is such a layer.

    Returns:
        SwapReport(swapped, left), which prints as a list.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.LSTM(4, 8, proj_size=2))
    >>> print(accelerate(model))
    0: Conv2d on tbptt_fast
    1: left alone, projections (proj_size) have no kernel
    >>> type(decelerate(model)[0])
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"accelerate: model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    report = SwapReport({}, {})
    for name, module in model.named_modules():
        kind = type(module)
        if kind in _NATIVE:
            reason = _reason_to_leave(module)
            if reason is None:
                module.__class__ = _NATIVE[kind]
                report.swapped[name] = kind.__name__
            else:
                report.left[name] = reason
        elif isinstance(module, tuple(_NATIVE)) and kind not in _ORIGINAL:
            base = next(b.__name__ for b in kind.__mro__ if b in _NATIVE)
            report.left[name] = f"{kind.__name__} is a subclass of {base}, with code of its own"
    return report


def decelerate(model: Model) -> Model:
    """Undo `accelerate`: native layers become torch.nn's again, in place.

    Returns:
        The model itself.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    >>> import torch
    >>> model = torch.nn.GRU(3, 4)
    >>> _ = accelerate(model)
    >>> type(decelerate(model)).__module__
    'torch.nn.modules.rnn'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"decelerate: model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    for module in model.modules():
        if type(module) in _ORIGINAL:
            module.__class__ = _ORIGINAL[type(module)]
    return model
