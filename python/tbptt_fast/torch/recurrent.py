"""RNN, GRU and LSTM with torch.nn's interface; part of `tbptt_fast.torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._options import Cell, read_truncation
from ..ops import Truncation
from ._bridge import missing_device, takes
from .recurrent_ops import run_layer

_CELLS: dict[str, Cell] = {
    "RNN_TANH": "rnn_tanh",
    "RNN_RELU": "rnn_relu",
    "GRU": "gru",
    "LSTM": "lstm",
}


_States: TypeAlias = list[Tensor | None]


class _Control(NamedTuple):
    """What torch.nn's layers do not have; for every layer of a stack."""

    is_init: Tensor | None = None
    truncation: list[int] | None = None
    carry_scale: Tensor | None = None

    def tensors(self) -> list[tuple[str, Tensor]]:
        named = (("is_init", self.is_init), ("carry_scale", self.carry_scale))
        return [(name, value) for name, value in named if value is not None]

    def time_major(self, row_dim: int | None) -> _Control:
        """From [T] (None), [B, T] (0) or [T, B] (1)."""
        if row_dim == 1:
            return self

        def turn(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.unsqueeze(-1) if row_dim is None else value.transpose(0, -1)

        return _Control(turn(self.is_init), self.truncation, turn(self.carry_scale))


_FREE = _Control()


class _Places:
    """Where the elements of a PackedSequence lie in [T, B, ...] when all sequences end together.

    The sizes are on the CPU, as PyTorch keeps them; the places are on the device of the data.
    """

    def __init__(self, sizes: Tensor, device: torch.device) -> None:
        self.steps, self.batch = sizes.numel(), int(sizes[0])
        step = torch.arange(self.steps).repeat_interleave(sizes)
        before = sizes.cumsum(0) - sizes
        row = torch.arange(step.numel()) - before[step]
        lengths = (sizes.unsqueeze(1) > torch.arange(self.batch)).sum(0)
        begin = self.steps - lengths
        self.row, self.begin = row.to(device), begin.to(device)
        self.step = (step + begin[row]).to(device)

    def spread(self, data: Tensor) -> Tensor:
        padded = data.new_zeros(self.steps, self.batch, data.size(-1))
        return padded.index_put((self.step, self.row), data)

    def collect(self, padded: Tensor) -> Tensor:
        return padded[self.step, self.row]

    def is_init(self) -> Tensor:
        device = self.begin.device
        starts = torch.zeros(self.steps, self.batch, dtype=torch.bool, device=device)
        starts[self.begin, torch.arange(self.batch, device=device)] = True
        return starts

    def reverse(self, padded: Tensor) -> Tensor:
        """Every sequence read backwards, in the same places."""
        mirrored = self.begin[self.row] + self.steps - 1 - self.step
        result = padded.new_zeros(padded.shape)
        return result.index_put((mirrored, self.row), padded[self.step, self.row])


def _each(states: _States, change: Callable[[Tensor], Tensor]) -> _States:
    return [None if s is None else change(s) for s in states]


class _Recurrent(nn.RNNBase):
    """The forward pass over layers and directions; parameters and checks are RNNBase's."""

    _original: type[nn.RNNBase]  # torch.nn's class, whose code runs where there is no kernel

    def missing_kernel(self) -> str | None:
        """Why torch's own code runs, or None where the native kernels do."""
        weight = _weight_of(self)
        if self.proj_size:
            return "projections (proj_size) have no kernel"
        if (reason := missing_device(weight)) is not None:
            return f"parameters are on {weight.device}, not on cpu: {reason}"
        if not takes(weight):
            return f"parameters are {weight.dtype}, not float32 or float64"
        return None

    def extra_repr(self) -> str:
        reason = self.missing_kernel()
        path = "tbptt_fast" if reason is None else f"torch: {reason}"
        return f"{super().extra_repr()}, backend={path}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        is_init: Tensor | None = None,
        truncation: Truncation = None,
        carry_scale: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the stack, as torch.nn's class of the same name does.

        Args:
            input: [T, B, I], [B, T, I] with batch_first, [T, I], or a PackedSequence.
            hx: the state before step 0 [layers·directions, B, H] ([layers·directions, H] without
                a batch), an LSTM's as the pair (h, c); None means zeros.
            is_init: bool [T, B] ([B, T] with batch_first); True at (t, b) zeroes the states of all
                layers that enter step t of row b.
            truncation: of the backward pass, in every layer: None, K or (k1, k2), see
                `tbptt_fast.lstm_backward`.
            carry_scale: [T, B] ([B, T] with batch_first); multiplies the gradient that flows from
                step t back to step t - 1 in every layer.

        Returns:
            The last layer's outputs, in the form of `input`, and the last states, as `hx`.

        Raises:
            RuntimeError, ValueError, TypeError: as in torch.nn; is_init, truncation and carry_scale
                with a PackedSequence, two directions, or where torch's own code runs
                (`missing_kernel`).
        """
        controlled = is_init is not None or truncation is not None or carry_scale is not None
        control = _FREE
        if controlled:
            control = _Control(is_init, read_truncation(truncation), carry_scale)
        packed = input if isinstance(input, PackedSequence) else None
        if controlled and (packed is not None or self.bidirectional):
            what = "two directions" if packed is None else "a PackedSequence"
            raise ValueError(
                f"{type(self).__name__}: expected no is_init, truncation and carry_scale "
                f"with {what}"
            )
        reason = self.missing_kernel()
        if reason is not None:
            if controlled:
                raise ValueError(
                    f"{type(self).__name__}: expected no is_init, truncation and carry_scale where "
                    f"torch's own code runs: {reason}"
                )
            return self._run_torch(input, hx)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx)
        return self._run_padded(input, hx, control)

    def _run_torch(self, input: Any, hx: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = self._original.forward(self, input, hx)
        return result

    def _run_padded(self, input: Tensor, hx: Any, control: _Control) -> tuple[Tensor, Any]:
        dim = input.dim()
        if dim not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {dim}D instead"
            )
        states = self._read_states(hx, dim)
        row_dim = 1
        if dim == 2:
            input, states = input.unsqueeze(1), _each(states, lambda s: s.unsqueeze(1))
        elif self.batch_first:
            input, row_dim = input.transpose(0, 1), 0
        if control.is_init is not None or control.carry_scale is not None:
            control = control.time_major(None if dim == 2 else row_dim)
        self._check(input, states, control)
        out, last = self._run_layers(input, states, control, None)
        if dim == 2:
            out, last = out.squeeze(1), [s.squeeze(1) for s in last]
        elif self.batch_first:
            out = out.transpose(0, 1)
        return out, self._as_given(last)

    def _run_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """Sequences of different lengths are put so that they end together.

        Then the last step holds all last states, and a reset where a sequence begins cuts it off
        from what lies before it. States that are given would have to enter there: torch does that.
        """
        data, sizes, sorted_indices, unsorted_indices = packed
        even = bool(sizes[0] == sizes[-1])
        if hx is not None and not even:
            return self._run_torch(packed, hx)
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        places = _Places(sizes, data.device)
        states = self._read_states(hx, 3)
        if sorted_indices is not None:
            states = _each(states, lambda s: s.index_select(1, sorted_indices))
        aligned = places.spread(data)
        self._check(aligned, states, _FREE)
        control = _FREE if even else _Control(places.is_init())
        out, last = self._run_layers(aligned, states, control, places)
        if unsorted_indices is not None:
            last = [s.index_select(1, unsorted_indices) for s in last]
        result = PackedSequence(places.collect(out), sizes, sorted_indices, unsorted_indices)
        return result, self._as_given(last)

    def _run_layers(
        self, x: Tensor, states: _States, control: _Control, places: _Places | None
    ) -> tuple[Tensor, list[Tensor]]:
        """out [T, B, directions·H] and the last states [layers·directions, B, H]."""
        cell, directions = _CELLS[self.mode], 2 if self.bidirectional else 1
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = nn.functional.dropout(x, self.dropout)
            outs = []
            for direction in range(directions):
                index = layer * directions + direction
                out, *ends = run_layer(
                    cell,
                    (_reversed(x, places) if direction else x).contiguous(),
                    [None if s is None else s[index] for s in states],
                    self._weights(index),
                    *control,
                )
                outs.append(_reversed(out, places) if direction else out)
                last.append(tuple(ends))
            x = torch.cat(outs, -1) if self.bidirectional else outs[0]
        if len(last) == 1:
            return x, [s.unsqueeze(0) for s in last[0]]
        return x, [torch.stack(s) for s in zip(*last, strict=True)]

    def _weights(self, index: int) -> list[Tensor | None]:
        # by name: transformations of modules replace parameters, or compute them
        names, parameters = self._all_weights[index], self._parameters
        weights: list[Tensor | None]
        try:
            weights = [parameters[name] for name in names]
        except KeyError:
            weights = [getattr(self, name) for name in names]
        return weights if self.bias else [*weights, None, None]

    def _read_states(self, hx: Any, dim: int) -> _States:
        """[h], or [h, c] of an LSTM."""
        lstm = self.mode == "LSTM"
        if hx is None:
            return [None, None] if lstm else [None]
        states = list(hx) if lstm else [hx]
        if len(states) != 1 + lstm:
            raise RuntimeError(f"expected hx to be a pair (h, c), got {len(states)} items")
        if any(s.dim() != dim for s in states):
            given = ", ".join(f"{s.dim()}-D" for s in states)
            if lstm:
                given = f"({given})"
            batched = "batched 3-D" if dim == 3 else "unbatched 2-D"
            raise RuntimeError(
                f"For {batched} input, hx {'and cx ' if lstm else ''}should also be {dim}-D "
                f"but got {given} tensor{'s' if lstm else ''}"
            )
        return states

    def _as_given(self, states: list[Tensor]) -> Any:
        return tuple(states) if self.mode == "LSTM" else states[0]

    def _check(self, x: Tensor, states: _States, control: _Control) -> None:
        """Shapes, dtypes and devices of time-major arguments, with torch's types of errors."""
        weight = _weight_of(self)
        if x.device != weight.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, "
                f"found input tensor at {x.device} and parameter tensor at {weight.device}"
            )
        if x.dtype != weight.dtype or x.size(-1) != self.input_size:
            self.check_input(x, None)
        # which turns all of them into one dtype
        autocast = torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")
        expected = (self.num_layers * (2 if self.bidirectional else 1), x.size(1), self.hidden_size)
        for index, state in enumerate(states):
            if state is None:
                continue
            alike = state.device == x.device and (state.dtype == x.dtype or autocast)
            if alike and state.shape == expected:
                continue
            name = f"hidden[{index}]" if self.mode == "LSTM" else "hidden"
            if state.shape != expected:
                raise RuntimeError(f"Expected {name} size {expected}, got {list(state.shape)}")
            raise ValueError(
                f"Expected {name} of {x.dtype} on {x.device}, got {state.dtype} on {state.device}"
            )
        for name, value in control.tensors():
            if value.shape != x.shape[:2]:
                raise RuntimeError(
                    f"Expected {name} size {list(x.shape[:2])} (steps, batch), "
                    f"got {list(value.shape)}"
                )
            dtype = torch.bool if name == "is_init" else x.dtype
            wrong = value.dtype != dtype and not (autocast and value.is_floating_point())
            if wrong or value.device != x.device:
                raise ValueError(
                    f"Expected {name} of {dtype} on {x.device}, got {value.dtype} on {value.device}"
                )


def _weight_of(module: nn.RNNBase) -> Tensor:
    """One of the parameters: all have its dtype and device."""
    weight: Tensor | None = module._flat_weights[0]
    assert weight is not None
    return weight


def _reversed(x: Tensor, places: _Places | None) -> Tensor:
    return x.flip(0) if places is None else places.reverse(x)


class RNN(_Recurrent):
    """torch.nn.RNN on native kernels, with `truncation`, `is_init` and `carry_scale`.

    The constructor, parameters, initialisation, state_dict, shapes and errors are torch.nn.RNN's.

    Source: see `tbptt_fast.rnn_forward`.

    >>> import torch
    >>> layer = RNN(3, 5, nonlinearity="relu")
    >>> out, h_n = layer(torch.ones(7, 2, 3), truncation=4)
    >>> out.shape, h_n.shape
    (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    _original = nn.RNN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity: Literal["tanh", "relu"] = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)


class GRU(_Recurrent):
    """torch.nn.GRU on native kernels, with `truncation`, `is_init` and `carry_scale`.

    The constructor, parameters, initialisation, state_dict, shapes and errors are torch.nn.GRU's.

    Source: see `tbptt_fast.gru_forward`.

    >>> import torch
    >>> layer = GRU(3, 5, num_layers=2, batch_first=True)
    >>> out, h_n = layer(torch.ones(2, 7, 3), truncation=(2, 4))
    >>> out.shape, h_n.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 2, 5]))
    """

    _original = nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)


class LSTM(_Recurrent):
    """torch.nn.LSTM on native kernels, with `truncation`, `is_init` and `carry_scale`.

    The constructor, parameters, initialisation, state_dict, shapes and errors are torch.nn.LSTM's.
    Projections (proj_size) run torch's own code, as `extra_repr` says; so do packed sequences of
    different lengths that begin with a given state.

    Source: see `tbptt_fast.lstm_forward`.

    >>> import torch
    >>> layer = LSTM(3, 5)
    >>> starts = torch.zeros(7, 2, dtype=torch.bool)
    >>> starts[4, 1] = True  # a new episode
    >>> out, (h_n, c_n) = layer(torch.ones(7, 2, 3), is_init=starts)
    >>> bool((out[4, 1] == out[0, 1]).all()), layer
    (True, LSTM(3, 5, backend=tbptt_fast))
    """

    _original = nn.LSTM

    # torch's forward pass calls them
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)
