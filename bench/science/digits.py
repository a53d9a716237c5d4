"""Moving digits: a ConvLSTM predicts the next frame, against copying the last one.

Two of scikit-learn's 8 x 8 digits, twice as large, move over 32 x 32 pixels at whole pixels a step
and bounce off the borders; where they meet the brighter pixel is seen. Training and test use
different images. Whoever copies the last frame is wrong wherever something moves; to do better one
has to know in which direction, which takes more than one frame. After Srivastava et al. (2015),
"Unsupervised learning of video representations using LSTMs", and Shi et al. (2015).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tbptt_fast import mse_loss, nn, optim

from ..report import Section
from ._common import Array, Figure, Options, Record, figures_section, report_run, seconds

SIZE, SCALE = 32, 2  # pixels of a frame's side, and of a digit's pixel
SPEEDS = (-2, -1, 1, 2)  # pixels a step, in both directions
WARM_UP = 3  # frames seen before predictions count: the speed shows in two
MARGIN = 0.5  # of copying's squared error, at most
FULL = {
    "hidden": 16,
    "kernel": 5,
    "steps": 10,
    "batch": 4,
    "updates": 600,
    "tests": 128,
    "lr": 3e-3,
}
QUICK = {"hidden": 8, "kernel": 3, "steps": 6, "batch": 4, "updates": 150, "tests": 16, "lr": 1e-2}
QUICK_MARGIN = 0.9


def digits() -> tuple[Array, Array]:
    """Images [N, 16, 16] from 0 to 1: to train with, and a fifth to test with."""
    from sklearn.datasets import load_digits

    images = (load_digits().images / 16).astype(np.float32)
    images = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    test, train = np.split(np.random.default_rng(0).permutation(len(images)), [len(images) // 5])
    return images[train], images[test]


def positions(start: Array, speed: Array, steps: int, room: int) -> Array:
    """Places [steps, ...] of something that moves by `speed` a step and bounces in [0, room]."""
    line = start + speed * np.arange(steps).reshape(-1, *[1] * np.ndim(start))
    folded = line % (2 * room)
    return np.asarray(np.minimum(folded, 2 * room - folded))


def draw(rng: np.random.Generator, images: Array, steps: int, batch: int) -> Array:
    """Frames [T, B, 1, 32, 32] with two digits each."""
    side = images.shape[1]
    room = SIZE - side
    start = rng.integers(0, room + 1, (batch, 2, 2))  # rows, digits, y and x
    places = positions(start, rng.choice(SPEEDS, start.shape), steps, room)
    chosen = rng.integers(len(images), size=(batch, 2))
    frames = np.zeros((steps, batch, 1, SIZE, SIZE), np.float32)
    for t, row, digit in np.ndindex(steps, batch, 2):
        y, x = places[t, row, digit]
        part = frames[t, row, 0, y : y + side, x : x + side]
        np.maximum(part, images[chosen[row, digit]], out=part)
    return frames


def network(hidden: int, kernel: int, seed: int) -> nn.Sequential:
    """A ConvLSTM and a convolution that reads the next frame out of its state."""
    readout = nn.Conv2d(hidden, 1, 3, padding=1, activation="sigmoid", seed=seed + 1)
    return nn.Sequential(nn.ConvLSTM2d(1, hidden, kernel, seed=seed), nn.TimeDistributed(readout))


def squared_error(prediction: Array, target: Array) -> float:
    """Mean over the pixels of the frames that count."""
    return float(np.mean((prediction[WARM_UP - 1 :] - target[WARM_UP - 1 :]) ** 2))


def train(
    seed: int,
    hidden: int,
    kernel: int,
    steps: int,
    batch: int,
    updates: int,
    tests: int,
    lr: float,
) -> Record:
    """Squared errors on test digits, of the network and of copying, and one test row's frames."""
    rng = np.random.default_rng((seed, 0))
    images, test_images = digits()
    model = network(hidden, kernel, 2 * seed)
    optimizer = optim.Adam(model.parameters(), lr=lr, max_norm=1.0)
    schedule = optim.CosineLR(optimizer, updates)
    curve = []
    for _ in range(updates):
        frames = draw(rng, images, steps + 1, batch)
        prediction, _, tape = model.forward(frames[:-1])
        loss, grad = mse_loss(prediction, frames[1:])
        optimizer.step(model.backward(tape, grad, needs_x=False).params)
        schedule.step()
        curve.append(loss)
    frames = draw(np.random.default_rng((seed, 1)), test_images, steps + 1, tests)
    parts = np.array_split(frames, 8, axis=1)  # a row's maps are large
    prediction = np.concatenate([model(part[:-1])[0] for part in parts], axis=1)
    return {
        "error": squared_error(prediction, frames[1:]),
        "copying": squared_error(frames[:-1], frames[1:]),
        "mean_frame": squared_error(np.broadcast_to(frames.mean(), frames[1:].shape), frames[1:]),
        "curve": [float(np.mean(part)) for part in np.array_split(curve, 40)],
        "frames": [np.round(f[:, 0, 0], 2).tolist() for f in (frames[:-1], frames[1:], prediction)],
    }


def run(options: Options) -> list[Section]:
    problem = QUICK if options.quick else FULL
    margin = QUICK_MARGIN if options.quick else MARGIN
    results = []
    for seed in options.seeds:
        results.append(options.store.run(train, seed=seed, **problem))
        found = results[-1]
        report_run("digits", {"seed": seed}, f"{found['error']:.4f}, copy {found['copying']:.4f}")
    section = Section(
        "Moving digits: mean squared error of the next frame",
        ["seed", "ConvLSTM", "copying the last frame", "the mean brightness", "ratio", "s"],
    )
    for seed, found in zip(options.seeds, results, strict=True):
        errors = (found["error"], found["copying"], found["mean_frame"])
        ratio = f"{errors[0] / errors[1]:.3f}"
        section.rows.append([str(seed), *(f"{e:.4f}" for e in errors), ratio, seconds([found])])
    section.note = (
        "ConvLSTM of {hidden} channels, kernels of {kernel}, sigmoid readout of 3; {updates} "
        "updates by Adam, {lr} down a cosine, of {batch} rows of {steps} steps; {tests} test rows "
        "of other digits, from frame {first} on.".format(**problem, first=WARM_UP + 1)
    )
    section.draw = lambda axes: draw_frames(axes, results[0]["frames"])
    ratios = [found["error"] / found["copying"] for found in results]
    expected = f"at most {margin}"
    return [
        section,
        figures_section(
            "Moving digits: margin", [Figure("error / copying's", expected, 0.0, margin, ratios)]
        ),
    ]


def draw_frames(axes: Any, frames: list[Any]) -> None:
    """Last frame, next frame, prediction and both errors, from the first step to the last."""
    last, target, prediction = (np.asarray(part) for part in frames)
    lines = (last, target, prediction, np.abs(prediction - target), np.abs(last - target))
    names = ("last frame", "next frame", "ConvLSTM", "its error", "copying's error")
    padded = [np.pad(line, ((0, 0), (1, 1), (1, 1)), constant_values=0.5) for line in lines]
    axes.imshow(np.vstack([np.hstack(list(line)) for line in padded]), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([(i + 0.5) * (SIZE + 2) for i in range(len(names))], names)
    axes.set_xticks([])
