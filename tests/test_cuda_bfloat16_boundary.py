"""The boundary of recurrent layers in bfloat16: devices, dtypes, other libraries' tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tbptt_fast import cuda

from .cases import assert_identical, backward, forward, make_problem, run
from .cuda_cases import Device, EmulatedDevice
from .test_boundary import message
from .test_cuda_bfloat16 import BFLOAT16


def test_a_device_without_bfloat16_refuses_it(emulated: EmulatedDevice) -> None:
    problem = make_problem("gru", (2, 1, 3, 4), BFLOAT16)
    emulated.resize(capability=75)
    text = (
        "gru_forward: x: expected dtype float32 or float64, got bfloat16, which needs a device of "
        "compute capability 8.0 or more, not 7.5"
    )
    with pytest.raises(TypeError, match=message(text)):
        forward(emulated.ops(), problem)


def test_dtypes_do_not_mix(device: Device) -> None:
    problem = make_problem("gru", (2, 1, 3, 4), BFLOAT16)
    ops = device.ops()
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        changed: dict[str, Any] = {name: getattr(problem, name).astype("float32")}
        text = f"gru_forward: {name}: expected dtype bfloat16, got float32"
        with pytest.raises(TypeError, match=message(text)):
            forward(ops, replace(problem, **changed))
    single = make_problem("gru", (2, 1, 3, 4), "float32")
    with pytest.raises(TypeError, match="hx: expected dtype float32, got bfloat16"):
        forward(ops, replace(single, hx=problem.hx))
    _, _, tape = forward(ops, problem)
    assert "hidden 4, bfloat16, 64 bytes" in repr(tape)
    with pytest.raises(TypeError, match="grad_out: expected dtype bfloat16, got float32"):
        backward(ops, single, tape)


def test_two_bytes_of_something_else_are_refused(emulated: EmulatedDevice) -> None:
    p = make_problem("gru", (2, 1, 3, 4), BFLOAT16)
    for value, name in ((p.x.view("V2"), "a type of 16 bits"), (p.x.view("int16"), "int16")):
        with pytest.raises(TypeError, match=f"or bfloat16, got {name}"):
            cuda.gru_forward(value, None, p.w_ih, p.w_hh)


class Exporter:
    """A tensor with DLPack's methods and nothing else."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__()


def test_tensors_of_other_libraries(emulated: EmulatedDevice) -> None:
    """PyTorch's own, and any by DLPack, whose results PyTorch and ml_dtypes read."""
    torch = pytest.importorskip("torch")
    problem = make_problem("lstm", (4, 3, 5, 8), BFLOAT16)
    wanted = run(emulated.ops(), problem)

    def tensor(value: Any) -> Any:
        return torch.from_numpy(value.view("int16")).view(torch.bfloat16)

    def bits(value: Any) -> Any:
        return value.view(torch.int16).numpy().view(BFLOAT16)

    class Older(torch.Tensor):  # type: ignore[misc, name-defined]
        """Of PyTorch 2.4: no functions of C, and an array interface that has no bfloat16."""

        __dlpack_c_exchange_api__ = None

        @property
        def __cuda_array_interface__(self) -> Any:
            raise KeyError(torch.bfloat16)

    def older(value: Any) -> Any:
        """A strided one: it has to be copied."""
        return torch.stack([tensor(value)] * 2, -1)[..., 0].as_subclass(Older)

    wraps: tuple[Callable[[Any], Any], ...] = (tensor, older, lambda value: Exporter(tensor(value)))
    for wrap in wraps:
        weights = [wrap(getattr(problem, name)) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        states = tuple(wrap(state) for state in problem.hx or ())
        out, _, tape = cuda.lstm_forward(wrap(problem.x), states, *weights)
        assert str(out.dtype).endswith("bfloat16")
        last = tuple(wrap(state) for state in problem.grad_hx or ())
        grads = cuda.lstm_backward(tape, wrap(problem.grad_out), last)
        found = {"out": out, "grad_w_hh": grads.w_hh, "grad_x": grads.x}
        tensors = {name: torch.from_dlpack(value) for name, value in found.items()}
        assert_identical({n: bits(t) for n, t in tensors.items()}, {n: wanted[n] for n in found})
    assert out.nbytes == 2 * 4 * 3 * 8
    assert repr(out) == "<DeviceArray [4, 3, 8], bfloat16, device 0>"
    assert out.__cuda_array_interface__["typestr"] == wanted["out"].dtype.str
    again, _, _ = cuda.lstm_forward(out, None, wrap(np.ones((32, 8), BFLOAT16)), weights[1])
    assert again.dtype == "bfloat16"
