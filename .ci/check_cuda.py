"""What was compiled for GPUs: no kernel spills registers, and the module asks for no framework.

python .ci/check_cuda.py BUILD_LOG  # of a build with TBPTT_FAST_CUDA_REPORT=1
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

# Kernels whose speed the whole rests on: none of them may keep registers in memory.
HOT = (
    "walk_forward",
    "walk_backward",
    "cluster_forward",
    "cluster_backward",
    "tiles_forward",
    "tiles_backward",
    "slices_forward",
    "slices_backward",
    "multiply_matrices",
    "correlate",
    "depthwise",
    "apply_cell",
    "carry_back",
)

FOREIGN = re.compile(r"\b(cu(dnn|blas|solver|rand|fft)\w*|cu[A-Z]\w+|.*(torch|c10|nccl).*)$", re.I)
LIBRARIES = re.compile(r"libc\.so|libm\.so|libdl|librt|libpthread|linux-vdso|ld-linux|libgcc_s")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def spills(log: str) -> list[str]:
    """Hot kernels that spill; an error where the report names none of them."""
    pattern = re.compile(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores"
    )
    # pip puts spaces before the lines of a build
    found = [(name, int(stores)) for name, _, stores in pattern.findall(log)]
    hot = [(name, stores) for name, stores in found if any(part in name for part in HOT)]
    if not hot:
        raise SystemExit("the build's log reports no hot kernel")
    for part in HOT:
        if not any(part in name and "Bfloat16" in name for name, _ in hot):
            raise SystemExit(f"the build's log reports no {part} in bfloat16")
    print(
        f"{len(found)} kernels, {len(hot)} of them hot, "
        f"{sum(stores > 0 for _, stores in found)} spill"
    )
    return [f"{name}: {stores} bytes" for name, stores in hot if stores > 0]


def main() -> int:
    problems = [f"spills {text}" for text in spills(Path(sys.argv[1]).read_text(errors="replace"))]
    spec = importlib.util.find_spec("tbptt_fast._cuda")
    if spec is None or spec.origin is None:
        raise SystemExit("tbptt_fast._cuda was compiled and is not installed")
    asked = [line.split()[-1] for line in output("nm", "-D", "-u", spec.origin).splitlines()]
    problems += [f"asks for {name}" for name in asked if FOREIGN.match(name)]
    needed = re.findall(r"NEEDED\s+(\S+)", output("objdump", "-p", spec.origin))
    problems += [f"needs {name}" for name in needed if not LIBRARIES.search(name)]
    from tbptt_fast import cuda

    reason = cuda.why_not()
    print(f"{Path(spec.origin).stat().st_size / 1e6:.1f} MB; here: {reason or 'it runs'}")
    if reason is not None and len(reason.split()) < 4:
        problems.append(f"no sentence: {reason!r}")
    print(*problems, sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
