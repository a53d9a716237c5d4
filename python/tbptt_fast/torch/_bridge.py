"""Between tensors and arrays: what is shared, and which way a call takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .. import _native, cuda
from .._types import Array

# A library of operators lives as long as this object.
LIBRARY: Any = torch.library.Library("tbptt_fast", "DEF")  # type: ignore[no-untyped-call]

Implementation: TypeAlias = Callable[..., tuple[Tensor, ...]]

_PLAIN = (Tensor, torch.nn.Parameter, type(None))

# Not public, but without them a tensor of a tracer would be mistaken for one with data.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _detached(tensor: Any) -> Array | None:
    if tensor is None:
        return None
    array: Array = tensor.detach().resolve_neg().contiguous().numpy()
    return array


def _detached_all(*tensors: Any) -> list[Any]:
    return [_detached(tensor) for tensor in tensors]


_arrays_over = (  # PyTorch has had the faster way since 2.10
    _native.borrow_arrays if hasattr(Tensor, "__dlpack_c_exchange_api__") else _detached_all
)


def to_arrays(*tensors: Tensor | None) -> list[Any]:
    """Arrays [...] over the memory of tensors, which may require gradients; None for None.

    They are contiguous: what is not is copied.
    """
    return _arrays_over(*tensors)


# A tensor that owns the array.
to_tensor: Callable[[Array], Tensor] = torch.from_numpy


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether this is an eager call on ordinary tensors, which may do without the dispatcher.

    Compilers, tracers, modes, transformations and autocast see the registered operators instead.
    """
    if torch.compiler.is_compiling() or _is_tracing():
        return False
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return False
    if _dispatch_modes() or _functorch_level() is not None:
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return False
    return True


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def check_device(op: str, **tensors: Tensor | None) -> None:
    """Tensors on the CPU, or on a GPU that has kernels and can run them.

    Raises:
        RuntimeError: a tensor is on another device, as in PyTorch.
    """
    first = next(iter(tensors.values()))
    if first is None or not first.is_cuda:
        check_cpu(op, **tensors)
        return
    if (reason := missing_device(first)) is not None:
        raise RuntimeError(f"{op}: expected tensors on cpu, got some on {first.device}: {reason}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != first.device:
            raise RuntimeError(
                f"{op}: {name}: expected a tensor on {first.device}, got one on {tensor.device}"
            )


_precision = getattr(torch._C, "_get_fp32_precision_getter", None)  # since PyTorch 2.9


def cuda_precision(layer: Literal["rnn", "conv"]) -> cuda.Precision:
    """What PyTorch would compute a layer's float32 in."""
    if _precision is not None:
        return "tf32" if _precision("cuda", layer) == "tf32" else "highest"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "highest"


def missing_device(tensor: Tensor) -> str | None:
    """Why layers have no kernel where this tensor is; None where they have."""
    kind = tensor.device.type
    if kind == "cpu":
        return None
    return cuda.why_not() if kind == "cuda" else f"there are no kernels for {kind}"


def check_cpu(op: str, **tensors: Tensor | None) -> None:
    """
    Raises:
        RuntimeError: a tensor is on another device, as in PyTorch.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type != "cpu":
            raise RuntimeError(
                f"{op}: {name}: expected a tensor on cpu, got one on {tensor.device}"
            )


def define(
    name: str,
    schema: str,
    implementation: Implementation,
    fake: Implementation,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    on_cuda: Implementation | None = None,
    autocast_to: Callable[..., torch.dtype] = lambda *args: torch.float32,
) -> None:
    """Register an operator with its shapes, its gradient and its rule for autocast.

    `autocast_to` gets the arguments and says what tensors of at most 32 bits become: float32, or
    bfloat16 where there are kernels.
    """
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, implementation, "CPU")
    if on_cuda is not None:
        LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"tbptt_fast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"tbptt_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )

    for device in ("CPU", "CUDA"):
        key = f"Autocast{device}"
        rule = _autocast(name, getattr(torch._C.DispatchKey, key), autocast_to)
        LIBRARY.impl(name, rule, key)


def _autocast(name: str, key: Any, dtype_of: Callable[..., torch.dtype]) -> Callable[..., Any]:
    """The operator's rule for autocast under this dispatch key."""

    def run(*args: Any) -> Any:
        dtype = dtype_of(*args)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return getattr(torch.ops.tbptt_fast, name)(*(_cast(a, dtype) for a in args))

    return run


_CAST = (torch.float32, torch.bfloat16, torch.float16)


def _cast(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, Tensor) and argument.dtype in _CAST:
        return argument.to(dtype)
    return argument


def has_bfloat16(tensor: Tensor) -> bool:
    """Whether the tensor is on a GPU whose kernels take bfloat16."""
    return tensor.is_cuda and _capability(tensor.device.index) >= 8


def takes(tensor: Tensor) -> bool:
    """Whether recurrent layers and convolutions have kernels for the tensor's dtype where it is."""
    if tensor.dtype == torch.bfloat16:
        return has_bfloat16(tensor)
    return tensor.dtype in (torch.float32, torch.float64)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """bfloat16 if autocast asks for it and the tensor is where it has kernels, else float32."""
    if has_bfloat16(tensor):
        if torch.get_autocast_dtype(tensor.device.type) == torch.bfloat16:
            return torch.bfloat16
    return torch.float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _capability(device: int) -> int:
    """Which compilers are not to look into."""
    return torch.cuda.get_device_capability(device)[0]


def refuse_second_derivative(name: str) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Gradient and context of an operator that is itself a gradient."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"tbptt_fast::{name}: second derivatives are not available")

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    return backward, setup_context
