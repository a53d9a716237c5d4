"""ConvRNN2d, ConvGRU2d, ConvLSTM2d: stacks, training, the usual PyTorch cell's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn, optim, tbptt
from tbptt_fast import reference_convrecurrent as reference

from .cases import assert_close, assert_identical
from .nn_cases import flat, normal, run

STEPS, BATCH, INPUTS, HIDDEN, SIZE = 6, 2, 3, 5, (7, 6)
LENGTH = 9 * (INPUTS + HIDDEN) + STEPS * BATCH * SIZE[0] * SIZE[1]
KINDS: dict[str, Any] = {
    "convrnn": nn.ConvRNN2d,
    "convgru": nn.ConvGRU2d,
    "convlstm": nn.ConvLSTM2d,
}
kinds = pytest.mark.parametrize("kind", KINDS)
layouts = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


def make(kind: str, num_layers: int = 1, **options: Any) -> Any:
    options = {"dtype": "float64", "seed": 1, **options}
    return KINDS[kind](INPUTS, HIDDEN, 3, num_layers, **options)


def images(layout: str, channels: int, *leading: int) -> tuple[int, ...]:
    return (*leading, channels, *SIZE) if layout == "NCHW" else (*leading, *SIZE, channels)


def make_state(kind: str, layout: str, num_layers: int) -> Any:
    shape = images(layout, HIDDEN, num_layers, BATCH)
    h, c = normal(*shape, seed=3), normal(*shape, seed=4)
    return (h, c) if kind == "convlstm" else h


@layouts
@pytest.mark.parametrize(
    ("kind", "peephole"),
    [(kind, False) for kind in KINDS] + [("convlstm", True), ("convlstm", SIZE)],
    ids=[*KINDS, "convlstm-channel", "convlstm-map"],
)
def test_a_stack_is_the_oracle_twice(kind: str, layout: str, peephole: Any) -> None:
    options: dict[str, Any] = {"layout": layout, "bias": peephole is not True}
    if peephole:
        options["peephole"] = peephole
    module = make(kind, 2, **options)
    for name, parameter in module.parameters().items():
        if name.startswith("peephole"):
            parameter[...] = normal(*parameter.shape)
    x, state = normal(*images(layout, INPUTS, STEPS, BATCH)), make_state(kind, layout, 2)
    found = run(module, x, state, truncation=2)

    def first(a: Any) -> Any:
        return a if layout == "NCHW" else np.moveaxis(a, -1, -3)

    forward = getattr(reference, f"{kind}_forward")
    backward = getattr(reference, f"{kind}_backward")
    y, tapes, finals = first(x), [], []
    for layer in range(2):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [module.parameters().get(f"{name}_l{layer}") for name in names]
        more = {}
        if peephole:
            given = module.parameters()[f"peephole_l{layer}"]
            more["peephole"] = given if given.ndim == 2 else first(given)
        hx = tuple(first(s[layer]) for s in flat(state))
        y, last, tape = forward(y, hx if len(hx) > 1 else hx[0], *weights, **more)
        tapes.append(tape)
        finals.append(flat(last))
    grad = first(normal(*images(layout, HIDDEN, STEPS, BATCH), seed=9))
    expected = {"y": y}
    for layer in (1, 0):
        states = [
            first(normal(*images(layout, HIDDEN, 2, BATCH), seed=8)[layer]) for _ in finals[layer]
        ]
        grads = backward(
            tapes[layer], grad, tuple(states) if len(states) > 1 else states[0], truncation=2
        )
        grad = grads.x
        for i, (value, by) in enumerate(zip(finals[layer], flat(grads.hx), strict=True)):
            expected[f"state {i} {layer}"], expected[f"grad of state {i} {layer}"] = value, by
        for name, field in (("weight_ih", "w_ih"), ("bias_hh", "b_hh"), ("peephole", "peephole")):
            if getattr(grads, field) is not None:
                expected[f"grad of {name}_l{layer}"] = getattr(grads, field)
    expected["grad of x"] = grad
    for name, value in expected.items():
        short = name[:-2] if "state" in name else name
        actual = found[short][int(name[-1])] if "state" in name else found[short]
        if actual.ndim > 2 and "weight" not in name:
            actual = first(actual)
        what = "gradient" if name.startswith("grad") else "forward"
        assert_close(actual, value, what, length=2 * LENGTH, name=name)


@kinds
def test_learns_within_a_sequential(kind: str) -> None:
    """A trainer of truncated windows over a chain with convolutions around the layer."""
    model = nn.Sequential(
        nn.TimeDistributed(nn.Conv2d(1, 3, 3, padding=1, seed=0)),
        KINDS[kind](3, 4, 3, seed=0),
        nn.TimeDistributed(nn.Conv2d(4, 1, 1, seed=0)),
    )
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((12, 2, 1, 6, 6)).astype(np.float32)
    target = np.roll(frames, 1, axis=0)  # the frame before
    target[0] = 0

    def loss_of(y: Any, expected: Any) -> tuple[float, Any]:
        return float(((y - expected) ** 2).mean()), 2 * (y - expected) / y.size

    optimizer = optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        y, _, tape = model.forward(frames)
        loss, grad = loss_of(y, target)
        grads = model.backward(tape, grad, truncation=4, needs_x=False)
        optimizer.step(grads.params)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


@kinds
@pytest.mark.parametrize("k2", [3, 5])
def test_in_the_trainer(kind: str, k2: int) -> None:
    """The TBPTT trainer carries its state from window to window, with k1 < k2 and resets too."""
    layer = KINDS[kind](1, 2, 3, seed=0)
    model = nn.Sequential(layer, nn.TimeDistributed(nn.Conv2d(2, 1, 3, padding=1, seed=0)))

    def loss(y: Any, target: Any) -> tuple[float, Any, float]:
        return float(((y - target) ** 2).sum()), 2 * (y - target), y.size

    trainer = tbptt.TBPTT(model, loss, optim.Adam(model.parameters(), lr=0.02), k1=3, k2=k2)
    x = normal(12, 2, 1, 5, 5, dtype="float32")
    target = np.roll(x, 1, axis=0)
    is_init = np.zeros((12, 2), bool)
    is_init[0], is_init[7, 1] = True, True
    losses = []
    for _ in range(30):
        windows = [slice(t, t + 3) for t in range(0, 12, 3)]
        losses.append(trainer.run((x[w], target[w], is_init[w]) for w in windows))
    assert losses[-1] < 0.8 * losses[0]


@kinds
def test_recomputed_gates_change_no_bit(kind: str) -> None:
    kept, again = (make(kind, 2, recompute=recompute) for recompute in (False, True))
    x, state = normal(*images("NCHW", INPUTS, STEPS, BATCH)), make_state(kind, "NCHW", 2)
    for truncation in (None, 2, (1, 3)):
        expected = run(kept, x, state, truncation=truncation)
        assert_identical(run(again, x, state, truncation=truncation), expected)


def test_the_usual_cell_of_pytorch() -> None:
    """One convolution over [x, h], gates i, f, o, g: equal outputs and gradients."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    convs = [
        torch.nn.Conv2d(columns + HIDDEN, 4 * HIDDEN, (3, 5), padding=(1, 2), dtype=torch.float64)
        for columns in (INPUTS, HIDDEN)
    ]
    x = torch.randn(STEPS, BATCH, INPUTS, *SIZE, dtype=torch.float64, requires_grad=True)
    y, finals = x, []
    for conv in convs:
        h = c = torch.zeros(BATCH, HIDDEN, *SIZE, dtype=torch.float64)
        outs = []
        for step in y:
            i, f, o, g = torch.split(conv(torch.cat([step, h], 1)), HIDDEN, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        y = torch.stack(outs)
        finals.append((h, c))
    grad = torch.randn_like(y)
    y.backward(grad)

    arrays = [(conv.weight.detach().numpy(), conv.bias.detach().numpy()) for conv in convs]
    module = nn.ConvLSTM2d.from_ifog(arrays)
    out, (h_n, c_n), tape = module.forward(x.detach().numpy())
    grads = module.backward(tape, grad.numpy())
    pairs = [(out, y.detach().numpy(), "forward"), (grads.x, x.grad.numpy(), "gradient")]
    for layer, (h, c) in enumerate(finals):
        pairs += [(h_n[layer], h.detach().numpy(), "forward")]
        pairs += [(c_n[layer], c.detach().numpy(), "forward")]
        order = np.arange(4 * HIDDEN).reshape(4, -1)[[0, 1, 3, 2]].ravel()
        by_weight = convs[layer].weight.grad.numpy()[order]
        split = by_weight.shape[1] - HIDDEN
        params = grads.params
        pairs += [
            (params[f"weight_ih_l{layer}"], by_weight[:, :split], "gradient"),
            (params[f"weight_hh_l{layer}"], by_weight[:, split:], "gradient"),
            (params[f"bias_ih_l{layer}"], convs[layer].bias.grad.numpy()[order], "gradient"),
        ]
    for actual, expected, what in pairs:
        assert_close(actual, expected, what, length=2 * LENGTH)
    without = nn.ConvLSTM2d.from_ifog([(weight, None) for weight, _ in arrays])
    assert not without.parameters()["bias_ih_l0"].any()


def test_wrong_arguments() -> None:
    for error, message, call in (
        (ValueError, "kernel_size: expected odd", lambda: nn.ConvLSTM2d(1, 2, 4)),
        (
            ValueError,
            "kernel_size: expected an integer or a pair",
            lambda: nn.ConvGRU2d(1, 2, (3,)),
        ),
        (ValueError, "hidden_channels: expected a positive", lambda: nn.ConvGRU2d(1, 0, 3)),
        (ValueError, "layout: expected 'NCHW' or", lambda: nn.ConvGRU2d(1, 2, 3, layout="CHW")),
        (TypeError, "recompute: expected True", lambda: nn.ConvGRU2d(1, 2, 3, recompute=1)),
        (ValueError, "nonlinearity: expected", lambda: nn.ConvRNN2d(1, 2, 3, nonlinearity="sin")),
        (ValueError, "dropout: acts between", lambda: nn.ConvGRU2d(1, 2, 3, dropout=0.5)),
        (TypeError, "dtype: expected float32", lambda: nn.ConvGRU2d(1, 2, 3, dtype="int32")),
        (ValueError, "layers: expected at least one", lambda: nn.ConvLSTM2d.from_ifog([])),
        (
            ValueError,
            r"layers\[0\]: expected a weight",
            lambda: nn.ConvLSTM2d.from_ifog([(np.ones((8, 2, 3, 3)), None)]),
        ),
        (
            ValueError,
            r"layers\[0\]: expected a bias \[8\]",
            lambda: nn.ConvLSTM2d.from_ifog([(np.ones((8, 3, 3, 3)), np.ones(7))]),
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    module = nn.ConvLSTM2d(1, 2, 3)
    x = np.ones((3, 2, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"x: expected shape \[T, B, 1, Y, X\]"):
        module.forward(x[:, :, [0, 0]])
    with pytest.raises(ValueError, match=r"state: expected a pair \(h, c\)"):
        module.forward(x, x[:1])
    with pytest.raises(ValueError, match=r"state\[0\]: expected shape \[1, B, 2, Y, X\]"):
        module.forward(x, (x[:1], x[:1]))


@kinds
def test_checkpoints_and_dropout(kind: str) -> None:
    module, other = (make(kind, 3, dropout=0.5, seed=seed) for seed in (1, 2))
    other.load_state_dict(module.state_dict())
    x = normal(*images("NCHW", INPUTS, STEPS, BATCH))
    module.eval(), other.eval()
    np.testing.assert_array_equal(module(x)[0], other(x)[0])
    module.train()
    y, _, tape = module.forward(x)
    assert np.abs(y - other(x)[0]).max() > 0
    assert module.backward(tape, np.ones_like(y)).x.shape == x.shape
    assert repr(module) == f"{type(module).__name__}(3, 5, (3, 3), 3)"
