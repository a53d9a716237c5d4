"""The tests on processors that are not here, emulated by QEMU.

    python tools/emulate.py nehalem                  # x86-64 before AVX: the baseline kernels
    python tools/emulate.py haswell                  # AVX2, no AVX-512
    python tools/emulate.py aarch64 --wheel dist/tbptt_fast-*-aarch64.whl

The first two run the installed package (or that of PYTHONPATH); the third installs a wheel, with
NumPy and pytest for that machine, beside an interpreter from Debian's packages for arm64. Needs
qemu-user-static, and for aarch64 debootstrap too. Other arguments are pytest's; by default tests of
every kernel run that take minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPUS = {"nehalem": "Nehalem", "haswell": "Haswell"}
ISAS = {"nehalem": "baseline", "haswell": "baseline avx2", "aarch64": "baseline"}
TESTS = (
    *("test_recurrent", "test_estimators", "test_convrecurrent", "test_convolution"),
    *("test_conv_transpose", "test_layers", "test_layer_norm", "test_batch_norm", "test_losses"),
    *("test_pooling", "test_optimizers", "test_activations", "test_dropout", "test_vector_math"),
    *("test_winograd", "test_packed_weights", "test_lag_norms", "test_boundary", "test_threads"),
)
NOT_SMALL = "not torch and not 33x17 and not large"
# these start the interpreter, which without the emulator is not one of this machine
IN_CHILDREN = "environment or affinity or instruction_sets or spawn"
DEBIAN = "bookworm"
PACKAGES = "python3,libpython3-stdlib,libpython3.11-stdlib,python3.11-minimal"
PYTHON = "3.11"


def make_root(folder: Path) -> None:
    """Debian's packages for arm64, unpacked; nothing of them is run or configured."""
    if not (folder / "usr" / "bin" / f"python{PYTHON}").exists():
        options = ("--foreign", "--variant=minbase", "--arch=arm64", f"--include={PACKAGES}")
        subprocess.run(["debootstrap", *options, DEBIAN, folder], check=True)
        for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, folder], check=True)


def install(wheel: Path, folder: Path) -> None:
    """The wheel and what its tests need, for that machine."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    options = ["--python-version", PYTHON, "--only-binary=:all:", "--target", str(folder)]
    options += [f"--platform={name}" for name in (*platforms, "manylinux2014_aarch64")]
    packages = ["numpy", "pytest", "hypothesis", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True)


def emulated(cpu: str, wheel: Path | None, root: Path, packages: Path) -> tuple[list[str], str]:
    """The interpreter's command there, and its PYTHONPATH."""
    if cpu in CPUS:
        return ["qemu-x86_64-static", "-cpu", CPUS[cpu], sys.executable], os.environ.get(
            "PYTHONPATH", ""
        )
    if wheel is None:
        raise SystemExit("emulate: aarch64 needs --wheel")
    make_root(root)
    install(wheel, packages)
    python = root / "usr" / "bin" / f"python{PYTHON}"
    return ["qemu-aarch64-static", "-L", str(root), str(python)], str(packages)


def main() -> int:
    """Install where needed, look at the instruction sets, run the tests."""
    parser = argparse.ArgumentParser(description="Run the tests on an emulated processor.")
    parser.add_argument("cpu", choices=tuple(ISAS))
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--root", type=Path, help="where the files for arm64 are, or come to be")
    given, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = (given.root or folder / "root").resolve()
        python, path = emulated(given.cpu, given.wheel, root, folder / "packages")
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        probe = "import tbptt_fast; print(*tbptt_fast.available_isas())"
        found = subprocess.run(
            [*python, "-c", probe], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        assert found == ISAS[given.cpu], f"expected {ISAS[given.cpu]}, found {found}"
        print(f"{given.cpu}: {found}", flush=True)
        chosen = NOT_SMALL if given.cpu in CPUS else f"{NOT_SMALL} and not ({IN_CHILDREN})"
        tests = others or ["-k", chosen, *(f"tests/{name}.py" for name in TESTS)]
        run = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(run, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
