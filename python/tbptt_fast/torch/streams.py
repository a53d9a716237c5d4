"""Streams in PyTorch: windows that carry the state, and rows of one sequence for every process.

A stream's items are x, y and is_init, as in `tbptt_fast.data`: in a tuple in this order, in a dict
by these names, or x alone as a tensor. Everything is time-major, [T, B, ...].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tbptt_fast.data import DataError

from ._trees import Tree, count_steps, join_tree, leaves, map_tree, part_tree

__all__ = ["Chunk", "StreamBatcher", "Window", "Windows", "detach_state", "windows"]

Model: TypeAlias = Callable[..., tuple[Tree, Tree]]


def detach_state(hx: Tree) -> Tree:
    """The same state without its history: no gradient crosses this point.

    Shapes: any; hx is a tensor or None, or tuples, lists and dicts of them, nested at will. The
    structure is new, the tensors share their memory. Raises TypeError for anything else in it.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> h, (c, nothing) = detach_state((2 * weight, [3 * weight, None]))
    >>> h.requires_grad, c, nothing
    (False, tensor([3., 3.]), None)
    """
    return map_tree("detach_state", Tensor.detach, hx)


class Window:
    """Some consecutive steps of a stream, for one update.

    `data` holds all steps, the first `context` of them only to be replayed; `start` is the place
    of the first new step in the stream; `state` enters the first step of `data`.
    """

    def __init__(self, data: Tree, state: Tree, *, start: int, context: int, cut: int) -> None:
        self.data, self.state, self.start, self.context = data, state, start, context
        self._cut = cut  # where the next window begins
        self._carried: tuple[Tree] | None = None

    def __repr__(self) -> str:
        return f"Window(start={self.start}, steps={len(self)}, context={self.context})"

    def __len__(self) -> int:
        """New steps: those whose losses count."""
        return count_steps(self.data) - self.context

    @property
    def new(self) -> Tree:
        """The items of `data` [len(window), B, ...], new steps only: losses belong to these."""
        return part_tree(self.data, self.context, None)

    def run(self, model: Model) -> Tree:
        """Outputs [len(window), B, ...] of the new steps; the state goes on to the next window.

        `model` is called as `model(x, state)`, with `is_init=` where the stream has it, and
        returns `(out, state)`, time-major, like the layers of torch.nn; out may be a tuple or dict
        of tensors. Where the next window begins within this one, it is called for the steps before
        that place and then for the others, so that the state between them is known; the gradient
        of this window passes through both.

        Raises ValueError for outputs of another number of steps.
        """
        steps, state, following = count_steps(self.data), self.state, self.state
        outputs = []
        for begin, end in ((0, self._cut), (self._cut, steps)):
            if begin == end:
                continue
            x, options = _arguments(part_tree(self.data, begin, end))
            out, state = model(x, state, **options)
            found = {len(tensor) for tensor in leaves("Window.run", out)}
            if found != {end - begin}:
                raise ValueError(f"Window.run: out: expected {end - begin} steps, got {found}")
            if end == self._cut:
                following = detach_state(state)
            if end > self.context:
                outputs.append(part_tree(out, max(0, self.context - begin), None))
        self._carried = (following,)
        return join_tree("Window.run", outputs)

    def carry(self, state: Tree) -> None:
        """Send the state behind the last step to the next window, detached.

        For loops that call the model themselves, with k1 = k2. Raises ValueError for k1 < k2,
        where the next window begins earlier: there `run` finds the state.
        """
        if self._cut < count_steps(self.data):
            raise ValueError("Window.carry: expected windows with k1 = k2; with k1 < k2 call run")
        self._carried = (detach_state(state),)


class Windows(Iterator[Window]):
    """The iterator that `windows` returns; it knows where it stands.

    Raises RuntimeError where the next window is asked for before the state has left the last one.
    """

    def __init__(self, stream: Any, k1: int, k2: int | None = None, *, state: Tree = None) -> None:
        k2 = k1 if k2 is None else k2
        if not 1 <= k1 <= k2:
            raise ValueError(f"windows: expected 1 <= k1 <= k2, got k1 = {k1}, k2 = {k2}")
        self.k1, self.k2 = k1, k2
        self._whole = isinstance(stream, Tensor | tuple | Mapping)
        self._chunks = iter((stream,) if self._whole else stream)
        self._state = state
        self._start = 0
        self._context = 0
        self._data: Tree = None  # what was read: the context, then steps of no window yet
        self._last: Window | None = None

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Window:
        self._settle()
        wanted = self._context + self.k1
        while count_steps(self._data) < wanted and self._read():
            pass
        end = min(wanted, count_steps(self._data))
        if end <= self._context:
            raise StopIteration
        self._last = Window(
            part_tree(self._data, 0, end),
            self._state,
            start=self._start,
            context=self._context,
            cut=min(max(0, wanted - (self.k2 - self.k1)), end),
        )
        return self._last

    @property
    def state(self) -> Tree:
        """The state that enters the next window; with k1 = k2 the one behind the last step."""
        self._settle()
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """Where the windows stand: the state, and the steps that were read and are needed again.

        Copies of tensors, and plain values, for torch.save. The position of the stream itself is
        its own matter (`StreamBatcher.state_dict`), unless the stream was given as a whole.
        """
        self._settle()
        kept = None if self._whole else map_tree("windows", Tensor.clone, self._data)
        return {
            "k1": self.k1,
            "k2": self.k2,
            "start": self._start,
            "context": self._context,
            "state": map_tree("windows", Tensor.clone, detach_state(self._state)),
            "data": kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved place; ValueError if it was saved with another k1 or k2."""
        if (state["k1"], state["k2"]) != (self.k1, self.k2):
            raise ValueError(
                f"windows: expected k1 = {self.k1}, k2 = {self.k2}, "
                f"got k1 = {state['k1']}, k2 = {state['k2']}"
            )
        start, context = int(state["start"]), int(state["context"])
        if self._whole:
            if self._last is not None or self._start:
                raise ValueError("windows: a stream given as a whole is restored before its start")
            self._read()
            if not 0 <= context <= start <= count_steps(self._data):
                raise ValueError(
                    f"windows: no such place in {count_steps(self._data)} steps: start {start}, "
                    f"context {context}"
                )
            self._data = part_tree(self._data, start - context, None)
        elif count_steps(state["data"]) < context:
            raise ValueError("windows: expected the place in an iterable of chunks")
        else:
            self._data = state["data"]
        self._start, self._context, self._state = start, context, state["state"]
        self._last = None

    def _settle(self) -> None:
        """Take the state over from the last window, and drop the steps that none reaches again."""
        last = self._last
        if last is None:
            return
        if last._carried is None:
            raise RuntimeError(
                f"windows: no state has left {last}: call window.run(model) or window.carry(state)"
            )
        (self._state,) = last._carried
        self._start += len(last)
        self._context += len(last) - last._cut
        self._data = part_tree(self._data, last._cut, None)
        self._last = None

    def _read(self) -> bool:
        """Read one more chunk; False at the end of the stream."""
        for chunk in self._chunks:
            _check_chunk(chunk, self._data)
            if self._data is None or count_steps(self._data) == 0:
                self._data = chunk
            else:
                self._data = join_tree("windows", [self._data, chunk])
            return True
        return False


def windows(stream: Any, k1: int, k2: int | None = None, *, state: Tree = None) -> Windows:
    """Windows for truncated backpropagation, BPTT(h = k2; h' = k1), in an ordinary training loop.

    Window n has the new steps n·k1 … min((n+1)·k1, T) - 1, whose losses count, and before them up
    to k2 - k1 steps of context, which are replayed: it begins at step max(0, (n+1)·k1 - k2). The
    state that enters it is a constant. So each loss reaches at least k2 - k1 + 1 and at most k2
    steps, none is counted twice, and the last window may be short: divide its loss by k1·B, not by
    its own length, or its items weigh more. k2 is k1 unless given: chunks with a detached state.

    Shapes: stream is x [T, B, ...], a tuple (x, y) or (x, y, is_init) of such tensors or a dict of
    them; or an iterable of consecutive chunks of these, of any lengths (a list too is one: of
    chunks). is_init [T, B] bool goes to the model. `state` enters step 0 as it is: pass it through
    `detach_state` unless its gradient is wanted. Between windows parameters may change; the
    context is replayed with the new ones, and with new dropout.

    Raises ValueError for k2 < k1, which would drop losses, and for items of unequal lengths;
    TypeError for anything but tensors in a stream.

    Source: Williams and Peng (1990), "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories".

    >>> _ = torch.manual_seed(0)
    >>> lstm = torch.nn.LSTM(2, 3)
    >>> x, y = torch.randn(10, 4, 2), torch.randn(10, 4, 3)
    >>> for window in windows((x, y), k1=4, k2=6):
    ...     out = window.run(lstm)
    ...     _, target = window.new
    ...     ((out - target) ** 2).sum().backward()
    ...     print(window, tuple(out.shape))
    Window(start=0, steps=4, context=0) (4, 4, 3)
    Window(start=4, steps=4, context=2) (4, 4, 3)
    Window(start=8, steps=2, context=2) (2, 4, 3)
    """
    return Windows(stream, k1, k2, state=state)


class Chunk(NamedTuple):
    """One chunk of a `StreamBatcher`: x [k, B, ...], y [k, B, ...], is_init [k, B] bool."""

    x: Tensor
    y: Tensor
    is_init: Tensor


# Windows' state_dict may hold one, and torch.load(weights_only=True) must know it then.
torch.serialization.add_safe_globals([Chunk])


class StreamBatcher(IterableDataset[Chunk]):
    """Rows of one long sequence, walked side by side in chunks of `steps` steps.

    The sequence is cut into world_size · batch_size contiguous rows of equal length; rank r walks
    the rows r·batch_size … (r+1)·batch_size - 1. All ranks have equally many chunks, and together
    they see what one process with all rows sees. Up to world_size · batch_size - 1 items at the end
    belong to no row. Iterating yields the chunks that are left of the current epoch, the last one
    possibly short; iterating again begins the next epoch. `is_init` is set at the first step of an
    epoch. Chunks are copies.

    Shapes: sequence [N, ...]; targets [N, ...], of which item i belongs to item i, None for the
    next item of the sequence. rank and world_size come from torch.distributed where it is
    initialised, else they are 0 and 1.

    Raises TypeError and ValueError for wrong arguments, DataError (a ValueError) where a row would
    be shorter than a chunk, RuntimeError in a worker of a DataLoader: the position must live in the
    process that saves it, so take `DataLoader(batcher, batch_size=None)`, with num_workers=0.

    >>> batcher = StreamBatcher(torch.arange(13), batch_size=2, steps=4, rank=0, world_size=1)
    >>> for x, y, is_init in batcher:
    ...     print(x[:, 1].tolist(), y[:, 1].tolist(), is_init[:, 1].tolist())
    [6, 7, 8, 9] [7, 8, 9, 10] [True, False, False, False]
    [10, 11] [11, 12] [False, False]
    >>> batcher.epoch, batcher.position
    (1, 0)
    """

    def __init__(
        self,
        sequence: Tensor,
        targets: Tensor | None = None,
        *,
        batch_size: int,
        steps: int,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value in (("sequence", sequence), ("targets", targets)):
            if value is None and name == "targets":
                continue
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"StreamBatcher: {name}: expected a tensor, got {type(value).__name__}"
                )
            if value.ndim == 0:
                raise ValueError(f"StreamBatcher: {name}: expected shape [N, ...], got []")
        if batch_size < 1 or steps < 1:
            raise ValueError(
                f"StreamBatcher: expected batch_size and steps of at least 1, got {batch_size} "
                f"and {steps}"
            )
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"StreamBatcher: expected rank and world_size together, got {rank} and {world_size}"
            )
        if rank is None or world_size is None:
            together = dist.is_available() and dist.is_initialized()
            rank, world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"StreamBatcher: rank: expected 0 to {world_size - 1}, got {rank} "
                f"(world_size is {world_size})"
            )
        if targets is None:
            sequence, targets = sequence[:-1], sequence[1:]
        if len(sequence) != len(targets):
            raise ValueError(
                f"StreamBatcher: targets: expected {len(sequence)} items, got {len(targets)}"
            )
        rows = batch_size * world_size
        self.batch_size, self.steps = batch_size, steps
        self.rank, self.world_size = rank, world_size
        self.length = len(sequence) // rows
        if self.length < steps:
            raise DataError(
                f"{len(sequence)} items are too few: {rows} rows with chunks of {steps} steps "
                f"need at least {rows * steps}"
            )
        self._x, self._y = self._rows(sequence), self._rows(targets)
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Chunks in one epoch."""
        return math.ceil(self.length / self.steps)

    def __iter__(self) -> Iterator[Chunk]:
        worker = get_worker_info()
        if worker is not None:
            raise RuntimeError(
                f"StreamBatcher: expected a DataLoader with num_workers=0, got "
                f"{worker.num_workers}: workers would walk copies, and the position be lost"
            )
        epoch = self.epoch
        while self.epoch == epoch:
            yield self._next_chunk()

    def state_dict(self) -> dict[str, int]:
        """Where this rank stands, with the layout for which that means something.

        Taken while a chunk is being worked on, it stands behind that chunk.
        """
        return {"epoch": self.epoch, "position": self.position, **self._layout()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back to a saved place; ValueError if it was saved from another layout or rank."""
        for name, mine in self._layout().items():
            if state[name] != mine:
                raise ValueError(f"StreamBatcher: {name}: expected {mine}, got {state[name]}")
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < self.length or position % self.steps:
            raise ValueError(f"StreamBatcher: no such place: epoch {epoch}, position {position}")
        self.epoch, self.position = epoch, position

    def _layout(self) -> dict[str, int]:
        names = ("length", "batch_size", "steps", "rank", "world_size")
        return {name: getattr(self, name) for name in names}

    def _rows(self, values: Tensor) -> Tensor:
        """This rank's rows side by side, [length, batch_size, ...]: a view, whatever N is."""
        first = self.rank * self.batch_size * self.length
        mine = values[first : first + self.batch_size * self.length]
        rows = mine.reshape(self.batch_size, self.length, *values.shape[1:])
        return rows.transpose(0, 1)

    def _next_chunk(self) -> Chunk:
        begin, end = self.position, min(self.position + self.steps, self.length)
        is_init = torch.zeros(end - begin, self.batch_size, dtype=torch.bool)
        is_init[0] = begin == 0
        # Moved before the chunk is handed out: a state saved while the chunk is being worked on
        # already stands behind it.
        self.position = end
        if end == self.length:
            self.epoch, self.position = self.epoch + 1, 0
        x, y = (
            rows[begin:end].clone(memory_format=torch.contiguous_format)
            for rows in (self._x, self._y)
        )
        return Chunk(x, y, is_init.to(x.device))


def _arguments(data: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """What a model is called with: x, and is_init as an option where there is one."""
    if isinstance(data, Tensor):
        return data, {}
    if isinstance(data, Mapping):
        x, is_init = data["x"], data.get("is_init")
    else:
        x, is_init = data[0], data[2] if len(data) > 2 else None
    return x, {} if is_init is None else {"is_init": is_init}


def _check_chunk(chunk: Tree, before: Tree) -> None:
    """Whether windows can be cut from a chunk, and it goes on where `before` ended."""
    if chunk is None:
        raise TypeError("windows: expected chunks of tensors, got None")
    if isinstance(chunk, Mapping) and "x" not in chunk:
        raise ValueError(f"windows: expected a dict with x, got {', '.join(map(repr, chunk))}")
    found = leaves("windows", chunk)
    if not found:
        raise ValueError("windows: expected at least one tensor in a chunk")
    shapes = [list(leaf.shape) for leaf in found]
    if any(len(shape) < 2 for shape in shapes) or len({tuple(shape[:2]) for shape in shapes}) > 1:
        raise ValueError(f"windows: expected items of shapes [T, B, ...], got {shapes}")
    if before is not None:
        old, new = ([list(t.shape[1:]) for t in leaves("windows", c)] for c in (before, chunk))
        if old != new:
            raise ValueError(f"windows: expected items [B, ...] of {old} in every chunk, got {new}")
    is_init = _arguments(chunk)[1].get("is_init")
    if is_init is not None and (is_init.dtype != torch.bool or is_init.ndim != 2):
        raise TypeError(
            f"windows: is_init: expected bool [T, B], got {is_init.dtype} {list(is_init.shape)}"
        )
