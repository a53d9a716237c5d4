"""tbptt_fast.torch.RNN, GRU, LSTM: torch.nn's in every option, and what they add."""

from __future__ import annotations

import copy
import itertools
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

import tbptt_fast

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402

from .torch_cases import KINDS, close, pair, results_and_gradients  # noqa: E402

kinds = pytest.mark.parametrize("kind", KINDS)


def states(kind: str, *shape: int, dtype: Any = None) -> Any:
    """Leaves that require gradients: h, or (h, c)."""
    torch.manual_seed(2)
    made = [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(2)]
    return tuple(made) if kind == "LSTM" else made[0]


OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "batch_first", "bias"), values, strict=True))
    for values in itertools.product((1, 2), (False, True), (False, True), (False, True))
]


@kinds
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.usefixtures("threads")
def test_like_torch(kind: str, options: dict[str, Any]) -> None:
    theirs, mine = pair(kind, 5, 7, **options)
    x = torch.randn(3, 11, 5) if options["batch_first"] else torch.randn(11, 3, 5)
    x.requires_grad_()
    hx = states(kind, options["num_layers"] * (1 + options["bidirectional"]), 3, 7)
    for state in (None, hx):
        inputs = (x, state)
        close(
            results_and_gradients(mine, partial(mine, x, state), inputs),
            results_and_gradients(theirs, partial(theirs, x, state), inputs),
        )


@kinds
def test_every_instruction_set_in_float64(kind: str, isa: str) -> None:
    theirs, mine = pair(kind, 3, 17, num_layers=2, dtype=torch.float64)
    x = torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True)
    close(
        results_and_gradients(mine, lambda: mine(x), (x,)),
        results_and_gradients(theirs, lambda: theirs(x), (x,)),
        1e-12,
    )


def test_relu() -> None:
    theirs, mine = pair("RNN", 3, 4, 1, "relu")
    x = torch.randn(6, 2, 3)
    close(mine(x), theirs(x))
    assert repr(mine) == "RNN(3, 4, backend=tbptt_fast)"


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(kind: str, batch_first: bool) -> None:
    theirs, mine = pair(kind, 3, 4, num_layers=2, batch_first=batch_first)
    x, hx = torch.randn(6, 3), states(kind, 2, 4)
    for state in (None, hx):
        close(
            results_and_gradients(mine, partial(mine, x, state)),
            results_and_gradients(theirs, partial(theirs, x, state)),
        )
    starts = torch.zeros(6, dtype=torch.bool)
    starts[4] = True
    close(mine(x, is_init=starts)[0][4:], mine(x[4:])[0])


@kinds
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 5, 1), (7, 3, 3), (1,)])
def test_packed_sequences(
    kind: str, enforce_sorted: bool, bidirectional: bool, lengths: tuple[int, ...]
) -> None:
    theirs, mine = pair(kind, 3, 4, num_layers=2, bidirectional=bidirectional)
    if not enforce_sorted:
        lengths = lengths[::-1]
    data = torch.randn(max(lengths), len(lengths), 3, requires_grad=True)
    hx = states(kind, 2 * (1 + bidirectional), len(lengths), 4)

    def call(module: Any, state: Any) -> Any:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        return module(pack(data, lengths, enforce_sorted=enforce_sorted), state)

    for state in (None, hx):
        close(
            results_and_gradients(mine, partial(call, mine, state), (data, state)),
            results_and_gradients(theirs, partial(call, theirs, state), (data, state)),
        )
    result, _ = call(mine, None)
    padded, found = torch.nn.utils.rnn.pad_packed_sequence(result)
    assert found.tolist() == list(lengths)
    assert padded.shape[:2] == data.shape[:2]


@kinds
def test_dropout_is_torchs(kind: str) -> None:
    theirs, mine = pair(kind, 3, 8, num_layers=3, dropout=0.5)
    x = torch.randn(5, 2, 3)
    torch.manual_seed(3)
    expected = theirs(x)
    torch.manual_seed(3)
    close(mine(x), expected)
    close(mine.eval()(x), theirs.eval()(x))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_run_torchs_code() -> None:
    theirs, mine = pair("LSTM", 3, 8, proj_size=2)
    x = torch.randn(5, 2, 3)
    close(mine(x), theirs(x), 0)
    assert "backend=torch: projections" in repr(mine)
    with pytest.raises(ValueError, match=r"truncation.*proj_size"):
        mine(x, truncation=2)


def test_half_precision_runs_torchs_code() -> None:
    theirs, mine = pair("LSTM", 3, 8, dtype=torch.bfloat16)
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
    close(mine(x), theirs(x), 0)
    assert "backend=torch: parameters are torch.bfloat16" in repr(mine)


@kinds
@pytest.mark.parametrize("truncation", [3, (2, 5), (1, 4), (20, 20)])
@pytest.mark.usefixtures("threads")
def test_truncation_and_resets_are_those_of_the_primitives(kind: str, truncation: Any) -> None:
    _, mine = pair(kind, 3, 4, dtype=torch.float64)
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((11, 2, 3)), rng.standard_normal((11, 2, 4))
    starts, scale = rng.random((11, 2)) < 0.2, rng.random((11, 2))
    weights = [p.detach().numpy() for p in mine.parameters()]
    name = kind.lower()
    out, _, tape = getattr(tbptt_fast, f"{name}_forward")(x, None, *weights, is_init=starts)
    expected = getattr(tbptt_fast, f"{name}_backward")(
        tape, grad, truncation=truncation, carry_scale=scale
    )
    leaf = torch.from_numpy(x).requires_grad_()
    result, _ = mine(
        leaf,
        is_init=torch.from_numpy(starts),
        truncation=truncation,
        carry_scale=torch.from_numpy(scale),
    )
    result.backward(torch.from_numpy(grad))
    assert np.array_equal(result.detach().numpy(), out)
    assert np.array_equal(leaf.grad.numpy(), expected.x)
    for name, found in zip(("w_ih", "w_hh", "b_ih", "b_hh"), mine.parameters(), strict=True):
        assert np.array_equal(found.grad.numpy(), getattr(expected, name))


@kinds
def test_truncation_is_a_detach(kind: str) -> None:
    theirs, mine = pair(kind, 3, 4, num_layers=2, batch_first=True)
    x = torch.randn(2, 10, 3, requires_grad=True)

    def chunks() -> Any:
        outs, hx = [], None
        for begin in range(0, 10, 4):
            out, hx = theirs(x[:, begin : begin + 4], hx)
            hx = tuple(s.detach() for s in hx) if kind == "LSTM" else hx.detach()
            outs.append(out)
        return torch.cat(outs, 1)

    close(
        results_and_gradients(mine, lambda: mine(x, truncation=4)[0], (x,)),
        results_and_gradients(theirs, chunks, (x,)),
    )


def test_only_what_is_needed_has_a_gradient() -> None:
    _, mine = pair("LSTM", 3, 4)
    mine.weight_hh_l0.requires_grad_(False)
    x = torch.randn(5, 2, 3)
    out, (_, c_n) = mine(x)
    c_n.sum().backward()
    assert mine.weight_hh_l0.grad is None
    assert x.grad is None
    assert mine.weight_ih_l0.grad is not None
    assert not mine.requires_grad_(False)(x)[0].requires_grad
    del out


def test_backward_twice_and_after_a_change() -> None:
    _, mine = pair("GRU", 3, 4)
    x = torch.randn(5, 2, 3)
    out = mine(x)[0].sum()
    out.backward(retain_graph=True)
    first = mine.weight_hh_l0.grad.clone()
    out.backward()
    close(mine.weight_hh_l0.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()
    out = mine(x)[0].sum()
    with torch.no_grad():
        mine.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@kinds
def test_state_dicts_pickle_and_copies(kind: str) -> None:
    theirs, mine = pair(kind, 3, 4, num_layers=2, bidirectional=True)
    theirs.load_state_dict(mine.state_dict())
    assert list(theirs.state_dict()) == list(mine.state_dict())
    x = torch.randn(5, 2, 3)
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        close(other(x), mine(x), 0)
    torch.manual_seed(5)
    fresh = getattr(ours, kind)(3, 4)
    torch.manual_seed(5)
    expected = getattr(torch.nn, kind)(3, 4)
    close(list(fresh.parameters()), list(expected.parameters()), 0)


@kinds
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: (torch.zeros(4, 5, 2, 3), None), ValueError),
        (lambda: (torch.zeros(4, 2, 9), None), RuntimeError),
        (lambda: (torch.zeros(4, 2, 3, dtype=torch.float64), None), ValueError),
        (lambda: (torch.zeros(4, 2, 3, device="meta"), None), RuntimeError),
        (lambda: (torch.zeros(4, 2, 3), torch.zeros(1, 2, 9)), RuntimeError),
        (lambda: (torch.zeros(4, 2, 3), torch.zeros(2, 4)), RuntimeError),
        (lambda: (torch.zeros(4, 3), torch.zeros(1, 2, 4)), RuntimeError),
    ],
    ids=["rank", "inputs", "dtype", "device", "hidden", "rank of hidden", "rank without batch"],
)
def test_errors_are_torchs(kind: str, make: Any, error: type[Exception]) -> None:
    theirs, mine = pair(kind, 3, 4)
    x, hx = make()
    if kind == "LSTM" and hx is not None:
        hx = (hx, hx)
    with pytest.raises(error):
        theirs(x, hx)
    with pytest.raises(error, match=r"[Ee]xpected|match|must|should|dimensions|device"):
        mine(x, hx)


def test_errors_of_what_is_new() -> None:
    _, mine = pair("LSTM", 3, 4)
    x, starts = torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"1 <= k1 <= k2, got \(4, 2\)"):
        mine(x, truncation=(4, 2))
    for wrong in (1.5, True, "4"):
        with pytest.raises(TypeError):
            mine(x, truncation=wrong)
    with pytest.raises(RuntimeError, match=r"is_init size \[5, 2\].*got \[2, 5\]"):
        mine(x, is_init=starts.T)
    with pytest.raises(ValueError, match=r"is_init of torch.bool.*got torch.float32"):
        mine(x, is_init=starts.float())
    _, both = pair("LSTM", 3, 4, bidirectional=True)
    with pytest.raises(ValueError, match="two directions"):
        both(x, is_init=starts)
    with pytest.raises(ValueError, match="PackedSequence"):
        mine(torch.nn.utils.rnn.pack_sequence([x[:, 0]]), truncation=2)
    with pytest.raises(RuntimeError, match="enforce_sorted"):
        mine(torch.nn.utils.rnn.pack_sequence([x[:2, 0], x[:, 0]]))
    with pytest.raises(ValueError, match="only supported for LSTM"):
        ours.GRU(3, 4, proj_size=2)


def test_the_same_bits_for_any_number_of_threads() -> None:
    _, mine = pair("LSTM", 16, 64)
    x = torch.randn(40, 8, 16)
    found = []
    for n in (1, 2):
        with tbptt_fast.num_threads(n):
            found.append(results_and_gradients(mine, lambda: mine(x, truncation=(5, 10))))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
