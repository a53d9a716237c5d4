"""The boundary of the CUDA kernels: what they accept, from which library, and how they refuse."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda, reference
from tbptt_fast.cuda import _module, _places

from .cases import (
    CELLS,
    GATES,
    Shape,
    assert_identical,
    backward,
    compare,
    forward,
    make_masks,
    make_problem,
    run,
)
from .cuda_cases import Device, EmulatedDevice
from .test_boundary import message

SHAPE: Shape = (5, 3, 4, 6)
ops = pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])


class Interface:
    """An array of an unknown library, with `__cuda_array_interface__` and nothing else."""

    def __init__(self, array: Any, **changes: Any) -> None:
        self.array = array
        self.described = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": array.strides,
            "version": 3,
            **changes,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.described


class Exporter:
    """An array of an unknown library, with DLPack's methods and nothing else."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()


def wrapped(problem: Any, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments of a forward pass, each in another library's hands."""
    names = ("x", "w_ih", "w_hh", "b_ih", "b_hh")
    arrays = {name: wrap(getattr(problem, name)) for name in names}
    state = tuple(wrap(s) for s in problem.hx)
    return arrays | {"hx": state if problem.op == "lstm" else state[0]}


def as_numpy(result: Any) -> Any:
    return np.from_dlpack(result).copy()


@ops
@pytest.mark.parametrize("wrap", [Interface, Exporter])
def test_arrays_of_unknown_libraries(
    emulated: EmulatedDevice, cell: str, wrap: Callable[[Any], Any]
) -> None:
    """Results are DeviceArrays, which others read by DLPack and by the array interface."""
    problem = make_problem(cell, SHAPE)
    masks = make_masks("both", SHAPE)
    wanted = run(reference, problem, **masks, truncation=2)
    out, last, tape = getattr(cuda, f"{problem.op}_forward")(
        **wrapped(problem, wrap), is_init=wrap(masks["is_init"])
    )
    assert repr(out) == "<DeviceArray [5, 3, 6], float64, device 0>"
    assert (out.shape, out.dtype, out.nbytes, out.device) == ((5, 3, 6), "float64", 720, 0)
    state = tuple(wrap(s) for s in problem.grad_hx or ())
    grads = getattr(cuda, f"{problem.op}_backward")(
        tape,
        wrap(problem.grad_out),
        state if problem.op == "lstm" else state[0],
        truncation=2,
        carry_scale=wrap(masks["carry_scale"]),
    )
    lasts = last if problem.op == "lstm" else (last,)
    initial = grads.hx if problem.op == "lstm" else (grads.hx,)
    found = {"out": out, **dict(zip(("h_n", "c_n"), lasts, strict=False)), "grad_x": grads.x}
    found |= dict(zip(("grad_h0", "grad_c0"), initial, strict=False))
    found |= {f"grad_{n}": getattr(grads, n) for n in ("w_ih", "w_hh", "b_ih", "b_hh")}
    compare(problem, {name: as_numpy(value) for name, value in found.items()}, wanted)
    interface = out.__cuda_array_interface__
    assert interface["version"] == 3
    assert interface["stream"] == 1
    del out, last, tape, grads, lasts, initial, found, state
    gc.collect()
    assert emulated.module.live_allocations() == 0


def test_a_capsule_that_nobody_takes_releases_its_memory(emulated: EmulatedDevice) -> None:
    problem = make_problem("gru", SHAPE)
    out, _, _ = cuda.gru_forward(**wrapped(problem, Interface))
    capsule = out.__dlpack__(stream=-1)
    del out, _
    gc.collect()
    assert emulated.module.live_allocations() == 1
    del capsule
    gc.collect()
    assert emulated.module.live_allocations() == 0


def test_streams_of_the_array_interface_are_waited_for(emulated: EmulatedDevice) -> None:
    """Work begins on x's stream after whatever made the other arrays on theirs."""
    p = make_problem("gru", SHAPE)
    hx = p.hx[0] if p.hx else None
    x = Interface(p.x, stream=0x500)
    w_ih, w_hh = Interface(p.w_ih, stream=0x700), Interface(p.w_hh, stream=1)
    out, _, tape = cuda.gru_forward(x, hx, w_ih, w_hh)
    assert emulated.module.take_waits() == [(0x500, 0, 0), (0x500, 0x700, 0)]
    assert out.__cuda_array_interface__["stream"] == 0x500
    out.__dlpack__(stream=0x900)
    assert emulated.module.take_waits() == [(0x900, 0x500, 0)]
    cuda.gru_backward(tape, p.grad_out)
    grad_x: Any = cuda.gru_backward(tape, p.grad_out, stream=0x300).x
    assert grad_x.__cuda_array_interface__["stream"] == 0x300


def test_default_streams_are_those_of_the_arrays_device(emulated: EmulatedDevice) -> None:
    """Whichever device is current: an event of one is none of another's streams."""
    x = np.ones((3, 4))
    emulated.module.place_on_device(x.ctypes.data, x.nbytes, 1)
    out = cuda.softmax(Interface(x, stream=1), stream=0x500)
    assert emulated.module.take_waits() == [(0x500, 0, 1)]
    emulated.module.place_on_device(x.ctypes.data, 0, 0)
    assert out.device == 1


@pytest.mark.parametrize(
    ("stream", "number"),
    [
        (7, 7),
        (type("Torchs", (), {"cuda_stream": 9})(), 9),
        (type("Cupys", (), {"ptr": 11})(), 11),
        (type("Protocol", (), {"__cuda_stream__": (0, 13)})(), 13),
        (type("Method", (), {"__cuda_stream__": lambda self: (0, 15)})(), 15),
    ],
)
def test_streams_of_every_library(stream: Any, number: int) -> None:
    assert _places.read_stream(stream) == number


def test_wrong_streams(emulated: EmulatedDevice) -> None:
    p = make_problem("gru", SHAPE)
    with pytest.raises(TypeError, match="stream: expected None, an integer or a stream, got str"):
        cuda.gru_forward(p.x, None, p.w_ih, p.w_hh, stream="main")


@ops
def test_layouts_do_not_matter(device: Device, cell: str) -> None:
    """Strided arrays are copied by their own library."""
    problem = make_problem(cell, SHAPE)
    wanted = run(device.ops(), problem)

    def strided(a: Any) -> Any:
        wide = device.array(np.zeros((*a.shape[:-1], 2 * a.shape[-1])))
        wide[..., ::2] = device.array(a)
        return wide[..., ::2]

    p = problem
    hx = tuple(strided(s) for s in p.hx or ())
    out, _, tape = getattr(cuda, f"{p.op}_forward")(
        strided(p.x),
        hx if p.op == "lstm" else hx[0],
        *(strided(w) for w in (p.w_ih, p.w_hh, p.b_ih, p.b_hh)),
    )
    grads = getattr(cuda, f"{p.op}_backward")(tape, strided(p.grad_out))
    assert_identical({"out": device.numpy(out)}, {"out": wanted["out"]})
    alone = backward(device.ops(), replace(p, grad_hx=None), tape)
    assert_identical({"w": device.numpy(grads.w_hh)}, {"w": alone["w_hh"]})


def test_strided_arrays_of_unknown_libraries_are_refused(emulated: EmulatedDevice) -> None:
    p = make_problem("gru", SHAPE)
    text = "gru_forward: w_hh: expected a C-contiguous array, got a strided one"
    with pytest.raises(ValueError, match=text):
        cuda.gru_forward(p.x, None, p.w_ih, Interface(np.asfortranarray(p.w_hh)))


def test_misaligned_arrays(emulated: EmulatedDevice) -> None:
    p = make_problem("gru", SHAPE)
    room = np.zeros(p.x.nbytes + 1, "uint8")
    x = np.ndarray(p.x.shape, p.x.dtype, buffer=room, offset=1)
    x[...] = p.x
    out, _, _ = cuda.gru_forward(x, None, p.w_ih, p.w_hh)
    expected, _, _ = cuda.gru_forward(p.x, None, p.w_ih, p.w_hh)
    assert_identical({"out": out}, {"out": expected})


@ops
@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh"])
def test_wrong_weights(device: Device, cell: str, name: str) -> None:
    problem = make_problem(cell, SHAPE, "float32")
    good = getattr(problem, name)
    op = f"{problem.op}_forward"

    def rejected(error: type[Exception], text: str, value: Any) -> None:
        changed: dict[str, Any] = {name: value}
        with pytest.raises(error, match=message(f"{op}: {name}: {text}")):
            forward(device.ops(), replace(problem, **changed))

    longer = np.zeros((*good.shape[:-1], good.shape[-1] + 1), "float32")
    rejected(ValueError, f"expected shape …got {list(longer.shape)}", longer)
    rejected(ValueError, "expected …got …[1, ", good[None])
    for dtype in ("float64", "int32", "float16", "bool"):
        rejected(TypeError, f"expected dtype float32, got {dtype}", good.astype(dtype))
    rejected(TypeError, "expected an array, got list", good.tolist())


@ops
def test_wrong_x_and_states(device: Device, cell: str) -> None:
    problem = make_problem(cell, SHAPE, "float32")
    op = f"{problem.op}_forward"
    x, state = problem.x, (problem.hx or ())[0]

    def rejected(error: type[Exception], text: str, **changes: Any) -> None:
        with pytest.raises(error, match=message(f"{op}: {text}")):
            forward(device.ops(), replace(problem, **changes))

    rejected(ValueError, "x: expected 3 dimensions, got shape [5, 3]", x=x[..., 0])
    text = "x: expected dtype float32, float64 or bfloat16, got float16"
    rejected(TypeError, text, x=x.astype("float16"))
    rejected(TypeError, "x: expected an array, got NoneType", x=None)
    others = (problem.hx or ())[1:]
    rejected(ValueError, "hx…: expected shape [3, 6], got [1, 3, 6]", hx=(state[None], *others))
    wide = state.astype("float64")
    rejected(TypeError, "hx…: expected dtype float32, got float64", hx=(wide, *others))
    rows = GATES[cell] * 6
    if rows > 6:
        w_hh = np.zeros((rows + 1, 6), "float32")
        rejected(ValueError, "w_hh: expected …gates of equal size", w_hh=w_hh)
    mask = np.zeros((3, 5), bool)
    with pytest.raises(ValueError, match=message(f"{op}: is_init: expected shape [5, 3]")):
        forward(device.ops(), problem, is_init=mask)
    with pytest.raises(TypeError, match=message(f"{op}: is_init: expected dtype bool, got uint8")):
        forward(device.ops(), problem, is_init=mask.T.astype("uint8"))
    with pytest.raises(TypeError, match=message(f"{op}: training: expected True or False")):
        forward(device.ops(), problem, training=1)
    with pytest.raises(ValueError, match="precision: expected 'tf32' or 'highest', got 'high'"):
        forward(device.ops(precision="high"), problem)
    with pytest.raises(TypeError, match="precision: expected 'tf32' or 'highest', got NoneType"):
        forward(device.ops(precision=None), problem)


@pytest.mark.parametrize("wrong", ["sigmoid", None])
def test_wrong_nonlinearity(device: Device, wrong: Any) -> None:
    p = make_problem("rnn_tanh", SHAPE)
    with pytest.raises((TypeError, ValueError), match="rnn_forward: nonlinearity: expected"):
        device.ops().rnn_forward(p.x, None, p.w_ih, p.w_hh, nonlinearity=wrong)


@ops
def test_wrong_gradients(device: Device, cell: str) -> None:
    problem = make_problem(cell, SHAPE, "float32")
    _, _, tape = forward(device.ops(), problem)
    _, _, other = forward(device.ops(), make_problem("lstm" if cell == "gru" else "gru", SHAPE))
    function = getattr(device.ops(), f"{problem.op}_backward")
    grad = problem.grad_out
    assert grad is not None

    def bad(error: type[Exception], text: str, *args: Any, given: Any = tape, **kw: Any) -> None:
        with pytest.raises(error, match=message(f"{problem.op}_backward: {text}")):
            function(given, *args, **kw)

    bad(ValueError, "grad_out: expected shape [5, 3, 6], got [4, 3, 6]", grad[1:])
    bad(TypeError, "grad_out: expected dtype float32, got float64", grad.astype("float64"))
    bad(ValueError, "grad_out: expected an array, or None together with grad_hx", None)
    scale = np.ones((3, 5), "float32")
    bad(ValueError, "carry_scale: expected shape [5, 3], got [3, 5]", grad, carry_scale=scale)
    bad(TypeError, "tape: expected a Tape, got int", grad, given=3)
    bad(TypeError, "tape: expected a Tape, got NoneType", grad, given=None)
    bad(ValueError, f"tape: expected a tape of {problem.op}_forward, got one of", grad, given=other)
    bad(ValueError, "truncation: expected k1 <= k2", grad, truncation=(3, 2))
    bad(ValueError, "truncation: expected at least 1 step, got 0", grad, truncation=0)
    bad(TypeError, "truncation: expected None, an integer K or a pair", grad, truncation=1.5)
    if cell == "lstm":
        bad(TypeError, "grad_hx: expected a pair (h, c), got", grad, grad[0])


def test_host_memory_is_refused_and_devices_must_agree(emulated: EmulatedDevice) -> None:
    p = make_problem("gru", SHAPE)
    with pytest.raises(TypeError, match="x: expected an array in CUDA memory, got Exporter in mem"):
        cuda.gru_forward(Exporter(p.x, (10, 0)), None, p.w_ih, p.w_hh)
    far = p.w_hh.copy()
    emulated.module.place_on_device(far.ctypes.data, far.nbytes, 1)
    text = "w_hh: expected an array on device 0, as x, got one on device 1"
    with pytest.raises(ValueError, match=text):
        cuda.gru_forward(p.x, None, p.w_ih, far)
    masked = Interface(p.w_ih, mask=Interface(p.w_ih))
    with pytest.raises(TypeError, match="w_ih: expected an array without a mask"):
        cuda.gru_forward(p.x, None, masked, p.w_hh)
    emulated.module.place_on_device(far.ctypes.data, 0, 0)


def test_the_tape_tells_what_it_is(device: Device) -> None:
    for cell in CELLS:
        problem = make_problem(cell, SHAPE, "float32")
        _, _, tape = forward(device.ops(), problem)
        name = f"{problem.op}_forward"
        nbytes = 5 * 3 * 6 * 4 * {"lstm": 5, "gru": 4}.get(cell, 0)
        assert tape.nbytes == nbytes
        shown = f"<Tape of {name}: steps 5, batch 3, inputs 4, hidden 6, float32, {nbytes} bytes>"
        assert repr(tape) == shown


def test_out_of_memory(emulated: EmulatedDevice) -> None:
    rows = np.zeros((18, 6))
    with pytest.raises(MemoryError):
        cuda.gru_forward(np.zeros((2**28, 2**28, 0)), None, np.zeros((18, 0)), rows)
    assert emulated.module.live_allocations() == 0


@pytest.fixture
def search_again() -> Iterator[None]:
    """The module is looked for anew in the test, and once more after it."""
    cached = (_module.loaded, _module.why_not, _module.native)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("search_again")
def test_without_kernels_a_sentence_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing never fails; calls and `why_not` tell the same."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda.why_not() == "built without CUDA kernels, and tbptt-fast-cu13 is not installed"
    assert not cuda.is_available()
    assert cuda.build_info() is None
    assert cuda.devices() == []
    with pytest.raises(RuntimeError, match=r"tbptt_fast\.cuda: built without"):
        cuda.gru_forward(None, None, None, None)


@pytest.mark.usefixtures("search_again")
@pytest.mark.parametrize("version", [tbptt_fast.__version__, "0.0.9"])
def test_kernels_of_another_distribution(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """They are found in tbptt-fast-cu13, and only of the same version."""
    name = "tbptt_fast_cu13._cuda"
    module = ModuleType(name)
    vars(module).update(build_info=lambda: {"version": version}, why_not=lambda: None)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: module if asked in name else None
    )
    if version == tbptt_fast.__version__:
        assert cuda.is_available()
        assert cuda.build_info() == {"version": version}
    else:
        assert cuda.why_not() == (
            f"{name} is of version 0.0.9, and tbptt_fast of {tbptt_fast.__version__}: "
            "install the same"
        )


def test_the_real_module_explains_itself() -> None:
    """Where it was built, it can be imported without a driver."""
    reason = cuda.why_not()
    assert cuda.is_available() == (reason is None)
    info = cuda.build_info()
    if info is None:
        assert reason is not None
        return
    assert set(info) == {"version", "cuda", "driver", "targets"}
    assert reason is None or len(reason.split()) > 3
