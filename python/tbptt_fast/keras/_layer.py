"""What the layers have in common; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from .._options import read_truncation
from ..ops import Truncation
from ._backend import STATE_IS_OUTPUT, Tensor, adapter
from ._masks import PackedSteps

PACKAGE = "tbptt_fast"  # of the names under which Keras saves the layers


class NativeLayer:
    """In front of a layer of Keras among the bases: native kernels do its work where they can.

    Where they lack an option of the layer, Keras's own code runs, and the layer's config says so:
    `"kernels"` is "keras" in place of "tbptt_fast".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.missing_kernel() is None and not adapter.supports_jit:
            self.supports_jit = False

    def missing_kernel(self) -> str | None:
        """Why Keras's own code runs, or None where the native kernels do."""
        layer: Any = self
        if layer.compute_dtype not in ("float32", "float64"):
            return f"it computes in {layer.compute_dtype}, not in float32 or float64"
        return adapter.missing

    def get_config(self) -> dict[str, Any]:
        """Keras's, and which kernels run: "tbptt_fast" or "keras"."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        config["kernels"] = "tbptt_fast" if self.missing_kernel() is None else "keras"
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A layer of `get_config`; which kernels run is found anew."""
        return cls(**{name: value for name, value in config.items() if name != "kernels"})


class NativeRecurrent(NativeLayer):
    """A recurrent layer: `truncation` of its backward pass, and resets (`is_init`) in its calls."""

    def __init__(self, *args: Any, truncation: Truncation = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self.truncation = read_truncation(truncation)
        except TypeError as error:  # Keras raises a ValueError for any option
            message = f"{type(self).__name__}: truncation: {error}"
            raise ValueError(message) from error
        reason = self.missing_kernel()
        if reason is None and hasattr(self, "use_cudnn"):
            self.use_cudnn = False  # else Bidirectional looks for a kernel that goes round them
        if reason is not None and self.truncation is not None:
            raise ValueError(f"{type(self).__name__}: truncation needs a native kernel: {reason}")

    def missing_kernel(self) -> str | None:
        layer: Any = self
        if getattr(layer, "use_cudnn", False) is True:
            return "use_cudnn=True asks for cuDNN"
        if layer.recurrent_dropout:
            return "recurrent_dropout has no kernel"
        if layer.dropout and getattr(layer.cell, "dropout_mask_count", None) is not None:
            return "dropout with a mask for each gate has no kernel"
        return super().missing_kernel()

    def get_config(self) -> dict[str, Any]:
        """Keras's, which kernels run, and the truncation as None or [k1, k2]."""
        return {**super().get_config(), "truncation": self.truncation}

    def call(
        self,
        sequences: Tensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
        is_init: Tensor | None = None,
    ) -> Any:
        """Run the layer.

        Args:
            sequences, initial_state, mask, training: as in Keras.
            is_init: bool [batch, steps]; True zeroes the state that enters that step of that row.
                Before a masked step it does so for the next one that counts.

        Raises:
            ValueError: what Keras refuses; an `is_init` of another shape, or given to a layer
                without a native kernel.
        """
        layer: Any = super()
        reason = self.missing_kernel()
        if is_init is not None:
            self._check_resets(is_init, sequences, reason)
        if reason is None:  # Keras hands what is given as the mask to `inner_loop`
            mask = (mask[0] if isinstance(mask, (list, tuple)) else mask, is_init)
        return layer.call(sequences, initial_state=initial_state, mask=mask, training=training)

    def _check_resets(self, is_init: Tensor, sequences: Tensor, reason: str | None) -> None:
        name = type(self).__name__
        if reason is not None:
            raise ValueError(f"{name}: is_init needs a native kernel: {reason}")
        shape, expected = tuple(is_init.shape), tuple(sequences.shape[:2])
        sizes = zip(shape, expected, strict=False)
        if len(shape) != 2 or any(a != b for a, b in sizes if None not in (a, b)):
            raise ValueError(f"{name}: is_init: expected shape {expected}, got {shape}")

    def inner_loop(
        self, sequences: Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The last output, all outputs and the last states, as Keras's own loop gives them."""
        layer: Any = self
        if self.missing_kernel() is not None:
            parent: Any = super()
            found: tuple[Tensor, Tensor, list[Tensor]] = parent.inner_loop(
                sequences, initial_state, mask, training=training
            )
            return found
        steps, is_init = (None if m is None else self._time_first(m, "bool") for m in mask)
        x = self._time_first(sequences, layer.compute_dtype)
        if training and layer.dropout:
            x = x * layer.cell.get_dropout_mask(sequences[:, 0, :])
        # a stateful layer's variables change before the backward pass reads them
        states = [ops.copy(s) if layer.stateful else s for s in initial_state]
        if steps is None:
            out, *last = self.run_kernel(x, states, is_init, None)
            every, output = out, last[0]
        else:
            packed = PackedSteps(steps)
            x, is_init = packed.pack(x), None if is_init is None else packed.pack_resets(is_init)
            keeps_c = len(states) == 2 and (layer.return_state or layer.stateful)
            pads = packed.padding(layer.compute_dtype) if keeps_c else None
            out, *last = self.run_kernel(x, states, is_init, pads)
            # Keras on JAX takes the state for the output of the step before the first
            before = STATE_IS_OUTPUT and not getattr(layer, "unroll", False)
            first = states[0] if before else ops.zeros_like(states[0])
            every = packed.outputs(out, first, layer.zero_output_for_mask, layer.return_sequences)
            output = every[-1]
            last = [packed.last(out, states[0]), *map(packed.after_resets, last[1:])]
        if not layer.return_sequences:
            return output, ops.expand_dims(output, 1), last
        axes = (1, 0, *range(2, len(every.shape)))
        return output, ops.transpose(every, axes), last

    def _time_first(self, x: Tensor, dtype: str) -> Tensor:
        """[T, B, …] of [B, T, …], from the end of time on in a layer that goes backwards."""
        x = ops.transpose(ops.cast(x, dtype), (1, 0, *range(2, len(x.shape))))
        layer: Any = self
        return ops.flip(x, axis=0) if layer.go_backwards else x

    def run_kernel(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        is_init: Tensor | None,
        pads: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """All outputs [T, B, …] and the last states; where `pads` [T, B] is 1, c stays as it is."""
        raise NotImplementedError
