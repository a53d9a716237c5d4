"""The module `tbptt_fast._cuda`: whether it was built and can run here; loaded when asked."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

NAME = "tbptt_fast._cuda"


@cache
def loaded() -> Any:
    """The module, or the sentence that says why there is none."""
    if importlib.util.find_spec(NAME) is None:
        return "this installation was built without CUDA kernels"
    try:
        return importlib.import_module(NAME)
    except ImportError as error:
        return f"{NAME} cannot be loaded: {error}"


@cache
def why_not() -> str | None:
    """Why the kernels cannot run on this machine; None where they can.

    >>> from tbptt_fast import cuda
    >>> reason = cuda.why_not()
    >>> cuda.is_available() == (reason is None)
    True
    """
    module = loaded()
    reason: str | None = module if isinstance(module, str) else module.why_not()
    return reason


@cache
def native() -> Any:
    """The module.

    Raises:
        RuntimeError: it cannot run here.
    """
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"tbptt_fast.cuda: {reason}")
    return loaded()
