"""The module of CUDA kernels: whether it was built and can run here; loaded when asked.

It lies in this package, or in the distribution tbptt-fast-cu13.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from .._version import __version__

NAMES = ("tbptt_fast._cuda", "tbptt_fast_cu13._cuda")


def _installed(name: str) -> bool:
    return (
        importlib.util.find_spec(name.partition(".")[0]) is not None
        and importlib.util.find_spec(name) is not None
    )


@cache
def loaded() -> Any:
    """The module, or the sentence that says why there is none."""
    name = next(filter(_installed, NAMES), None)
    if name is None:
        return "built without CUDA kernels, and tbptt-fast-cu13 is not installed"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return f"{name} cannot be loaded: {error}"
    version = module.build_info()["version"]
    if version != __version__:
        return f"{name} is of version {version}, and tbptt_fast of {__version__}: install the same"
    return module


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
