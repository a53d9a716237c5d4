"""Conv1d and Conv2d with torch.nn's interface; part of `tbptt_fast.torch`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._bridge import missing_device, takes
from .convolution_ops import conv1d, conv2d


class _Convolution(nn.modules.conv._ConvNd):
    """What both have in common; parameters, padding modes and checks are torch.nn's."""

    _original: type[nn.modules.conv._ConvNd]

    def missing_kernel(self) -> str | None:
        """Why torch's own code runs, or None where the native kernels do."""
        if (reason := missing_device(self.weight)) is not None:
            return f"parameters are on {self.weight.device}: {reason}"
        if not takes(self.weight):
            return f"parameters are {self.weight.dtype}, not float32 or float64"
        return None

    def extra_repr(self) -> str:
        reason = self.missing_kernel()
        path = "tbptt_fast" if reason is None else f"torch: {reason}"
        return f"{super().extra_repr()}, backend={path}"  # type: ignore[no-untyped-call]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.missing_kernel() is not None:
            result: Tensor = self._original._conv_forward(self, input, weight, bias)
            return result
        self._check_input(input, weight)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            sides = self._reversed_padding_repeated_twice
            input, padding = nn.functional.pad(input, sides, mode=self.padding_mode), 0
        self._check_size(input, weight, padding)
        run = conv1d if weight.dim() == 3 else conv2d
        return run(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _check_size(self, input: Tensor, weight: Tensor, padding: Any) -> None:
        if padding == "same":
            return
        sides = padding if isinstance(padding, tuple) else (0,) * (weight.dim() - 2)
        kernel = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        sizes = [n + 2 * p for n, p in zip(input.shape[-len(kernel) :], sides, strict=True)]
        if any(k > n for k, n in zip(kernel, sizes, strict=True)):
            raise RuntimeError(
                f"Calculated padded input size per channel: {sizes}. Kernel size: {kernel}. "
                "Kernel size can't be greater than actual input size"
            )

    def _check_input(self, input: Tensor, weight: Tensor) -> None:
        rank, name = weight.dim(), self._original.__name__.lower()
        if input.dim() not in (rank - 1, rank):
            raise RuntimeError(
                f"Expected {rank - 1}D (unbatched) or {rank}D (batched) input to {name}, "
                f"but got input of size: {list(input.shape)}"
            )
        if input.shape[1 - rank] != self.in_channels:
            raise RuntimeError(
                f"Given groups={self.groups}, weight of size {list(weight.shape)}, expected input"
                f"{list(input.shape)} to have {self.in_channels} channels, "
                f"but got {input.shape[1 - rank]} channels instead"
            )
        autocast = torch.is_autocast_enabled("cuda" if input.is_cuda else "cpu")
        if input.dtype != weight.dtype and not autocast:
            raise RuntimeError(
                f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same"
            )
        if input.device != weight.device:
            raise RuntimeError(
                f"Input device ({input.device}) and weight device ({weight.device}) "
                "should be the same"
            )


class Conv1d(_Convolution, nn.Conv1d):
    """torch.nn.Conv1d on native kernels.

    The constructor, parameters, initialisation, state_dict and padding modes are torch.nn.Conv1d's.

    >>> import torch
    >>> Conv1d(3, 5, kernel_size=4, padding="same")(torch.ones(2, 3, 9)).shape
    torch.Size([2, 5, 9])
    """

    _original = nn.Conv1d


class Conv2d(_Convolution, nn.Conv2d):
    """torch.nn.Conv2d on native kernels, in either memory format.

    The constructor, parameters, initialisation, state_dict and padding modes are torch.nn.Conv2d's.

    >>> import torch
    >>> layer = Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
    >>> layer(torch.ones(2, 3, 9, 9)).shape, layer
    (torch.Size([2, 8, 5, 5]), Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), \
backend=tbptt_fast))
    """

    _original = nn.Conv2d
