"""Keras's optimizers on a fused step: Keras's own, step by step, and what `fit` does with them.

They run on the backend of KERAS_BACKEND.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import OTHER_BACKEND
from .keras_cases import BACKEND, keras, ours

ClippedSGD, Adam = ours.ClippedSGD, ours.Adam
SHAPES = ((), (3, 4), (90, 91))
STEPS = 4

# Powers of two: Keras rounds hyperparameters to float32 on their way, also for float64.
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (ClippedSGD, keras.optimizers.SGD, {}),
    "momentum": (ClippedSGD, keras.optimizers.SGD, {"momentum": 0.75}),
    "nesterov": (ClippedSGD, keras.optimizers.SGD, {"momentum": 0.75, "nesterov": True}),
    "adam": (Adam, keras.optimizers.Adam, {"beta_1": 0.75, "beta_2": 0.9375, "epsilon": 2**-7}),
    "amsgrad": (Adam, keras.optimizers.Adam, {"beta_1": 0.5, "beta_2": 0.75, "amsgrad": True}),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"global_clipnorm": 0.5},
    {"global_clipnorm": 1024.0},
    {"clipvalue": 0.25},
    {"clipnorm": 0.5},
    {"weight_decay": 0.25},
    {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 3},
    {"loss_scale_factor": 16.0, "global_clipnorm": 0.5},
)

kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("cls", [ClippedSGD, Adam])


def values(variables: Any) -> list[Any]:
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


def schedule() -> Any:
    """0.25, 0.125, …: a rate for each step."""
    return keras.optimizers.schedules.ExponentialDecay(0.25, 1, 0.5)


def trajectory(optimizer: Any, dtype: str, frozen: int | None = None) -> list[list[Any]]:
    """Parameters and the optimizer's variables after each step on random gradients."""
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=s), dtype=dtype, name=f"v{i}_{len(s)}")
        for i, s in enumerate(SHAPES)
    ]
    optimizer.build(variables)
    found = []
    for _ in range(STEPS):
        grads = [keras.ops.convert_to_tensor(rng.normal(size=v.shape), dtype) for v in variables]
        if frozen is not None:
            grads[frozen] = None
        optimizer.apply(grads, variables)
        found.append(values([*variables, *optimizer.variables]))
    return found


def assert_equal(ours: list[list[Any]], theirs: list[list[Any]], dtype: str) -> None:
    eps = float(np.finfo(dtype).eps)
    for count, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=64 * eps, atol=32 * count * eps)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_every_step_is_keras(kind: str, dtype: str, options: dict[str, Any]) -> None:
    ours, theirs, own = KINDS[kind]
    unclipped = {"global_clipnorm": None} | own | options
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)  # of what Keras makes of numbers
    try:
        found = trajectory(ours(schedule(), **unclipped), dtype)
        wanted = trajectory(theirs(schedule(), **own, **options), dtype)
    finally:
        keras.config.set_floatx(before)
    # Keras on PyTorch clips by a norm with a factor of float32.
    rough = BACKEND == "torch" and "global_clipnorm" in options
    assert_equal(found, wanted, "float32" if rough else dtype)


@kinds
def test_variables_without_a_gradient_stay(kind: str) -> None:
    ours, theirs, own = KINDS[kind]
    both = []
    for cls in (ours, theirs):
        optimizer = cls(0.25, **own, global_clipnorm=0.5)
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            both.append(trajectory(optimizer, "float32", frozen=1))
    assert_equal(both[0], both[1], "float32")
    np.testing.assert_array_equal(both[0][0][1], both[0][-1][1])


@kinds
def test_weight_decay_may_exclude_variables(kind: str) -> None:
    ours, theirs, own = KINDS[kind]
    found = []
    for cls in (ours, theirs):
        optimizer = cls(0.25, **own, weight_decay=0.25, global_clipnorm=None)
        optimizer.exclude_from_weight_decay(var_names=["_2"])
        found.append(trajectory(optimizer, "float32"))
    assert_equal(found[0], found[1], "float32")


@both
def test_loss_scaling_skips_and_unscales(cls: Any) -> None:
    def run(inner: Any) -> list[list[Any]]:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        variable = keras.Variable(np.ones(3, np.float32))
        optimizer.build([variable])
        found = []
        for gradient in ([4.0, 8.0, 0.0], [np.inf, 0.0, 0.0], [-1.0, 2.0, 3.0]):
            grads = [keras.ops.convert_to_tensor(np.float32(gradient))]
            if BACKEND == "jax":  # whose conditions have no side effects
                own = [v.value for v in optimizer.variables]
                (new,), news = optimizer.stateless_apply(own, grads, [variable.value])
                for v, value in zip([variable, *optimizer.variables], [new, *news], strict=True):
                    v.assign(value)
            else:
                optimizer.apply(grads, [variable])
            found.append(values([variable, *inner.variables, optimizer.dynamic_scale]))
        return found

    theirs = keras.optimizers.SGD if cls is ClippedSGD else keras.optimizers.Adam
    found = run(cls(0.25, global_clipnorm=1.0))
    assert_equal(found, run(theirs(0.25, global_clipnorm=1.0)), "float32")
    np.testing.assert_array_equal(found[0][0], found[1][0])


# --- What fit does with them --------------------------------------------------------------------


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 6)).astype(np.float32)
    return x, (x[:, :2] - x[:, 2:4] ** 2).astype(np.float32)


def model(optimizer: Any, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)]
    made = keras.Sequential([keras.Input((6,)), *layers])
    made.compile(optimizer=optimizer, loss="mse", **options)
    return made


def fit(made: Any, **options: Any) -> Any:
    options = {"epochs": 4, "batch_size": 16, "shuffle": False, "verbose": 0, **options}
    return made.fit(*data(), **options)


@pytest.mark.parametrize(
    ("kind", "eagerly"), [*((kind, False) for kind in KINDS), ("momentum", True), ("adam", True)]
)
def test_fit_gives_the_curve_of_keras(kind: str, eagerly: bool) -> None:
    ours, theirs, own = KINDS[kind]
    curves = []
    for cls in (ours, theirs):
        rate = keras.optimizers.schedules.CosineDecay(0.0, 20, warmup_target=0.125, warmup_steps=4)
        made = model(cls(rate, **own, global_clipnorm=0.5), run_eagerly=eagerly)
        curves.append(fit(made).history["loss"])
    assert curves[0][-1] < curves[0][0]
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-5)


@both
def test_callbacks(cls: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = model(cls(0.5))
    path = tmp_path / "best.keras"
    callbacks = keras.callbacks
    history = fit(
        made,
        epochs=8,
        verbose=2,
        callbacks=[
            callbacks.LearningRateScheduler(lambda epoch, lr: 0.03 if epoch < 2 else lr),
            callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=10.0),
            callbacks.EarlyStopping(monitor="loss", patience=5, min_delta=10.0),
            callbacks.ModelCheckpoint(path, monitor="loss", save_best_only=True),
        ],
    ).history
    np.testing.assert_allclose(history["learning_rate"][:4], [0.03, 0.03, 0.015, 0.0075], 1e-6)
    assert len(history["loss"]) == 6
    assert "Epoch 6/8" in capsys.readouterr().out
    saved = keras.models.load_model(path)
    assert type(saved.optimizer) is cls
    best = int(np.argmin(history["loss"]))
    assert int(saved.optimizer.iterations) == 6 * (best + 1)


@kinds
def test_a_saved_model_continues(kind: str, tmp_path: Path) -> None:
    ours, _, own = KINDS[kind]
    made = model(ours(schedule(), **own, non_finite="skip"))
    fit(made, epochs=1)
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(made.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*values([a, b]))
    assert loaded.optimizer.get_config() == made.optimizer.get_config()
    curves = [fit(m, epochs=2).history["loss"] for m in (made, loaded)]
    assert curves[0] == curves[1]


@kinds
def test_the_state_of_keras_is_ours(kind: str) -> None:
    ours, theirs, own = KINDS[kind]
    made, copy = model(theirs(0.125, **own, global_clipnorm=1.0)), model(ours(0.125, **own))
    copy.optimizer.global_clipnorm = 1.0
    fit(made, epochs=1)
    copy.set_weights(made.get_weights())
    copy.optimizer.build(copy.trainable_variables)
    for a, b in zip(copy.optimizer.variables, made.optimizer.variables, strict=True):
        a.assign(values([b])[0])
    curves = [fit(m).history["loss"] for m in (made, copy)]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)


@both
def test_config(cls: Any) -> None:
    made = cls(schedule(), global_clipnorm=0.5, weight_decay=0.125, non_finite="skip", name="it")
    config = made.get_config()
    assert (config["non_finite"], config["global_clipnorm"]) == ("skip", 0.5)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert type(again) is cls
    assert again.get_config() == config
    assert cls.from_config(dict(config)).get_config() == config


def test_only_clipped_sgd_clips_by_itself() -> None:
    assert ClippedSGD().get_config()["global_clipnorm"] == 1.0
    assert Adam().get_config()["global_clipnorm"] is None


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Adam(beta_1=1.0), "adam_step: beta1: expected"),
        (lambda: Adam(epsilon=0.0), "adam_step: eps: expected"),
        (lambda: Adam(weight_decay=-1.0), "adam_step: weight_decay: expected"),
        (lambda: Adam(global_clipnorm=-1.0), "adam_step: max_norm: expected"),
        (lambda: Adam(clipvalue=-1.0), "adam_step: clip_value: expected"),
        (lambda: ClippedSGD(weight_decay=-1.0), "sgd_step: weight_decay: expected"),
        (lambda: ClippedSGD(momentum=2.0), "`momentum` must be a float between"),
        (lambda: ClippedSGD(clipvalue=1.0), "Only one of `clipnorm`, `clipvalue` and `global_"),
        (lambda: ClippedSGD(non_finite="no"), "ClippedSGD: non_finite: expected .* got 'no'"),
        (lambda: Adam(momentum=0.5), "Argument.* not recognized: {'momentum': 0.5}"),
    ],
)
def test_wrong_arguments(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@both
@pytest.mark.parametrize("dtypes", [["float16"], ["bfloat16", "float32"]], ids="-".join)
def test_dtypes_without_kernels(cls: Any, dtypes: list[str]) -> None:
    variables = [keras.Variable(np.ones(2), dtype=dtype) for dtype in dtypes]
    with pytest.raises(TypeError, match=f"all float32 or all float64, got {', '.join(dtypes)}"):
        cls().build(variables)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite(cls: Any, bad: float) -> None:
    good, wrong = np.ones(3, np.float32), np.array([1, bad, 1], np.float32)
    for choice in (None, "raise", "skip"):
        if BACKEND == "jax" and choice == "raise":
            with pytest.raises(ValueError, match="non_finite: expected 'skip' on JAX, got 'raise'"):
                cls(non_finite=choice)
            continue
        variables = [keras.Variable(good, name="a"), keras.Variable(good, name="b")]
        optimizer = cls(non_finite=choice)
        optimizer.build(variables)
        grads = [keras.ops.convert_to_tensor(g) for g in (good, wrong)]
        before = values([*variables, *optimizer.variables[2:]])
        if choice != "skip" and BACKEND != "jax":
            with pytest.raises(Exception, match=f"{cls.__name__}: gradient of b: non-finite"):
                optimizer.apply(grads, variables)
        else:
            optimizer.apply(grads, variables)
        for a, b in zip(before, values([*variables, *optimizer.variables[2:]]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(BACKEND != "torch", reason=f"{OTHER_BACKEND}: how PyTorch lays out tensors")
def test_a_transposed_tensor_is_updated() -> None:
    variable = keras.Variable(np.zeros((3, 4), np.float32))
    variable.value.data = variable.value.data.T.contiguous().T
    version = variable.value._version
    ClippedSGD(1.0, global_clipnorm=None).apply([keras.ops.ones((3, 4))], [variable])
    np.testing.assert_array_equal(values([variable])[0], -np.ones((3, 4)))
    assert variable.value._version > version


@pytest.mark.skipif(BACKEND != "tensorflow", reason=f"{OTHER_BACKEND}: XLA of TensorFlow")
def test_tensorflow_refusals() -> None:
    with pytest.raises(
        ValueError, match="ClippedSGD: expected a model compiled with jit_compile=F"
    ):
        fit(model(ClippedSGD(), jit_compile=True))
    import tensorflow as tf

    with tf.distribute.OneDeviceStrategy("cpu:0").scope():
        with pytest.raises(ValueError, match=r"expected no .* strategy, got One"):
            Adam().build([keras.Variable([1.0])])


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason=f"{OTHER_BACKEND}: sparse gradients of TensorFlow"
)
@both
def test_sparse_gradients_are_added_up(cls: Any) -> None:
    import tensorflow as tf

    variables = [keras.Variable(np.ones((3, 2), np.float32)) for _ in range(2)]
    sparse = tf.IndexedSlices(tf.constant([[1.0, 2], [4, 8], [16, 32]]), [0, 2, 0], [3, 2])
    dense = tf.constant([[17.0, 34], [0, 0], [4, 8]])
    for variable, gradient in zip(variables, (sparse, dense), strict=True):
        cls(0.5, global_clipnorm=1.0).apply([gradient], [variable])
    np.testing.assert_array_equal(*values(variables))
