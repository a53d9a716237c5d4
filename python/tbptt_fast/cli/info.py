"""`info`: what this installation is and what it found on this machine."""

from __future__ import annotations

import platform

import numpy as np

from tbptt_fast import __version__, active_isa, available_isas, build_info, cuda, get_num_threads
from tbptt_fast.cli.progress import installed

_ADAPTERS = ("torch", "jax", "keras", "tensorflow")
_EXTRAS = ("tqdm", "matplotlib")


def info() -> int:
    """Run the command."""
    build = build_info()
    others = [name for name in available_isas() if name != active_isa()]
    rows = {
        "tbptt_fast": __version__,
        "compiler": build["compiler"],
        "ISA": f"{active_isa()} (also available: {', '.join(others) or 'none'})",
        "threads": str(get_num_threads()),
        "CUDA": _cuda(),
        "adapters": _found(_ADAPTERS),
        "extra [cli]": _found(_EXTRAS),
        "Python": f"{platform.python_version()}, NumPy {np.__version__}, {platform.platform()}",
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")
    return 0


def _cuda() -> str:
    """Devices and versions, or why the kernels cannot run."""
    build, reason = cuda.build_info(), cuda.why_not()
    kernels = f"; kernels for {build['targets']}, CUDA {build['cuda']}" if build else ""
    if reason is not None:
        return f"no: {reason}{kernels}"
    names = ", ".join(str(device["name"]) for device in cuda.devices())
    return f"yes: {names}{kernels}"


def _found(names: tuple[str, ...]) -> str:
    """Looked for without importing: importing a framework takes seconds."""
    return ", ".join(f"{name} {'found' if installed(name) else 'not found'}" for name in names)
