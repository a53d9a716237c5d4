"""What the tests of the CUDA kernels share: a device that is emulated on the host, and a real one.

Both have `array`, which puts a NumPy array on the device, `numpy`, which brings results back, and
`ops`, the primitives as functions of NumPy arrays, for `cases.run` and its like.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tbptt_fast import cuda
from tbptt_fast.cuda import _module, _places

from .cases import assert_close

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = "needs a GPU"  # the reason of a skip that is no failure where oracles are required

TF32_EPS = 2.0**-10  # between one and the next number with 10 bits behind the point
PRECISIONS = (("float64", "tf32"), ("float32", "highest"), ("float32", "tf32"))
ROUNDING = 2.0**-8  # the largest error of bfloat16 below 2: it has 7 bits behind the point


def bfloat16() -> Any:
    """NumPy's dtype for it; skips a module that asks for it where ml_dtypes is missing."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def widened(value: Any) -> Any:
    """bfloat16 arrays in float64, also in tuples."""
    if isinstance(value, tuple):
        return tuple(widened(part) for part in value)
    is_narrow = isinstance(value, np.ndarray) and value.dtype.name == "bfloat16"
    return value.astype("float64") if is_narrow else value


@cache
def emulated_module() -> Any:
    """TBPTT_FAST_CUDA_EMULATED names the module's file or its folder; else the preset dev's."""
    given = os.environ.get("TBPTT_FAST_CUDA_EMULATED")
    place = Path(given) if given else ROOT / "build" / "dev"
    file = f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = place / file if place.is_dir() else place
    if not path.is_file():
        if given:
            raise FileNotFoundError(f"TBPTT_FAST_CUDA_EMULATED: {path} does not exist")
        pytest.skip("the emulated CUDA kernels are not built: cmake --build --preset dev")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mapped(value: Any, change: Callable[[Any], Any], kind: Any) -> Any:
    """`value` with every object of the type `kind` in its tuples changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        parts = [mapped(part, change, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class Ops:
    """`tbptt_fast.cuda` with NumPy arrays as arguments and results."""

    def __init__(self, device: Device, options: dict[str, Any]) -> None:
        self._device, self._options = device, options

    def __getattr__(self, name: str) -> Any:
        function, device = getattr(cuda, name), self._device

        def call(*args: Any, **options: Any) -> Any:
            args = mapped(args, device.array, np.ndarray)
            options = {key: mapped(v, device.array, np.ndarray) for key, v in options.items()}
            result = function(*args, **options, **self._options)
            return mapped(result, device.numpy, device.kind)

        return call


class EmulatedDevice:
    """Host memory as a device's; fresh memory is full of NaN, wherever it comes from."""

    name = "emulated"
    kind = np.ndarray

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = emulated_module()
        monkeypatch.setattr(_module, "loaded", lambda: self.module)
        monkeypatch.setattr(_places, "host_empty", self.empty)
        self._forget()
        self.resize()
        self.module.set_seed(0)
        self.module.take_waits()

    @staticmethod
    def _forget() -> None:
        _module.why_not.cache_clear()
        _module.native.cache_clear()

    def close(self) -> None:
        self._forget()
        self.resize()
        self.module.set_seed(0)
        assert self.module.live_allocations() == 0, "memory of a call was not released"

    def resize(
        self,
        multiprocessors: int = 3,
        shared_bytes: int = 96 << 10,
        blocks: int = 1,
        capability: int = 90,
    ) -> None:
        """Later calls see such a device."""
        self.module.set_device(multiprocessors, shared_bytes, blocks, capability)

    @contextmanager
    def order(self, seed: int) -> Iterator[None]:
        """Threads take their turns in another order; 0 is that of their numbers."""
        self.module.set_seed(seed)
        try:
            yield
        finally:
            self.module.set_seed(0)

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        integers = np.issubdtype(dtype, np.integer)
        return np.full(shape, np.iinfo(dtype).min if integers else np.nan, dtype)

    def array(self, value: Any) -> Any:
        return value

    def numpy(self, value: Any) -> Any:
        return value

    def runs(self, run: Callable[[], Any]) -> list[Any]:
        """The same call with the threads in several orders."""
        found = []
        for seed in (0, 1, 2):
            with self.order(seed):
                found.append(run())
        return found

    def ops(self, **options: Any) -> Ops:
        return Ops(self, options)


class CudaDevice:
    """A GPU, with PyTorch's tensors."""

    name = "cuda"

    def __init__(self) -> None:
        reason = cuda.why_not()
        if reason is not None:
            pytest.skip(f"{NO_GPU}: {reason}")
        torch = pytest.importorskip("torch", reason=f"{NO_GPU} and PyTorch")
        if not torch.cuda.is_available():
            pytest.skip(f"{NO_GPU} that PyTorch can use")
        self.torch, self.kind = torch, torch.Tensor

    def array(self, value: Any) -> Any:
        """What is not aligned to 16 bytes on the host is not on the device either."""
        value = np.ascontiguousarray(value)
        before = value.ctypes.data % 16 // value.itemsize
        if value.dtype.name == "bfloat16":  # NumPy knows it by ml_dtypes, PyTorch does not
            host = self.torch.from_numpy(value.view("int16")).view(self.torch.bfloat16)
        else:
            host = self.torch.from_numpy(value)
        flat = self.torch.empty(before + value.size, dtype=host.dtype)
        return flat.to("cuda")[before:].view(value.shape).copy_(host)

    def numpy(self, value: Any) -> Any:
        if value.dtype == self.torch.bfloat16:
            import ml_dtypes

            return value.cpu().view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.cpu().numpy()

    def runs(self, run: Callable[[], Any]) -> list[Any]:
        return [run(), run()]

    def ops(self, **options: Any) -> Ops:
        return Ops(self, options)


Device: TypeAlias = EmulatedDevice | CudaDevice


def unaligned(array: Any, by: int = 1) -> Any:
    """The same values, `by` elements behind an address that is a multiple of 16."""
    room = np.empty(array.size + by + 16, array.dtype)
    begin = -room.ctypes.data % 16 // array.itemsize + by
    moved = room[begin : begin + array.size].reshape(array.shape)
    moved[...] = array
    return moved


def same_bits(device: Device, run: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The results of a call, which no order of threads changes."""
    first, *others = device.runs(run)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(
                np.atleast_1d(a).view("uint8"), np.atleast_1d(b).view("uint8")
            )
    return tuple(first)


def assert_same(actual: Any, expected: Any) -> None:
    """The same bits, but for those of a NaN."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)
    zeros = (actual == 0) & (expected == 0)
    np.testing.assert_array_equal(np.signbit(actual[zeros]), np.signbit(expected[zeros]))


def assert_near(actual: Any, expected: Any, kind: str, *, length: int, terms: float = 1.0) -> None:
    """`assert_close` where both are finite; NaN and Inf are in the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected, "float64")
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert_close(
        np.where(finite, actual, 0).astype(actual.dtype),
        np.where(finite, expected, 0),
        kind,
        length=length,
        terms=terms,
    )
