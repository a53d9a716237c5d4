"""Where a call takes place: results are made by the library of `x`, on the stream it uses.

A place is the tuple (empty, contiguous, stream, library) that the native module reads:
`empty(shape)` makes an array of x's dtype on its device, with `dtype=` one of another, or is None
where no library is known; `contiguous(array)` copies an array into the order of its axes, or
returns None where it is of no known library; `library` has the dtypes by their names.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import numpy as np

Place: TypeAlias = tuple[Callable[..., Any] | None, Callable[[Any], Any], int, Any]

LEGACY_DEFAULT = 1  # the default stream of all threads, as the array interface counts


def place_of(x: Any, stream: Any = None, otherwise: int = LEGACY_DEFAULT) -> Place:
    """The place of a call whose first array is `x`; `otherwise` is the stream of unknown arrays.

    A library may use the memory of an array again as soon as its own stream is done with it: for
    another stream, arrays are made as if that were the library's current one.
    """
    empty, current, entered, library = _library_of(x, otherwise)
    if stream is None:
        return empty, contiguous, current(), library
    number = read_stream(stream)
    on_stream = partial(entered, number)
    return empty and _within(on_stream, empty), _within(on_stream, contiguous), number, library


def read_stream(stream: Any) -> int:
    """The number of a stream: an integer, torch's or CuPy's object, or one with __cuda_stream__.

    Raises:
        TypeError: it is none of these.
    """
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr"):
        if (number := getattr(stream, name, None)) is not None:
            return int(number)
    try:
        return operator.index(stream)
    except TypeError:
        kind = type(stream).__name__
        raise TypeError(f"stream: expected None, an integer or a stream, got {kind}") from None


def lies_on_gpu(x: Any) -> bool:
    """Whether it is an array in the memory of a GPU."""
    device = getattr(x, "__dlpack_device__", None)
    if device is not None:
        return device()[0] in (2, 13)  # DLPack's numbers for CUDA's own and its managed memory
    return hasattr(x, "__cuda_array_interface__")


def library_of(x: Any) -> Any:
    """PyTorch, NumPy or CuPy, whose array it is; None for others."""
    return _library_of(x, LEGACY_DEFAULT)[3]


Entered: TypeAlias = Callable[[int], AbstractContextManager[Any]]


def _library_of(x: Any, otherwise: int) -> tuple[Any, Callable[[], int], Entered, Any]:
    """`empty` for the array, its library's current stream, a context of another, the library."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        entered: Entered = partial(_entered_in_torch, torch, x)
        return x.new_empty, partial(torch_stream, torch, x), entered, torch
    if isinstance(x, np.ndarray):  # of the emulated device; others refuse it
        return partial(host_empty, dtype=x.dtype), lambda: 0, nullcontext, np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        current, entered = cupy.cuda.get_current_stream, partial(_entered_in_cupy, cupy, x)
        return partial(_cupy_empty, cupy, x), lambda: int(current().ptr), entered, cupy
    return None, partial(_interface_stream, x, otherwise), nullcontext, None


def _within(
    context: Callable[[], AbstractContextManager[Any]], make: Callable[..., Any]
) -> Callable[..., Any]:
    def made(*args: Any, **options: Any) -> Any:
        with context():
            return make(*args, **options)

    return made


def _entered_in_torch(torch: Any, x: Any, number: int) -> AbstractContextManager[Any]:
    if not x.is_cuda:
        return nullcontext()
    if number > LEGACY_DEFAULT:
        stream = torch.cuda.ExternalStream(number, x.device)
    else:  # which PyTorch counts as 0
        stream = torch.cuda.default_stream(x.device)
    entered: AbstractContextManager[Any] = torch.cuda.stream(stream)
    return entered


@contextmanager
def _entered_in_cupy(cupy: Any, x: Any, number: int) -> Iterator[None]:
    with x.device, cupy.cuda.ExternalStream(number):
        yield


host_empty: Callable[..., Any] = np.empty


def torch_stream(torch: Any, x: Any) -> int:
    """The current stream of the tensor's device."""
    if not x.is_cuda:
        return 0
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # the faster way, if it is there
    if raw is not None:
        return int(raw(x.get_device()))
    return int(torch.cuda.current_stream(x.device).cuda_stream)


def _cupy_empty(cupy: Any, x: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    with x.device:
        return cupy.empty(shape, x.dtype if dtype is None else dtype)


def _interface_stream(x: Any, otherwise: int) -> int:
    interface = getattr(x, "__cuda_array_interface__", None)
    return (interface or {}).get("stream") or otherwise


def contiguous(array: Any) -> Any:
    """A C-contiguous copy, or None for an array of no known library."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.detach().contiguous()
    if isinstance(array, np.ndarray):
        return np.require(array, requirements=("C", "A"))
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy.ascontiguousarray(array)
    return None
