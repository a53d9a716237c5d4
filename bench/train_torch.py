"""The default text training written in PyTorch, as users write it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from tbptt_fast.cli.parser import Settings
from tbptt_fast.cli.task import TextTask

from .problem import Array

Tensor = torch.Tensor


class TorchTraining:
    """Embedding, LSTM and head; chunks with a detached state, Adam, clipping by norm."""

    def __init__(
        self, task: TextTask, settings: Settings, weights: Mapping[str, Array], threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.task, self.settings = task, settings
        symbols = len(task.vocabulary)
        self.embedding = torch.nn.Embedding(symbols, settings.embedding)
        self.lstm = torch.nn.LSTM(settings.embedding, settings.hidden)
        self.head = torch.nn.Linear(settings.hidden, symbols)
        self.model = torch.nn.ModuleList([self.embedding, self.lstm, self.head])
        copies = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        self.model.load_state_dict(copies)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        self.state: tuple[Tensor, Tensor] | None = None
        self.best, self.best_weights = math.inf, copies

    def logits(self, x: Array, state: Any) -> tuple[Tensor, Any]:
        out, state = self.lstm(self.embedding(torch.tensor(x, dtype=torch.long)), state)
        return self.head(out), state

    @staticmethod
    def loss(logits: Tensor, y: Array) -> Tensor:
        """Summed over the characters."""
        targets = torch.tensor(y, dtype=torch.long)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def advance(self) -> None:
        x, y, is_init = self.task.training.next_window()
        state = None if is_init is not None or self.state is None else self.state
        logits, (h, c) = self.logits(x, state)
        self.state = h.detach(), c.detach()
        loss = self.loss(logits, y)
        torch.autograd.backward(loss / (self.settings.k1 * self.settings.batch))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # shown to the user, as on our side

    @torch.no_grad()
    def validate(self) -> float:
        summed, items, state = 0.0, 0, None
        for x, y, _ in self.task.validation:
            logits, state = self.logits(x, state)
            summed += float(self.loss(logits, y))
            items += y.size
        value = self.task.value(summed / items)
        if value < self.best:
            named = self.model.state_dict().items()
            self.best, self.best_weights = value, {k: v.clone() for k, v in named}
        return value
