"""Windows have the estimator's gradients, to the last step; streams can be taken up again."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast.data import DataError, TextStream

from .cases import Problem, compare, make_masks, make_problem, run

torch = pytest.importorskip("torch")

from tbptt_fast.torch.streams import StreamBatcher, detach_state, windows  # noqa: E402

SHAPE = (11, 3, 5, 7)
WINDOWS = [(1, 1), (1, 4), (2, 3), (3, 3), (3, 7), (4, 6), (4, 11), (5, 30), (11, 11), (20, 25)]


def tensor(array: Any) -> Any:
    return torch.from_numpy(np.array(array))


Module: Any = torch.nn.Module


class Cell(Module):  # type: ignore[misc]
    """nn.LSTM in float64 with a problem's weights; a loop over steps where there are resets."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        _, _, inputs, hidden = problem.shape
        self.lstm = torch.nn.LSTM(inputs, hidden).double()
        self.calls: list[int] = []
        with torch.no_grad():
            for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
                place = name.replace("w", "weight").replace("b_", "bias_") + "_l0"
                getattr(self.lstm, place).copy_(tensor(getattr(problem, name)))

    def forward(self, x: Any, state: Any, is_init: Any = None) -> Any:
        self.calls.append(len(x))
        if is_init is None:
            return self.lstm(x, state)
        outputs = []
        for now, reset in zip(x, is_init, strict=True):
            state = tuple(torch.where(reset[:, None], torch.zeros_like(s), s) for s in state)
            out, state = self.lstm(now[None], state)
            outputs.append(out)
        return torch.cat(outputs), state

    def gradients(self) -> dict[str, Any]:
        short = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
        found = {n.removesuffix("_l0"): p.grad for n, p in self.lstm.named_parameters()}
        return {f"grad_{short[name]}": grad.numpy() for name, grad in found.items()}


def summed_over_windows(problem: Problem, k1: int, k2: int, pieces: int, flags: Any) -> Any:
    """Outputs and gradients of all windows; `pieces` is the length of chunks, 0: one stream."""
    model = Cell(problem)
    x = tensor(problem.x).requires_grad_()
    assert problem.hx is not None
    hx = tuple(tensor(s)[None].requires_grad_() for s in problem.hx)
    items = [x, tensor(problem.grad_out), *([] if flags is None else [tensor(flags)])]
    stream: Any = tuple(items)
    if pieces:
        cut = range(0, len(x), pieces)
        stream = (tuple(item[begin : begin + pieces] for item in items) for begin in cut)
    outputs, steps = [], len(x)
    for n, window in enumerate(windows(stream, k1, k2, state=hx)):
        lowest = max(0, (n + 1) * k1 - k2)
        assert (window.start, len(window)) == (n * k1, min(k1, steps - n * k1))
        assert window.context == n * k1 - lowest
        torch.testing.assert_close(window.data[0], x[lowest : n * k1 + len(window)], rtol=0, atol=0)
        model.calls.clear()
        out = window.run(model)
        assert sum(model.calls) == len(window) + window.context
        # Chunks joined from x share a node with the next window.
        (out * window.new[1]).sum().backward(retain_graph=True)
        outputs.append(out.detach())
    grads = {"grad_x": x.grad, **{f"grad_{n}0": s.grad[0] for n, s in zip("hc", hx, strict=True)}}
    found = {name: grad.numpy() for name, grad in grads.items()}
    return {"out": torch.cat(outputs).numpy(), **found, **model.gradients()}


@pytest.mark.parametrize(("k1", "k2"), WINDOWS)
@pytest.mark.parametrize("pieces", [0, 1, 3, 4])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "is_init"])
def test_windows_are_the_estimator(k1: int, k2: int, pieces: int, resets: bool) -> None:
    problem = make_problem("lstm", SHAPE)
    problem = Problem(**{**vars(problem), "grad_hx": None})
    flags = make_masks("is_init", SHAPE)["is_init"] if resets else None
    expected = run(tbptt_fast, problem, truncation=(k1, k2), is_init=flags)
    actual = summed_over_windows(problem, k1, k2, pieces, flags)
    compare(problem, actual, {name: expected[name] for name in actual})


def test_chunks_by_hand() -> None:
    """k1 = k2 without `run`: the state is carried, detached, and the last chunk is short."""
    problem = Problem(**{**vars(make_problem("lstm", SHAPE)), "grad_hx": None, "hx": None})
    model, outputs = Cell(problem), []
    x, grad_out = tensor(problem.x), tensor(problem.grad_out)
    pieces = windows({"x": x, "grad": grad_out}, 4)
    for window in pieces:
        out, state = model.lstm(window.data["x"], window.state)
        (out * window.new["grad"]).sum().backward()
        window.carry(state)
        outputs.append(out.detach())
    out, hx, tape = tbptt_fast.lstm_forward(
        problem.x, None, problem.w_ih, problem.w_hh, problem.b_ih, problem.b_hh
    )
    grads = tbptt_fast.lstm_backward(tape, problem.grad_out, truncation=4)
    expected = {"out": out, "h_n": hx[0], "c_n": hx[1]}
    expected |= {f"grad_{name}": getattr(grads, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")}
    final = {f"{n}_n": s[0].numpy() for n, s in zip("hc", pieces.state, strict=True)}
    assert not any(s.requires_grad for s in pieces.state)
    compare(problem, {"out": torch.cat(outputs).numpy(), **final, **model.gradients()}, expected)


@pytest.mark.parametrize(
    ("k1", "k2", "expected"),
    [
        (1, 3, [0.9, 0.36, 0.108]),  # 0.288 counts twice what reaches the second state
        (1, 2, [0.9, 0.36, 0.072]),
        (1, 1, [0.9, 0.18, 0.036]),
        (2, 3, [0.9, 0.36, 0.072]),  # the third loss is in the window of steps 2 and 3
    ],
)
def test_scalar_recurrence(k1: int, k2: int, expected: list[float]) -> None:
    """x_t = w·x_(t-1) with w = 0.2, x_0 = 0.9, every derivative by itself."""
    weight = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def model(steps: Any, state: Any) -> Any:
        found = []
        for _ in steps:
            state = weight * state
            found.append(state)
        return torch.stack(found), state

    first = torch.full((1,), 0.9, dtype=torch.float64)
    derivatives = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].item()
        for window in windows(torch.zeros(3, 1), k1, k2, state=first)
        for loss in window.run(model)[:, 0]
    ]
    np.testing.assert_allclose(derivatives, expected, rtol=1e-14)


def updates(pieces: Any, model: Any, optimizer: Any, count: int) -> list[float]:
    losses = []
    for _, window in zip(range(count), pieces, strict=False):
        loss = ((window.run(model) - window.new[1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def saved(tree: Any) -> Any:
    """Through a file, as tensors and plain values only."""
    file = io.BytesIO()
    torch.save(tree, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("pieces", [0, 2, 3, 7])
@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (3, 5), (2, 9)])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_resumed_run_has_the_same_bits(pieces: int, k1: int, k2: int, stop: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(17, 3, 4), torch.randn(17, 3, 5)
    first = torch.nn.LSTM(4, 5).state_dict()

    def begin(weights: Any, place: int = 0) -> tuple[Any, Any]:
        model = torch.nn.LSTM(4, 5)
        model.load_state_dict(weights)
        cut = range(place, 17, pieces or 17)
        chunks = [(x[i : i + pieces], y[i : i + pieces]) for i in cut] if pieces else (x, y)
        return model, windows(chunks, k1, k2)

    model, whole = begin(first)
    expected = updates(whole, model, torch.optim.SGD(model.parameters(), 0.1), 99)
    assert len(expected) == -(-17 // k1)

    other, part = begin(first)
    losses = updates(part, other, torch.optim.SGD(other.parameters(), 0.1), stop)
    state = saved(part.state_dict())
    # What was read lies in the state; the stream itself goes on at the next chunk.
    read = (
        state["start"] - state["context"] + (0 if state["data"] is None else len(state["data"][0]))
    )
    other, rest = begin(other.state_dict(), read if pieces else 0)
    rest.load_state_dict(state)
    losses += updates(rest, other, torch.optim.SGD(other.parameters(), 0.1), 99)
    assert losses == expected
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_places_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(9, 2, 3)
    state = windows(x, 2, 4).state_dict()
    with pytest.raises(ValueError, match="expected k1 = 2, k2 = 5, got k1 = 2, k2 = 4"):
        windows(x, 2, 5).load_state_dict(state)
    with pytest.raises(ValueError, match="no such place in 9 steps: start 10, context 0"):
        windows(x, 2, 4).load_state_dict(state | {"start": 10})
    with pytest.raises(ValueError, match="expected the place in an iterable of chunks"):
        windows([x], 2, 4).load_state_dict(state | {"start": 2, "context": 2})
    begun = windows(x, 2, 4)
    next(begun).run(torch.nn.LSTM(3, 3))
    next(begun).run(torch.nn.LSTM(3, 3))
    with pytest.raises(ValueError, match="restored before its start"):
        begun.load_state_dict(state)


def test_a_state_that_was_not_carried() -> None:
    pieces = windows(torch.zeros(9, 2, 3), 2, 4)
    window = next(pieces)
    with pytest.raises(ValueError, match="expected windows with k1 = k2"):
        window.carry(None)
    message = r"no state has left Window\(start=0, steps=2, context=0\)"
    for ask in (lambda: next(pieces), lambda: pieces.state, pieces.state_dict):
        with pytest.raises(RuntimeError, match=message):
            ask()


def walk(stream: Any) -> None:
    for window in windows(stream, 2):
        window.carry(None)


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        (np.zeros((4, 2, 1)), TypeError, "expected a tensor, or tuples, .* got ndarray"),
        ((torch.zeros(4, 2), np.zeros((4, 2))), TypeError, "expected a tensor.* got ndarray"),
        ((torch.zeros(4, 2), torch.zeros(5, 2)), ValueError, r"got \[\[4, 2\], \[5, 2\]\]"),
        ((torch.zeros(4, 2), torch.zeros(4, 3)), ValueError, r"got \[\[4, 2\], \[4, 3\]\]"),
        (torch.zeros(4), ValueError, r"expected items of shapes \[T, B, ...\], got \[\[4\]\]"),
        ({"inputs": torch.zeros(4, 2)}, ValueError, "expected a dict with x, got 'inputs'"),
        ((), ValueError, "expected at least one tensor"),
        ([None], TypeError, "expected chunks of tensors, got None"),
        ((torch.zeros(4, 2), None, torch.zeros(4, 2)), TypeError, r"is_init: .* torch.float32"),
        ([torch.zeros(1, 2), (torch.zeros(1, 2),)], ValueError, "expected one structure"),
        ([torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)], ValueError, r"\[B, ...\] of \[\[2, 3\]\]"),
    ],
)
def test_streams_that_cannot_be_used(stream: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        walk(stream)


@pytest.mark.parametrize(("k1", "k2"), [(0, None), (2, 1), (-1, 4)])
def test_windows_that_drop_losses(k1: int, k2: int | None) -> None:
    with pytest.raises(ValueError, match="windows: expected 1 <= k1 <= k2, got"):
        windows(torch.zeros(4, 2), k1, k2)


def test_outputs_of_a_wrong_length() -> None:
    with pytest.raises(ValueError, match=r"out: expected 3 steps, got \{2\}"):
        next(windows(torch.zeros(4, 2), 3)).run(lambda x, state: (x[1:], state))


def test_an_empty_stream_has_no_windows() -> None:
    assert list(windows(torch.zeros(0, 2), 3)) == []
    assert list(windows([], 3)) == []


class Pair(NamedTuple):
    h: Any
    c: Any


def test_detach_state_keeps_the_structure() -> None:
    weight = torch.ones(2, requires_grad=True)
    state = {"a": Pair(2 * weight, None), "b": [OrderedDict(z=3 * weight), ()]}
    found = detach_state(state)
    assert found["a"].c is None
    assert isinstance(found["a"], Pair)
    assert isinstance(found["b"][0], OrderedDict)
    assert found["b"][1] == ()
    assert not found["a"].h.requires_grad
    assert torch.equal(found["b"][0]["z"], torch.full((2,), 3.0))
    assert state["b"][0]["z"].requires_grad  # the old one is as it was
    assert detach_state(None) is None
    with pytest.raises(TypeError, match=r"detach_state: expected a tensor, .* got int"):
        detach_state((weight, 3))


# StreamBatcher.


@pytest.mark.parametrize(("batch", "steps", "count"), [(2, 4, 41), (3, 5, 100), (1, 7, 22)])
def test_one_rank_is_the_stream_of_numpy(batch: int, steps: int, count: int) -> None:
    ids = np.arange(count)
    batcher = StreamBatcher(tensor(ids), batch_size=batch, steps=steps)
    stream = TextStream(ids, batch, steps)
    assert len(batcher) == len(stream)
    for epoch in (1, 2):
        for chunk, window in zip(batcher, stream, strict=True):
            np.testing.assert_array_equal(chunk.x.numpy(), window.x)
            np.testing.assert_array_equal(chunk.y.numpy(), window.y)
            flags = np.zeros(window.x.shape, bool) if window.is_init is None else window.is_init
            np.testing.assert_array_equal(chunk.is_init.numpy(), flags)
            assert chunk.x.is_contiguous()
        assert (batcher.epoch, batcher.position) == (epoch, 0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_rows_of_one_process(world: int) -> None:
    series, targets = torch.randn(103, 4), torch.randn(103, 2)
    whole = StreamBatcher(series, targets, batch_size=6, steps=5, rank=0, world_size=1)
    ranks = [
        StreamBatcher(series, targets, batch_size=6 // world, steps=5, rank=r, world_size=world)
        for r in range(world)
    ]
    count = 0
    for chunk, *parts in zip(whole, *ranks, strict=True):
        for item, pieces in zip(chunk, zip(*parts, strict=True), strict=True):
            assert torch.equal(item, torch.cat(pieces, dim=1))
        count += len(chunk.x)
    assert count == 103 // 6


@pytest.mark.parametrize("passed", [0, 1, 4, 5, 9])
def test_position_is_saved_and_restored(passed: int) -> None:
    def endless(batcher: Any) -> Any:
        while True:
            yield from torch.utils.data.DataLoader(batcher, batch_size=None)

    stream = StreamBatcher(torch.arange(41), batch_size=2, steps=4)
    other = StreamBatcher(torch.arange(41), batch_size=2, steps=4)
    chunks = endless(stream)
    for _ in range(passed):
        next(chunks)
    assert (stream.epoch, stream.position) == (passed // 5, passed % 5 * 4)
    other.load_state_dict(saved(stream.state_dict()))
    for _, mine, theirs in zip(range(7), chunks, endless(other), strict=False):
        assert all(map(torch.equal, mine, theirs))
    assert stream.state_dict() == other.state_dict()


def test_chunks_are_copies() -> None:
    ids = torch.arange(9)
    for chunk in StreamBatcher(ids, batch_size=1, steps=4):
        chunk.x.zero_()
    assert ids.tolist() == list(range(9))


def test_a_loader_with_workers_is_refused() -> None:
    batcher = StreamBatcher(torch.arange(41), batch_size=2, steps=4)
    loader = torch.utils.data.DataLoader(
        batcher, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    with pytest.raises(RuntimeError, match="expected a DataLoader with num_workers=0, got 1"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sequence": np.arange(9)}, TypeError, "sequence: expected a tensor, got ndarray"),
        ({"targets": [1]}, TypeError, "targets: expected a tensor, got list"),
        ({"sequence": torch.tensor(3)}, ValueError, r"sequence: expected shape \[N, ...\], got"),
        ({"targets": torch.arange(8)}, ValueError, "targets: expected 9 items, got 8"),
        ({"steps": 0}, ValueError, "batch_size and steps of at least 1, got 2 and 0"),
        ({"rank": 0}, ValueError, "rank and world_size together, got 0 and None"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank: expected 0 to 1, got 2"),
        ({"steps": 5}, DataError, "8 items are too few: 2 rows with chunks of 5 steps"),
        ({"rank": 1, "world_size": 3}, DataError, "8 items are too few: 6 rows"),
    ],
)
def test_wrong_arguments(changes: Any, error: Any, message: str) -> None:
    given = {"sequence": torch.arange(9), "batch_size": 2, "steps": 4, **changes}
    with pytest.raises(error, match=message):
        StreamBatcher(given.pop("sequence"), **given)


def test_a_place_in_another_stream_is_refused() -> None:
    batcher = StreamBatcher(torch.arange(41), batch_size=2, steps=4, rank=0, world_size=2)
    state = batcher.state_dict()
    for name, value in (("length", 11), ("batch_size", 3), ("steps", 5), ("rank", 1)):
        with pytest.raises(ValueError, match=f"StreamBatcher: {name}: expected"):
            batcher.load_state_dict(state | {name: value})
    for place in ({"position": 3}, {"position": 12}, {"epoch": -1}):
        with pytest.raises(ValueError, match="no such place"):
            batcher.load_state_dict(state | place)
