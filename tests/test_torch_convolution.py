"""tbptt_fast.torch.Conv1d and Conv2d against torch.nn's; accelerate and decelerate."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402

from .torch_cases import close, pair, results_and_gradients  # noqa: E402

MODES = ("zeros", "reflect", "replicate", "circular")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "groups": 2, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.usefixtures("threads")
def test_like_torch(options: dict[str, Any], mode: str, dimensions: int) -> None:
    theirs, mine = pair(f"Conv{dimensions}d", 4, 6, 3, padding_mode=mode, **options)
    for shape in ((3, 4, *(11, 9)[:dimensions]), (4, *(11, 9)[:dimensions])):
        x = torch.randn(shape, requires_grad=True)
        close(
            results_and_gradients(mine, partial(mine, x), (x,)),
            results_and_gradients(theirs, partial(theirs, x), (x,)),
        )


@pytest.mark.parametrize("groups", [1, 4])
def test_memory_formats_are_kept(groups: int) -> None:
    theirs, mine = pair("Conv2d", 4, 8, 3, padding=1, groups=groups)
    for module in (theirs, mine):
        module.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 7, 9).to(memory_format=torch.channels_last).requires_grad_()
    result = mine(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    close(
        results_and_gradients(mine, lambda: mine(x), (x,)),
        results_and_gradients(theirs, lambda: theirs(x), (x,)),
    )
    plain = x.detach().contiguous()
    close(mine(plain), theirs(plain))
    assert mine(plain).is_contiguous()
    sliced = torch.randn(2, 8, 7, 9)[:, ::2]
    close(mine(sliced), theirs(sliced))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 5, 7, 7),
        torch.zeros(7, 7),
        torch.zeros(2, 4, 7, 7, dtype=torch.float64),
        torch.zeros(2, 4, 7, 7, device="meta"),
        torch.zeros(2, 4, 2, 2),
    ],
    ids=["channels", "rank", "dtype", "device", "kernel"],
)
def test_errors(x: Any) -> None:
    theirs, mine = pair("Conv2d", 4, 6, 3)
    with pytest.raises(RuntimeError, match=r"[Ee]xpected|should be|can't be greater|on cpu"):
        mine(x)
    if x.device.type != "meta":
        with pytest.raises(RuntimeError):
            theirs(x)
    with pytest.raises(RuntimeError, match="padding='same'"):
        ours.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), stride=2, padding="same")
    with pytest.raises(ValueError, match="stride: expected 2 integers, got 3"):
        ours.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), stride=(1, 2, 3))


class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A convolutional encoder, a recurrent layer that two places share, and what has no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()
        )
        self.memory = torch.nn.LSTM(36, 8)
        self.again = self.memory
        self.projected = torch.nn.LSTM(8, 8, proj_size=4)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        features = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(self.projected(self.memory(features)[0])[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_accelerate_and_decelerate() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    seen = []
    model.memory.register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory, parameters = model.memory, list(model.parameters())
    x = torch.randn(5, 2, 1, 5, 5)
    expected = results_and_gradients(model, lambda: model(x))
    report = ours.accelerate(model)
    assert report.swapped == {"encoder.0": "Conv2d", "memory": "LSTM"}
    assert set(report.left) == {"projected"}
    assert "projected: left alone, projections (proj_size)" in str(report)
    assert model.memory is memory is model.again
    assert isinstance(memory, ours.LSTM)
    assert not memory.training
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    close(results_and_gradients(model, lambda: model(x)), expected)
    assert len(seen) == 2
    optimizer.step()
    again = copy.deepcopy(model)
    close(again(x), model(x), 0)
    assert ours.accelerate(model).swapped == {}
    assert ours.decelerate(model) is model
    assert type(memory) is torch.nn.LSTM
    close(model(x), again(x))


def test_accelerate_leaves_what_it_does_not_know() -> None:
    class Own(torch.nn.GRU):  # type: ignore[misc, name-defined]
        pass

    model = torch.nn.ModuleDict(
        {
            "own": Own(2, 3),
            "small": torch.nn.GRU(2, 3, dtype=torch.bfloat16),
            "away": torch.nn.Conv1d(2, 3, 1, device="meta"),
            "other": torch.nn.Linear(2, 3),
        }
    )
    report = ours.accelerate(model)
    assert report.swapped == {}
    assert "subclass of GRU" in report.left["own"]
    assert "bfloat16" in report.left["small"]
    assert "on meta" in report.left["away"]
    assert "other" not in report.left
    assert str(ours.accelerate(torch.nn.Linear(1, 1))).startswith("no recurrent layer")
    layer = torch.nn.RNN(2, 3)
    assert str(ours.accelerate(layer)) == "(model): RNN on tbptt_fast"
    for function in (ours.accelerate, ours.decelerate):
        with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got int"):
            function(3)  # type: ignore[type-var]
