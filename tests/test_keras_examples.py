"""The examples with Keras, against the same training written with `tbptt_fast.nn` and its steps.

They run on the backend of KERAS_BACKEND: as every backend gives this curve, all give one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .keras_cases import BACKEND

for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package)

import _data  # noqa: E402
import _keras  # noqa: E402
import clipped_optimizer_mlp  # noqa: E402
import cnn_recurrent_head  # noqa: E402
import keras_cnn_recurrent_head  # noqa: E402
import keras_digits  # noqa: E402
import tbptt_fast  # noqa: E402

BATCH = 32


def curve(model: Any, data: Any, epochs: int, step: Callable[[list[Any], float], None]) -> Any:
    """Mean losses of epochs; `step(gradients, decay)` gets the cosine's decay from 1 to 0."""
    order, losses, count = np.random.default_rng(0).permutation(len(data.x)), [], 0
    batches = np.split(order, range(BATCH, len(order), BATCH))
    for _ in range(epochs):
        total = 0.0
        for rows in batches:
            logits, _, tape = model.forward(data.x[rows])
            loss, gradient = tbptt_fast.softmax_cross_entropy(logits, data.y[rows])
            total += loss * len(rows)
            grads = model.backward(tape, gradient, needs_x=False).params
            decay = (1 + math.cos(math.pi * count / (epochs * len(batches)))) / 2
            step([grads[name] for name in trained(model)], decay)
            count += 1
        losses.append(total / len(order))
    return losses


def trained(model: Any) -> dict[str, Any]:
    """The parameters; of a recurrent layer's two biases the one that Keras has."""
    return {n: p for n, p in model.parameters().items() if not n.endswith("bias_hh_l0")}


def begin_alike(model: Any, other: Any) -> None:
    """Give the model the weights with which the one of Keras begins."""
    _keras.set_weights(other, seed=0)
    for parameter, weight in zip(trained(model).values(), other.get_weights(), strict=True):
        order = (3, 2, 0, 1) if weight.ndim == 4 else None  # kernels; matrices are transposed
        parameter[...] = weight.transpose(order)
    for name, parameter in model.parameters().items():
        if name not in trained(model):
            parameter[...] = 0


def zeros(model: Any) -> list[Any]:
    return [np.zeros_like(p) for p in trained(model).values()]


def digits_curve(data: Any, epochs: int) -> Any:
    size = data.x.shape[1:3]
    model = clipped_optimizer_mlp.network(size[0] * size[1], seed=0)
    begin_alike(model, keras_digits.network(size))
    velocity = zeros(model)

    def step(grads: list[Any], decay: float) -> None:
        options: dict[str, Any] = {"mu": 0.9, "velocity": True, "max_norm": 1.0}
        params = list(trained(model).values())
        tbptt_fast.sgd_step(params, grads, velocity, lr=0.1 * decay, **options)

    return curve(model, data, epochs, step)


def test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = keras_digits.main(["--epochs", "3", "--out", str(tmp_path / "picture.png")])
    np.testing.assert_allclose(result.losses, digits_curve(_data.digits(), 3), rtol=1e-3)
    assert result.accuracy > 0.95
    printed = capsys.readouterr().out
    assert "Epoch 3/3" in printed
    assert f"|    {BACKEND} |" in printed or f"| {BACKEND} |" in printed.replace("  ", "")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_digits_of_784_pixels(tmp_path: Path) -> None:
    """MNIST's size and files, of the digits that come with scikit-learn."""
    small, parts = _data.digits(), {}
    for name, x, y in (("train", small.x, small.y), ("t10k", small.test_x, small.test_y)):
        x = np.pad(x[..., 0].repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))[:256]
        parts[f"{name}-images-idx3-ubyte"] = np.rint(x * 255).astype(np.uint8)
        parts[f"{name}-labels-idx1-ubyte"] = y[:256].astype(np.uint8)
    for name, values in parts.items():
        head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        (tmp_path / name).write_bytes(head + values.tobytes())
    arguments = ["--idx", str(tmp_path), "--out", str(tmp_path / "picture.png")]
    result = keras_digits.main(["--epochs", "4", *arguments])
    data = _data.digits(tmp_path)
    assert data.x.shape == (256, 28, 28, 1)
    np.testing.assert_allclose(result.losses, digits_curve(data, 4), rtol=1e-3)
    assert result.losses[-1] < 0.5 * result.losses[0]


@pytest.mark.parametrize(("truncation", "epochs"), [(5, 2), (20, 1)])
def test_a_recurrent_head(truncation: int, epochs: int, tmp_path: Path) -> None:
    arguments = ["--truncation", str(truncation), "--out", str(tmp_path / "picture.png")]
    result = keras_cnn_recurrent_head.main(["--epochs", str(epochs), *arguments])
    data = _data.digits()
    model = cnn_recurrent_head.network((8, 8), 20, truncation, seed=0)
    begin_alike(model, keras_cnn_recurrent_head.network((8, 8), 20, truncation))
    first, second, count = zeros(model), zeros(model), 0

    def step(grads: list[Any], decay: float) -> None:
        nonlocal count
        count += 1
        eps = 1e-7 / math.sqrt(1 - 0.999**count)  # where Keras adds it
        params, lr = list(trained(model).values()), 1e-3 * decay
        options: dict[str, Any] = {"step": count, "lr": lr, "eps": eps, "max_norm": 1.0}
        tbptt_fast.adam_step(params, grads, first, second, **options)

    np.testing.assert_allclose(result.losses, curve(model, data, epochs, step), rtol=2e-3)
    # In two epochs; the backends' rounding grows from one to the next.
    assert epochs == 1 or result.losses[1] < 0.8 * result.losses[0]


def test_the_truncation_is_the_layers() -> None:
    model = keras_cnn_recurrent_head.network((8, 8), 20, 5)
    assert list(model.layers[-2].truncation) == [1, 5]
    assert model.layers[-2].get_config()["kernels"] == "tbptt_fast"
