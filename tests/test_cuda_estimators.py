"""The estimators of truncated backpropagation for arrays on devices: as on the CPU, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn, optim, reference
from tbptt_fast.cuda import _places
from tbptt_fast.tbptt import TBPTT, Primitive, adaptive_k, artbp, checkpointed, measure_lags

from .cases import (
    CELLS,
    RECURRENT_MASKED,
    RECURRENT_SMALL,
    Problem,
    Shape,
    assert_close,
    assert_identical,
    compare,
    make_masks,
    make_problem,
    pair,
    run,
    shape_id,
)
from .cuda_cases import PRECISIONS, CudaDevice, Device, same_bits
from .test_checkpointed import leaves
from .test_cuda_boundary import Exporter, Interface
from .test_cuda_recurrent import eps_of, problem_for
from .test_lag_norms import check, measured

cells = pytest.mark.parametrize("cell", CELLS)
SHAPE = RECURRENT_MASKED[0]  # 11, 5, 3, 17


# --- Norms by lag -------------------------------------------------------------------------------


@cache
def expected(
    cell: str, shape: Shape, dtype: str, precision: str, masks: str, max_lag: int
) -> tuple[Any, Any]:
    problem = problem_for(cell, shape, dtype, precision, masks)
    return measured(reference, problem, max_lag, make_masks(masks, shape)["is_init"])


@cells
@pytest.mark.parametrize("shape", [*RECURRENT_SMALL, *RECURRENT_MASKED], ids=shape_id)
def test_every_loss_by_itself(device: Device, cell: str, shape: Shape) -> None:
    max_lag = min(shape[0] + 1, 6)
    for dtype, precision in PRECISIONS:
        if cell == "rnn_relu" and eps_of(dtype, precision) is not None:
            continue
        for masks in ("plain", "is_init"):
            problem = problem_for(cell, shape, dtype, precision, masks)
            is_init = make_masks(masks, shape)["is_init"]
            found = measured(device.ops(precision=precision), problem, max_lag, is_init)
            wanted = expected(cell, shape, dtype, precision, masks, max_lag)
            check(problem, found, wanted, eps_of(dtype, precision))


@cells
@pytest.mark.parametrize("max_lag", [0, 1, 10, 40])
def test_as_many_lags_as_asked_for(device: Device, cell: str, max_lag: int) -> None:
    problem = make_problem(cell, SHAPE)
    for masks in ("plain", "is_init"):
        is_init = make_masks(masks, SHAPE)["is_init"]
        found = measured(device.ops(), problem, max_lag, is_init)
        check(problem, found, expected(cell, SHAPE, "float64", "tf32", masks, max_lag))


@cells
def test_no_order_of_threads_changes_a_bit(device: Device, cell: str) -> None:
    """More losses than one block of the sums has, and rows that end at different lags."""
    shape = (30, 9, 5, 37)
    problem, is_init = make_problem(cell, shape, "float32"), make_masks("is_init", shape)["is_init"]
    ops = device.ops(precision="highest")
    phi, sums = same_bits(device, lambda: measured(ops, problem, 3, is_init))
    check(problem, (phi, sums), measured(reference, problem, 3, is_init))


@cells
def test_losses_without_a_gradient_are_zero_and_change_no_other(device: Device, cell: str) -> None:
    problem = make_problem(cell, (8, 3, 4, 9))
    phi, _ = measured(device.ops(), problem, 6)
    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[:5] = 0
    grad_out[6, 1] = 0
    kept = (grad_out != 0).any(axis=-1)
    masked, sums = measured(device.ops(), replace(problem, grad_out=grad_out), 6)
    np.testing.assert_array_equal(masked[:, kept], phi[:, kept])
    assert (np.nan_to_num(masked[:, ~kept]) == 0).all()
    wanted = measured(reference, replace(problem, grad_out=grad_out), 6)
    check(problem, (masked, sums), wanted)
    none, sums = measured(device.ops(), replace(problem, grad_out=0 * grad_out), 6)
    assert not np.nan_to_num(none).any()
    assert not sums.any()


@cells
def test_what_is_not_finite_stays_with_its_loss(device: Device, cell: str) -> None:
    problem = make_problem(cell, (7, 2, 3, 5))
    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[4, 0, 2] = np.nan
    clean, _ = measured(device.ops(), problem, 3)
    dirty, _ = measured(device.ops(), replace(problem, grad_out=grad_out), 3)
    assert np.isnan(dirty[0, 4, 0])
    if cell != "rnn_relu":  # which selects, and may stop it
        assert np.isnan(dirty[:, 4, 0]).all()
    other = np.ones((7, 2), bool)
    other[4, 0] = False
    np.testing.assert_array_equal(dirty[:, other], clean[:, other])


def test_nothing_of_what_is_not_finite_passes_a_reset(device: Device) -> None:
    """What stands before a reset is not looked at."""
    problem = make_problem("lstm", (6, 2, 3, 5))
    x, is_init = problem.x.copy(), np.zeros((6, 2), bool)
    x[1, 0] = np.nan
    is_init[3, 0] = True
    clean, sums = measured(device.ops(), problem, 5, is_init)
    found, found_sums = measured(device.ops(), replace(problem, x=x), 5, is_init)
    np.testing.assert_array_equal(found[:, 3:], clean[:, 3:])
    assert np.isnan(found_sums).any()
    assert np.isfinite(sums).all()
    assert (clean[:, 5, 0] > 0).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_of_tiny_gradients_do_not_vanish(device: Device, dtype: str) -> None:
    problem, ops = make_problem("gru", (12, 2, 3, 7), dtype), device.ops(precision="highest")
    assert problem.grad_out is not None
    tiny = 2.0**-100
    small = replace(problem, grad_out=(problem.grad_out * tiny).astype(dtype))
    phi, _ = measured(ops, problem, 11)
    scaled, _ = measured(ops, small, 11)
    np.testing.assert_allclose(scaled / np.float64(tiny), phi, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_without_steps_or_rows(device: Device, shape: tuple[int, int]) -> None:
    ops = device.ops()
    weights = np.ones((12, 3)), np.ones((12, 4))
    _, _, tape = ops.gru_forward(np.zeros((*shape, 3)), None, *weights)
    phi, sums = ops.lag_norms(tape, np.zeros((*shape, 4)), 2, sums=True)
    assert phi.shape == (3, *shape)
    assert sums.shape == (3, 1, 4)
    assert not sums.any()


OUT = np.zeros((4, 2, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tape": None}, TypeError, "tape: expected a Tape, got NoneType"),
        ({"grad_out": OUT[1:]}, ValueError, r"grad_out: expected shape \[4, 2, 5\]"),
        ({"grad_out": OUT.astype("float32")}, TypeError, "grad_out: expected .*float64"),
        ({"grad_out": None}, TypeError, "grad_out: expected .*got NoneType"),
        ({"max_lag": -1}, ValueError, "max_lag: expected an integer >= 0, got -1"),
        ({"max_lag": 1.5}, TypeError, "max_lag: expected an integer, got float"),
        ({"sums": 1}, TypeError, "sums: expected .*got int"),
        ({"precision": "low"}, ValueError, "precision: expected .*'low'"),
    ],
    ids=str,
)
def test_wrong_arguments(
    device: Device, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    ops = device.ops()
    _, _, tape = ops.lstm_forward(np.zeros((4, 2, 3)), None, np.zeros((20, 3)), np.zeros((20, 5)))
    given = {"tape": tape, "grad_out": OUT, "max_lag": 2, "sums": False} | arguments
    with pytest.raises(error, match=f"^lag_norms: {message}"):
        ops.lag_norms(**given)


# --- Whatever is made of them -------------------------------------------------------------------


@dataclass
class Arrays:
    """Arrays that lie on a device, as the estimators see them."""

    array: Callable[[Any], Any]
    numpy: Callable[[Any], Any]

    def all(self, value: Any) -> Any:
        """The arrays in tuples, too."""
        if isinstance(value, tuple):
            return tuple(self.all(part) for part in value)
        return self.array(value) if isinstance(value, np.ndarray) else value

    def primitive(self, problem: Problem, **options: Any) -> Any:
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        weights: Any = {name: self.all(getattr(problem, name)) for name in names}
        op: Any = problem.op
        return Primitive(op, **weights, **problem.options, **options)


@pytest.fixture(params=["emulated", "tensors", pytest.param("cuda", marks=pytest.mark.gpu)])
def arrays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Of NumPy and of PyTorch in the memory of the emulated device, and those of a real one."""
    if request.param == "cuda":
        device = CudaDevice()
        return Arrays(device.array, device.numpy)
    request.getfixturevalue("emulated")
    if request.param == "emulated":
        monkeypatch.setattr(_places, "lies_on_gpu", lambda x: isinstance(x, np.ndarray))
        return Arrays(np.copy, np.asarray)
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(_places, "lies_on_gpu", torch.is_tensor)
    return Arrays(lambda a: torch.from_numpy(np.copy(a)), lambda t: t.numpy())


@cells
def test_random_truncation(arrays: Arrays, cell: str) -> None:
    """The draws of the CPU, and gradients with them."""
    problem = make_problem(cell, SHAPE)
    x = arrays.array(problem.x)
    for rule in ({"cut": 0.3}, {"mean_length": 4.0}):
        wanted = artbp(*SHAPE[:2], **rule, rng=3, dtype="float64")
        scale = artbp(*SHAPE[:2], **rule, rng=3, like=x)
        assert type(scale) is type(x)
        np.testing.assert_array_equal(arrays.numpy(scale), wanted)
    layer = arrays.primitive(problem)
    y, _, tape = layer.forward(x, arrays.all(pair(problem, problem.hx)))
    grads = layer.backward(
        tape,
        arrays.array(problem.grad_out),
        grad_state=arrays.all(pair(problem, problem.grad_hx)),
        carry_scale=scale,
    )
    expected = run(reference, problem, carry_scale=wanted)
    found = {"out": y, "grad_x": grads.x, **{f"grad_{n}": g for n, g in grads.params.items()}}
    actual = {name: arrays.numpy(value) for name, value in found.items()}
    compare(problem, actual, {name: expected[name] for name in actual})


def test_probabilities_may_lie_there_too(arrays: Arrays) -> None:
    cut = np.linspace(0.0, 0.4, 7)
    wanted = artbp(7, 3, cut=cut, rng=0)
    np.testing.assert_array_equal(artbp(7, 3, cut=arrays.array(cut), rng=0), wanted)


def test_random_truncation_of_other_dtypes() -> None:
    torch = pytest.importorskip("torch")
    like = torch.zeros(1, dtype=torch.bfloat16)
    scale = artbp(5, 4, cut=0.3, rng=0, like=like)
    assert scale.dtype == torch.bfloat16
    assert torch.equal(scale, torch.from_numpy(artbp(5, 4, cut=0.3, rng=0)).bfloat16())
    assert artbp(5, 4, cut=0.3, like=np.zeros(1)).dtype == np.float64
    message = r"^artbp: like: expected an array of NumPy, PyTorch or CuPy, got Interface"
    with pytest.raises(TypeError, match=message):
        artbp(5, 4, cut=0.3, like=Interface(np.zeros(1)))


def given_gradient(y: Any, target: Any) -> tuple[float, Any, float]:
    return float((y * target).sum()), target, float(len(y))


@cells
@pytest.mark.parametrize("segment", [None, 4])
def test_checkpointed(arrays: Arrays, cell: str, segment: int | None) -> None:
    """Full backpropagation, with the same bits where segments run again and where they do not."""
    shape: Shape = (10, 3, 4, 9)
    problem, is_init = make_problem(cell, shape), make_masks("is_init", shape)["is_init"]
    expected = run(reference, problem, is_init=is_init)
    layer, (x, y) = arrays.primitive(problem), arrays.all((problem.x, problem.grad_out))
    state, grad_state = arrays.all((pair(problem, problem.hx), pair(problem, problem.grad_hx)))
    results = []
    for recompute in (True, False):
        result = checkpointed(segment, recompute=recompute)(
            layer,
            given_gradient,
            x,
            y,
            state,
            is_init=arrays.array(is_init),
            grad_state=grad_state,
            needs_x=True,
        )
        found: dict[str, Any] = {f"grad_{n}": g for n, g in result.grads.params.items()}
        found |= dict(zip(("h_n", "c_n"), leaves(result.state), strict=False))
        found |= dict(zip(("grad_h0", "grad_c0"), leaves(result.grads.state), strict=False))
        found["grad_x"] = result.grads.x
        assert {type(value) for value in found.values()} == {type(x)}
        results.append({name: arrays.numpy(value) for name, value in found.items()})
        assert result.loss == pytest.approx((expected["out"] * problem.grad_out).sum(), rel=1e-11)
        assert result.count == shape[0]
        assert result.nbytes > 0
    assert_identical(*results)
    expected.pop("out")
    compare(problem, results[0], expected)


@cells
def test_measuring_and_choosing(arrays: Arrays, cell: str) -> None:
    """What the CPU finds with the same weights, and what `adaptive_k` makes of it."""
    shape: Shape = (24, 3, 4, 9)
    problem, is_init = make_problem(cell, shape), make_masks("is_init", shape)["is_init"]
    state, max_lag = pair(problem, problem.hx), 8
    layer, (x, y) = arrays.primitive(problem), arrays.all((problem.x, problem.grad_out))
    found = measure_lags(
        layer,
        given_gradient,
        x,
        y,
        max_lag,
        state=arrays.all(state),
        is_init=arrays.array(is_init),
        losses=5,
    )
    phi, _ = measured(reference, problem, max_lag, is_init)
    chosen = [8, 12, 16, 19, 23]
    wanted = phi[:, chosen].reshape(max_lag + 1, -1)
    assert_close(found.phi, wanted, "gradient", length=problem.length)
    assert problem.grad_out is not None
    grad_out = np.zeros_like(problem.grad_out)
    grad_out[chosen] = problem.grad_out[chosen]
    _, sums = measured(reference, replace(problem, grad_out=grad_out), max_lag, is_init)
    mean = sums.reshape(max_lag + 1, -1).cumsum(axis=0) / (len(chosen) * 3)
    gradient = np.linalg.norm(mean, axis=1)
    assert_close(found.gradient, gradient, "gradient", length=problem.length)
    expected = adaptive_k(found.phi, gradient=found.gradient, delta=0.5)
    placed = arrays.all((found.phi, found.gradient))
    choice = adaptive_k(placed[0], gradient=placed[1], delta=0.5)
    assert repr(choice) == repr(expected)


def test_a_precision_is_that_of_both_passes(arrays: Arrays) -> None:
    """In TF32 gradients and norms are further off than full float32 allows."""
    problem = make_problem("gru", SHAPE, "float32")
    x, y = arrays.all((problem.x, problem.grad_out))
    state, grad_state = arrays.all((pair(problem, problem.hx), pair(problem, problem.grad_hx)))
    expected = run(reference, problem)
    layer = arrays.primitive(problem, precision="highest")
    grads = checkpointed(4)(layer, given_gradient, x, y, state, grad_state=grad_state).grads
    actual = {f"grad_{name}": arrays.numpy(value) for name, value in grads.params.items()}
    compare(problem, actual, {name: expected[name] for name in actual})
    found = measure_lags(layer, given_gradient, x, y, 4, state=state, losses=7).phi
    wanted = measured(reference, problem, 4)[0][:, 4:].reshape(5, -1)
    assert_close(found, wanted, "gradient", length=problem.length)


# --- What cannot be made of them ----------------------------------------------------------------


def test_modules_are_for_the_host() -> None:
    x: Any = Interface(np.zeros((5, 2, 3), "float32"))
    with pytest.raises(TypeError, match=r"^GRU: x: expected an array, got Interface"):
        nn.GRU(3, 4)(x)


@pytest.mark.parametrize("wrap", [Interface, lambda a: Exporter(a, (2, 0))])
def test_arrays_of_unknown_libraries(wrap: Callable[[Any], Any]) -> None:
    """They cannot be cut into segments, nor brought to the host."""
    array = wrap(np.ones((5, 2, 3)))
    got = r"expected an array of PyTorch or CuPy, or one on the host, got \w+$"
    with pytest.raises(TypeError, match=f"^checkpointed: x: {got}"):
        checkpointed()(nn.GRU(3, 4), given_gradient, array, array)
    with pytest.raises(TypeError, match=f"^measure_lags: x: {got}"):
        measure_lags(nn.GRU(3, 4), given_gradient, array, array, 2)
    with pytest.raises(TypeError, match=f"^adaptive_k: phi: {got}"):
        adaptive_k(array)
    with pytest.raises(TypeError, match=f"^adaptive_k: gradient: {got}"):
        adaptive_k(np.ones(5), gradient=array)
    with pytest.raises(TypeError, match=f"^artbp: cut: {got}"):
        artbp(5, 2, cut=array)


def test_the_trainer_is_for_the_host() -> None:
    weights: Any = [Interface(np.zeros(shape)) for shape in ((12, 3), (12, 4))]
    layer, optimizer = Primitive("gru", *weights), optim.SGD({"w": np.zeros(3)}, lr=0.1)
    message = r"^TBPTT: model: expected weights on the host, got some on a GPU, where tbptt_fast"
    with pytest.raises(TypeError, match=message):
        TBPTT(layer, given_gradient, optimizer, k1=4)


def test_models_that_are_none() -> None:
    model: Any = object()
    message = "expected a module of tbptt_fast.nn or a Primitive, got object"
    with pytest.raises(TypeError, match=f"^checkpointed: model: {message}"):
        checkpointed()(model, given_gradient, np.ones((3, 1, 1)), np.ones((3, 1, 1)))
    two = nn.Sequential(*(Primitive("rnn", np.ones((1, 1)), np.ones((1, 1))) for _ in range(2)))
    message = "expected a Primitive as the only recurrent layer"
    with pytest.raises(TypeError, match=f"^measure_lags: model: {message}"):
        measure_lags(two, given_gradient, np.ones((3, 1, 1)), np.ones((3, 1, 1)), 1)


def test_where_arrays_lie() -> None:
    torch = pytest.importorskip("torch")
    array = np.ones(3)
    for host in (array, torch.ones(3), torch.ones(3, requires_grad=True), Exporter(array), [1.0]):
        assert not _places.lies_on_gpu(host)
    for placed in (Interface(array), Exporter(array, (2, 1)), Exporter(array, (13, 0))):
        assert _places.lies_on_gpu(placed)
