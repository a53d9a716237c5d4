"""Arrays over the memory of parameters, gradients and the optimizer's state.

On the CPU they are NumPy's; on a GPU they are tensors, which the kernels read as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import _native, cuda
from .._types import Array
from ..cuda import _module
from ..cuda._places import place_of

Group = dict[str, Any]

_DTYPES = (torch.float32, torch.float64)


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the kernels for GPUs have to do it."""
    return tensor.is_cuda


def check_tensor(tensor: Any, name: str) -> None:
    """Raise a TypeError unless there are kernels that use the tensor's memory."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.device.type != "cpu":
        reason = cuda.why_not() if tensor.is_cuda else "there are no kernels for it"
        if reason is not None:
            raise TypeError(
                f"{name}: expected a tensor on the device cpu, got {tensor.device}: {reason}"
            )
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


def array_of(tensor: torch.Tensor, order: tuple[int, ...] | None) -> Any:
    """The tensor's own memory, its axes in the given order."""
    if is_on_gpu(tensor):
        return tensor.detach() if order is None else tensor.detach().permute(order)
    array: Array = tensor.detach().numpy()
    return array if order is None else array.transpose(order)


def is_contiguous(array: Any) -> bool:
    """Whether the elements lie in the order of the axes."""
    if isinstance(array, torch.Tensor):
        return array.is_contiguous()
    return bool(array.flags.c_contiguous)


class ParameterView:
    """A parameter and its state as arrays over the tensors' memory, while that lasts."""

    __slots__ = (
        "array",
        "device",
        "dtype",
        "fresh",
        "names",
        "on_gpu",
        "order",
        "param",
        "place",
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
        self.device, self.on_gpu = param.device, is_on_gpu(param)
        self.place = self.device, self.on_gpu
        self.pointer, self.dtype = param.data_ptr(), param.dtype
        self.shape, self.strides = param.shape, param.stride()
        self.order = dense_order(param, where)
        self.array = array_of(param, self.order)
        self.names: tuple[str, ...] = ()
        self.state_arrays: list[Any] = []
        self.state_tensors: list[tuple[str, torch.Tensor, int]] = []
        self.step: Any = None  # the number of steps, a tensor on a GPU
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

    def counter(self, step: torch.Tensor) -> torch.Tensor:
        """The number of steps where the kernels look for it."""
        if self.on_gpu:
            return step.to(self.device, torch.float32)
        return step.to(self.device)

    def grad_array(self, grad: torch.Tensor, where: Callable[[], str]) -> Any:
        """The gradient in the parameter's order; a copy only if it lies in another order."""
        if self.on_gpu:
            if grad.layout is not torch.strided:
                check_tensor(grad, f"gradient of {where()}")
            grad = grad.detach()
            return grad if self.order is None else grad.permute(self.order)
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
    """Parameters of one group, dtype and device that a single native call updates."""

    def __init__(self, group: Group, stage: int = 1, states: int = 0) -> None:
        self.group = group
        self.stage = stage
        self.views: list[ParameterView] = []
        self.params: list[Any] = []
        self.grads: list[Any] = []
        self.states: list[list[Any]] = [[] for _ in range(states)]
        self.on_gpu = False
        self.device = torch.device("cpu")

    def add(self, view: ParameterView, grad: Any) -> None:
        self.on_gpu, self.device = view.on_gpu, view.device
        self.views.append(view)
        self.params.append(view.array)
        self.grads.append(grad)
        for arrays, array in zip(self.states, view.state_arrays, strict=True):
            arrays.append(array)

    def state(self, index: int) -> list[Any] | None:
        return self.states[index] if index < len(self.states) else None

    @property
    def steps(self) -> list[Any]:
        """What counts the steps of each parameter."""
        return [view.step for view in self.views]

    def call(self, op: str, *arguments: Any) -> tuple[Any, bool]:
        """The native op where the parameters are; (norm, applied), see `Fused._call`."""
        if not self.on_gpu:
            result: tuple[Any, bool] = getattr(_native, op)(*arguments)
            return result
        return getattr(_module.native(), op)(place_of(self.params[0]), *arguments), True

    def count_steps(self, norm: Any) -> None:
        """Add one to every number of steps on a GPU, unless the norm says that it was skipped."""
        if self.on_gpu:
            torch._foreach_add_(self.steps, (norm == norm).to(torch.float32))


def norm_of(batches: list[Batch]) -> Any:
    """The norm of all gradients: a float, or a tensor on the first GPU where some are on GPUs."""
    grads: dict[tuple[torch.device, bool], list[Any]] = {}
    for batch in batches:
        grads.setdefault(batch.views[0].place, []).extend(batch.grads)
    norms = []
    for (_, on_gpu), here in grads.items():
        if on_gpu:
            norms.append(_module.native().global_norm(place_of(here[0]), here, None))
        else:
            norms.append(_native.global_norm(here, None))
    if len(norms) < 2:
        return norms[0] if norms else 0.0
    device = next(norm.device for norm in norms if isinstance(norm, torch.Tensor))
    every = [torch.as_tensor(norm, dtype=torch.float64, device=device) for norm in norms]
    return torch.stack(every).norm()
