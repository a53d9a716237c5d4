"""NumPy arrays over the memory of parameters, gradients and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .._types import Array

Group = dict[str, Any]

_DTYPES = (torch.float32, torch.float64)


def check_tensor(tensor: Any, name: str) -> None:
    """Raise a TypeError unless NumPy can look at the tensor's memory, and the kernels use it."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the device cpu, got {tensor.device}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor (torch.strided), got {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {tensor.dtype}")


def dense_order(tensor: torch.Tensor, name: str) -> tuple[int, ...] | None:
    """The order of axes in which the memory is C-contiguous; None if they are in that order."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    if not tensor.permute(order).is_contiguous():
        raise ValueError(
            f"{name}: expected a tensor without gaps or overlaps in memory, "
            f"got shape {list(tensor.shape)} with strides {list(strides)}"
        )
    return order


def array_of(tensor: torch.Tensor, order: tuple[int, ...] | None) -> Array:
    """The tensor's own memory, its axes in the given order."""
    array: Array = tensor.detach().numpy()
    return array if order is None else array.transpose(order)


class ParameterView:
    """A parameter and its state as NumPy arrays over the tensors' memory, while that lasts."""

    __slots__ = (
        "array",
        "dtype",
        "fresh",
        "names",
        "order",
        "param",
        "pointer",
        "shape",
        "state_arrays",
        "state_tensors",
        "step",
        "strides",
    )

    def __init__(self, param: torch.Tensor, where: str) -> None:
        check_tensor(param, where)
        self.param = param
        self.pointer, self.dtype = param.data_ptr(), param.dtype
        self.shape, self.strides = param.shape, param.stride()
        self.order = dense_order(param, where)
        self.array = array_of(param, self.order)
        self.names: tuple[str, ...] = ()
        self.state_arrays: list[Array] = []
        self.state_tensors: list[tuple[str, torch.Tensor, int]] = []
        self.step: Array | None = None
        self.fresh = False  # its state was made for this step

    def is_current(self, param: torch.Tensor, state: Any, names: tuple[str, ...]) -> bool:
        """Whether these are still the tensors, and still their memory."""
        return (
            self.param is param
            and self.names == names
            and (state is not None or not self.state_tensors)
            and self.pointer == param.data_ptr()
            and self.dtype is param.dtype
            and self.shape == param.shape
            and self.strides == param.stride()
            and all(
                state.get(name) is tensor and tensor.data_ptr() == pointer
                for name, tensor, pointer in self.state_tensors
            )
        )

    def grad_array(self, grad: torch.Tensor, where: Callable[[], str]) -> Array:
        """The gradient in the parameter's order; a copy only if it lies in another order."""
        try:
            if grad.requires_grad:
                grad = grad.detach()
            if self.order is None:
                array: Array = (grad if grad.is_contiguous() else grad.contiguous()).numpy()
            else:
                array = np.ascontiguousarray(grad.numpy().transpose(self.order))
        except (RuntimeError, TypeError):
            check_tensor(grad, f"gradient of {where()}")
            raise
        if array.dtype != self.array.dtype:
            raise TypeError(
                f"gradient of {where()}: expected dtype {self.array.dtype}, got {array.dtype}"
            )
        if array.shape != self.array.shape:
            raise ValueError(
                f"gradient of {where()}: expected shape {list(self.shape)}, got {list(grad.shape)}"
            )
        return array


class Batch:
    """Parameters of one group and dtype that a single native call updates."""

    def __init__(self, group: Group, stage: int = 1, states: int = 0) -> None:
        self.group = group
        self.stage = stage
        self.views: list[ParameterView] = []
        self.params: list[Array] = []
        self.grads: list[Array] = []
        self.states: list[list[Array]] = [[] for _ in range(states)]

    def add(self, view: ParameterView, grad: Array) -> None:
        self.views.append(view)
        self.params.append(view.array)
        self.grads.append(grad)
        for arrays, array in zip(self.states, view.state_arrays, strict=True):
            arrays.append(array)

    def state(self, index: int) -> list[Array] | None:
        return self.states[index] if index < len(self.states) else None
