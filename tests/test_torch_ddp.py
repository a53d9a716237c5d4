"""Two processes are one with the whole batch; what they save is where they were, to the bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from .cases import assert_close

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from tbptt_fast.torch.streams import StreamBatcher, windows  # noqa: E402

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STEPS, BATCH, K1, K2 = 30, 6, 4, 7
# Short, but with processes that have 8 and 9 windows, contexts, and a short last window.
SHORT = ["--k1", "16", "--k2", "24", "--batch", "1800", "--hidden", "4", "--epochs", "2"]


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TBPTT_FAST_NUM_THREADS", "1")


def in_two_processes(function: Callable[..., Any], folder: Path, *values: Any) -> list[Any]:
    """What `function(rank, folder, *values)` returns in each."""
    torch.multiprocessing.spawn(_process, (function, folder, values), nprocs=2)
    return [torch.load(folder / f"result{rank}.pt") for rank in range(2)]


def _process(rank: int, function: Callable[..., Any], folder: Path, values: Any) -> None:
    torch.set_num_threads(1)
    torch.save(function(rank, folder, *values), folder / f"result{rank}.pt")


class grouped:
    """The group of both processes, which meet in a file.

    Models must be gone before it ends: the last owner of a group waits for its threads, and a model
    does so with the interpreter's lock, which they may need to let go of a tensor.
    """

    def __init__(self, rank: int, folder: Path) -> None:
        self.options = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": 2}

    def __enter__(self) -> None:
        dist.init_process_group("gloo", **self.options)

    def __exit__(self, *_: Any) -> None:
        dist.destroy_process_group()


Module: Any = torch.nn.Module


class Net(Module):  # type: ignore[misc]
    """An LSTM and a linear layer in float64; one call a window, as `join` needs it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = torch.nn.LSTM(3, 5).double(), torch.nn.Linear(5, 2).double()

    def forward(self, window: Any) -> Any:
        def read(x: Any, state: Any, is_init: Any) -> Any:
            assert not is_init[1:].any()
            out, state = self.lstm(x, state)
            return self.head(out), state

        return window.run(read)


def series(steps: int, rows: int, seed: int = 0) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((steps * rows, 3), (steps * rows, 2))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def loss_of(model: Any, window: Any, rows: int) -> Any:
    return ((model(window) - window.new.y) ** 2).sum() / (K1 * rows)


def tensors(items: Any) -> dict[str, Any]:
    return {name.removeprefix("module."): value.detach().clone() for name, value in items}


def assert_equal_to_rounding(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        length = STEPS * BATCH
        assert_close(value.numpy(), expected[name].numpy(), "gradient", length=length, name=name)


def whole_batch(model: Any, batch: int) -> dict[str, Any]:
    """The gradients of one epoch; rank and number of ranks are those of the group, if there is."""
    batcher = StreamBatcher(*series(STEPS, BATCH), batch_size=batch, steps=K1)
    for window in windows(batcher, K1, K2):
        loss_of(model, window, batch).backward()
    return tensors((name, p.grad) for name, p in model.named_parameters())


def half_of_the_batch(rank: int, folder: Path) -> dict[str, Any]:
    with grouped(rank, folder):
        return whole_batch(DistributedDataParallel(Net()), BATCH // 2)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    first, second = in_two_processes(half_of_the_batch, tmp_path)
    expected = whole_batch(Net(), BATCH)
    assert max(grad.abs().max() for grad in expected.values()) > 0.1
    assert_equal_to_rounding(first, expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


LENGTHS = (STEPS, 17)  # 8 windows and 5


def own_stream(rank: int) -> Any:
    inputs, targets = series(LENGTHS[rank], BATCH, seed=rank)
    batcher = StreamBatcher(inputs, targets, batch_size=BATCH, steps=K1, rank=0, world_size=1)
    return windows(batcher, K1, K2)


def joined(rank: int) -> tuple[int, dict[str, Any]]:
    count = 0
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with model.join():
        for window in own_stream(rank):
            optimizer.zero_grad()
            loss_of(model, window, BATCH).backward()
            optimizer.step()
            count += 1
    return count, tensors(model.state_dict().items())


def uneven(rank: int, folder: Path) -> Any:
    with grouped(rank, folder):
        return joined(rank)


def test_streams_of_different_lengths_are_joined(tmp_path: Path) -> None:
    """A process without windows adds zeros: every window weighs the same."""
    (first, weights), (second, others) = in_two_processes(uneven, tmp_path)
    assert (first, second) == (8, 5)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for pair in zip_longest(own_stream(0), own_stream(1)):
        optimizer.zero_grad()
        sum(loss_of(model, window, BATCH) / 2 for window in pair if window is not None).backward()
        optimizer.step()
    assert_equal_to_rounding(weights, tensors(model.state_dict().items()))


# The example.


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def runs_of_the_example(rank: int, folder: Path, runs: list[tuple[int, list[str]]]) -> list[Any]:
    import ddp_language_model

    results = []
    for port, options in runs:
        group = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
        picture = ["--out", str(folder / "picture.png")]
        results.append(ddp_language_model.main([*SHORT, *picture, *options]))
    return results


def same(one: Any, other: Any) -> bool:
    """Equal trees, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    """Weights, moments, places, states and losses of both processes; stopped in both epochs."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    names = [str(tmp_path / name) for name in ("whole.pt", "parts.pt")]
    whole, parts = (["--checkpoint", name] for name in names)
    options = [whole, [*parts, "--stop", "3"]]
    options += [[*parts, "--resume", "--stop", "13"], [*parts, "--resume"]]
    runs = [(free_port(), given) for given in options]
    results = in_two_processes(runs_of_the_example, tmp_path, runs)
    assert results[0] == results[1]
    complete, stopped, again, resumed = results[0]
    assert [len(bits) for bits in complete] == [16, 18]
    assert [len(bits) for bits in stopped] == [3, 3]
    assert [len(bits) for bits in again] == [12, 13]
    assert again == [bits[:count] for bits, count in zip(complete, (12, 13), strict=True)]
    assert resumed == complete
    expected, found = (torch.load(name, weights_only=True) for name in names)
    assert expected[0] == 18
    assert same(found, expected)

    # In a process of its own: a process group that an exception's frames keep alive may never end.
    alone = [sys.executable, str(EXAMPLES / "ddp_language_model.py"), *SHORT, *parts, "--resume"]
    ended = subprocess.run(alone, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode != 0
    assert "parts.pt: expected 2 processes, got 1" in ended.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_the_example_runs(processes: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    start = [*start, "--master-port", str(free_port())] if processes == 2 else []
    command = [sys.executable, *start, str(EXAMPLES / "ddp_language_model.py"), *SHORT]
    ended = subprocess.run(
        [*command, "--stop", "4"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = ended.stdout.splitlines()
    assert lines[0] == "| process | windows | first bits | last bits |"
    assert len(lines) == 3 + processes
    for line in lines[2:-1]:
        _, count, first, last = (float(cell) for cell in line.strip("|").split("|"))
        assert count == 4
        assert last < first < 7
    assert lines[-1] == "picture: ddp_language_model.png"
    assert "language model:" in ended.stderr
    assert (tmp_path / "ddp_language_model.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert torch.load(tmp_path / "ddp_language_model.pt", weights_only=True)[0] == 4
