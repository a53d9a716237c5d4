"""Native layers in place of Keras's, in a model that exists; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from ._layer import PACKAGE, NativeLayer
from .convolution import Conv1D, Conv2D
from .convrecurrent import ConvLSTM2D
from .recurrent import GRU, LSTM, SimpleRNN

_NATIVE: dict[str, Any] = {
    layer.__name__: layer for layer in (SimpleRNN, GRU, LSTM, ConvLSTM2D, Conv1D, Conv2D)
}
_OPTIONS = ("kernels", "truncation")  # of native layers, which Keras's have not


class SwapReport(NamedTuple):
    """Which layers of a model run native kernels, by their paths.

    swapped: path → class, of the layers that do.
    left: path → reason, of the other layers of these kinds.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{path}: {kind} on tbptt_fast" for path, kind in self.swapped.items()]
        lines += [f"{path}: left alone, {why}" for path, why in self.left.items()]
        return "\n".join(lines) or "no recurrent layer or convolution found"


def _to_native(config: dict[str, Any]) -> None:
    """Make the config of a layer of Keras that of a native one, if it has a kernel."""
    if config.get("module") != "keras.layers" or config["class_name"] not in _NATIVE:
        return
    native = _NATIVE[config["class_name"]]
    if native.from_config(_copied(config["config"])).missing_kernel() is None:
        config["module"] = native.__module__
        config["registered_name"] = f"{PACKAGE}>{native.__name__}"


def _to_keras(config: dict[str, Any]) -> None:
    """Make the config of a native layer that of Keras's."""
    if config.get("registered_name") in [f"{PACKAGE}>{name}" for name in _NATIVE]:
        config["module"], config["registered_name"] = "keras.layers", None
        for option in _OPTIONS:
            config["config"].pop(option, None)


def _copied(config: Any) -> Any:
    """Nested dicts and lists, copied."""
    if isinstance(config, dict):
        return {name: _copied(value) for name, value in config.items()}
    return [_copied(value) for value in config] if isinstance(config, list) else config


def _rewrite(config: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """`change` applied to the config of every object within."""
    if isinstance(config, dict):
        for value in config.values():
            _rewrite(value, change)
        if "class_name" in config:
            change(config)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _rewrite(value, change)
    return config


def _rebuild(op: str, model: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """A model of changed layers with the values of all variables of this one."""
    if not isinstance(model, keras.Layer):
        raise ValueError(f"{op}: model: expected a model of Keras, got {type(model).__name__}")
    config = _copied(keras.saving.serialize_keras_object(model))
    config.pop("compile_config", None)
    rebuilt = keras.saving.deserialize_keras_object(_rewrite(config, change))
    given, found = model.variables, rebuilt.variables
    shapes = [[tuple(v.shape) for v in variables] for variables in (given, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{op}: the model's config does not rebuild its variables: there are {len(shapes[1])} "
            f"for {len(shapes[0])}"
        )
    for old, new in zip(given, found, strict=True):
        new.assign(keras.ops.copy(old))  # JAX would share the array, and delete it in a step of one
    return rebuilt


def accelerate(model: Any) -> Any:
    """A model like this one whose recurrent and convolution layers run on native kernels.

    It is made of the model's config, as `keras.models.clone_model` does, and has copies of its
    weights: SimpleRNN, GRU, LSTM, ConvLSTM2D, Conv1D and Conv2D become those of
    `tbptt_fast.keras`, also within models and wrappers (Bidirectional, TimeDistributed). Layers
    without a native kernel stay as they are; `swap_report` says which, and why. The new model
    is not compiled.

    Args:
        model: a Sequential or functional model, or a layer. Layers that a subclass of keras.Model
            makes in its own code are not in its config, and stay as they are.

    Raises:
        ValueError: it is none, or its config does not rebuild its variables.
        NotImplementedError: a layer of it has no config, as Keras says.

    >>> memory = keras.layers.GRU(4, name="memory")
    >>> model = keras.Sequential([keras.Input((9, 3)), memory, keras.layers.Dense(2)])
    >>> fast = accelerate(model)
    >>> print(swap_report(fast))
    memory: GRU on tbptt_fast
    >>> type(decelerate(fast).layers[0]) is keras.layers.GRU
    True
    """
    return _rebuild("accelerate", model, _to_native)


def decelerate(model: Any) -> Any:
    """Undo `accelerate`: a model like this one with Keras's layers and copies of its weights.

    Files that it saves load without tbptt_fast. Keras's layers have no `truncation`: it is lost.

    Raises:
        ValueError, NotImplementedError: as `accelerate`.
    """
    return _rebuild("decelerate", model, _to_keras)


def swap_report(model: Any) -> SwapReport:
    """Which layers of a model run native kernels, and why others of these kinds do not.

    >>> print(swap_report(keras.Sequential([GRU(4, reset_after=False, name="old")], name="model")))
    old: left alone, reset_after=False has no kernel
    """
    if not isinstance(model, keras.Layer):
        raise ValueError(f"swap_report: model: expected a model, got {type(model).__name__}")
    report = SwapReport({}, {})
    kinds = tuple(getattr(keras.layers, name) for name in _NATIVE)
    found = [(model.name, model)] if isinstance(model, kinds) else _walk(model)
    for path, layer in found:
        if isinstance(layer, kinds):
            reason = _why_left(layer)
            if reason is None:
                report.swapped[path] = type(layer).__name__
            else:
                report.left[path] = reason
    return report


def _walk(layer: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The layers within, with their paths: names with "/" between them."""
    for child in layer._flatten_layers(include_self=False, recursive=False):
        yield path + child.name, child
        yield from _walk(child, f"{path}{child.name}/")


def _why_left(layer: Any) -> str | None:
    kind = type(layer)
    if isinstance(layer, NativeLayer):
        return layer.missing_kernel()
    native = _NATIVE.get(kind.__name__)
    if native is None or kind is not getattr(keras.layers, kind.__name__):
        return f"{kind.__name__} is a subclass, with code of its own"
    reason: str | None = native.from_config(layer.get_config()).missing_kernel()
    return reason or "it is a layer of Keras: accelerate makes it a native one"
