"""A training step of a small convolutional network beside the same in PyTorch's eager mode.

Two convolutions of 3 by 3, each with relu and pooling, a dense layer, a recurrent head that reads
its features STEPS times and is differentiated through the last TRUNCATION of them, cross-entropy,
Adam: the network of examples/cnn_recurrent_head.py on images of the size of MNIST's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import nn, optim

from .options import Options, on_threads, progress
from .problem import Array
from .report import Section, milliseconds, times
from .timing import LocalSide, Side

BATCH, SIZE, STEPS, TRUNCATION = 32, 28, 20, 5
STEP = "training step"
LR = 1e-3


def make_data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 1, SIZE, SIZE), np.float32)
    return images, rng.integers(0, 10, BATCH)


class Ours:
    """The network in `tbptt_fast.nn`."""

    def __init__(self, images: Array, labels: Array) -> None:
        self.images, self.labels = np.ascontiguousarray(np.moveaxis(images, 1, -1)), labels
        more: dict[str, Any] = {"padding": 1, "activation": "relu", "layout": "NHWC"}
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, **more, seed=0),
            nn.MaxPool2d(2, layout="NHWC"),
            nn.Conv2d(32, 64, 3, **more, seed=1),
            nn.MaxPool2d(2, layout="NHWC"),
            nn.Flatten(),
            nn.Linear(64 * (SIZE // 4) ** 2, 128, activation="relu", seed=2),
        )
        self.cell, self.head = nn.RNN(128, 64, seed=3), nn.Linear(64, 10, seed=4)
        self.model = nn.Sequential(self.body, self.cell, self.head)
        self.optimizer = optim.Adam(self.model.parameters(), lr=LR)

    def step(self) -> float:
        features, _, body = self.body.forward(self.images)
        _, entering = self.cell(np.repeat(features[np.newaxis], STEPS - TRUNCATION, 0))
        window = np.repeat(features[np.newaxis], TRUNCATION, 0)
        _, final, cell = self.cell.forward(window, entering)
        logits, _, head = self.head.forward(final[0])
        loss, grad = tbptt_fast.softmax_cross_entropy(logits, self.labels)
        of_head = self.head.backward(head, grad)
        assert of_head.x is not None
        of_cell = self.cell.backward(cell, None, grad_state=of_head.x[np.newaxis])
        assert of_cell.x is not None
        of_body = self.body.backward(body, of_cell.x.sum(axis=0), needs_x=False)
        params: dict[str, Array] = {}
        for i, found in enumerate((of_body, of_cell, of_head)):
            params |= {f"{i}.{name}": gradient for name, gradient in found.params.items()}
        self.optimizer.step(params)
        return float(loss)


def torch_step(images: Array, labels: Array, weights: dict[str, Array], channels_last: bool) -> Any:
    """The same in PyTorch, as users write it; a callable that returns the loss."""
    import torch
    from torch.nn import functional

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(1, 32, 3, padding=1)
            self.conv2 = torch.nn.Conv2d(32, 64, 3, padding=1)
            self.dense = torch.nn.Linear(64 * (SIZE // 4) ** 2, 128)
            self.cell, self.head = torch.nn.RNNCell(128, 64), torch.nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
            x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
            # rows of the dense layer's weights are in the order of channels last, as ours
            x = functional.relu(self.dense(x.permute(0, 2, 3, 1).flatten(1)))
            h = x.new_zeros(len(x), 64)
            with torch.no_grad():
                for _ in range(STEPS - TRUNCATION):
                    h = self.cell(x, h)
            for _ in range(TRUNCATION):
                h = self.cell(x, h)
            return self.head(h)

    network = Network()
    names = dict(zip(network.state_dict(), weights, strict=True))
    network.load_state_dict({n: torch.from_numpy(weights[w].copy()) for n, w in names.items()})
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach())

    return step


def run(options: Options) -> Section:
    images, labels = make_data()
    layouts = {"NCHW": False, "NHWC": True} if "torch" in options.peers else {}
    section = Section(
        title="A training step of a small convolutional network",
        columns=["threads", "ours ms", *(f"vs PyTorch, {name}" for name in layouts)],
        note=f"Batch {BATCH}, images of {SIZE}², a recurrent head of {STEPS} iterations, truncated "
        f"after {TRUNCATION}. PyTorch's eager mode, in each of its two memory formats.",
    )
    for threads in options.threads:
        tbptt_fast.set_num_threads(threads)
        ours = Ours(images, labels)
        steps: dict[str, Any] = {}
        if layouts:
            import torch

            torch.set_num_threads(threads)
            weights = {name: w.copy() for name, w in ours.model.parameters().items()}
            steps = {n: torch_step(images, labels, weights, last) for n, last in layouts.items()}
        losses = [[step() for _ in range(3)] for step in (ours.step, *steps.values())]
        for other in losses[1:]:
            if not np.allclose(losses[0], other, rtol=1e-3):
                raise AssertionError(f"the first losses differ: {losses}")
        sides: list[Side] = [LocalSide("ours", dict, {STEP: ours.step})]
        sides += [LocalSide(name, dict, {STEP: step}) for name, step in steps.items()]
        timing = options.time(sides, STEP, threads)
        ratios = {name: timing.ratio(name) for name in steps}
        mine = milliseconds(timing.spread("ours").median)
        section.rows.append([str(threads), mine, *(times(ratio) for ratio in ratios.values())])
        section.records.append({"threads": threads, "seconds": timing.seconds, "ratios": ratios})
        progress(f"small network, {on_threads(threads)}: {mine} ms")
    return section
