"""Wheels for old Linux systems, for this machine and for another, without containers.

    pip install '.[wheels]' && python tools/wheels.py --out dist

Zig's C++ compiler (the package ziglang) knows the symbols of every glibc and compiles for other
machines, so that what is built here runs on systems of 2014. Each wheel is repaired and looked at
by auditwheel, and must have the promised size, dependencies, symbols and instructions; that for
this machine is installed into a fresh environment, timed and, with --test, tested.
`tools/emulate.py` runs the other.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("x86_64", "aarch64")
GLIBC = (2, 17)  # manylinux2014
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
LARGEST = 3_000_000  # bytes of a wheel
IMPORT_SECONDS = 0.030  # beside NumPy
INSTALL_SECONDS = 3.0

TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {arch})
set(CMAKE_CXX_COMPILER {tools}/c++)
set(CMAKE_AR {tools}/ar)
set(CMAKE_RANLIB {tools}/ranlib)
"""


def run(*command: str | Path, **environment: str) -> str:
    """What a command printed; where it fails, all of that and the end."""
    given = list(map(str, command))
    print("+", *given, flush=True)
    done = subprocess.run(
        given, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}\n{given[0]}: exit {done.returncode}")
    return done.stdout


def write_toolchain(arch: str, folder: Path) -> Path:
    """Compiler, archiver and the file that tells CMake of them."""
    import ziglang

    zig = Path(ziglang.__file__).parent / "zig"  # pip's build environments do not see the package
    target = f"{arch}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    for name, arguments in (("c++", f"c++ -target {target}"), ("ar", "ar"), ("ranlib", "ranlib")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{zig}" {arguments} "$@"\n')
        script.chmod(0o755)
    toolchain = folder / "toolchain.cmake"
    toolchain.write_text(TOOLCHAIN.format(arch=arch, tools=folder))
    return toolchain


def make_tools(python: str, folder: Path) -> Path:
    """What builds, for this machine: in an environment of its own pip would take the other's."""
    from build import ProjectBuilder

    run(python, "-m", "venv", folder)
    tools = folder / "bin" / "python"
    wanted = ProjectBuilder(ROOT).build_system_requires
    run(tools, "-m", "pip", "install", "cmake", "ninja", *wanted)
    return tools


def build(arch: str, python: str, objects: Path, out: Path) -> Path:
    """The repaired wheel. The folder `objects` serves all interpreters: the kernels need none."""
    suffix = run(python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    suffix = suffix.strip().replace(platform.machine(), arch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = make_tools(python, folder / "tools")
        run(
            *(tools, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
            *("--wheel-dir", folder, "."),
            *("-C", "cmake.define.TBPTT_FAST_CUDA=OFF"),
            *("-C", "cmake.define.TBPTT_FAST_JAX=ON"),
            *("-C", f"cmake.define.CMAKE_TOOLCHAIN_FILE={write_toolchain(arch, objects)}"),
            _PYTHON_HOST_PLATFORM=f"linux-{arch}",
            SETUPTOOLS_EXT_SUFFIX=suffix,
            SKBUILD_BUILD_DIR=str(objects / "build"),
        )
        (raw,) = folder.glob("*.whl")
        run(sys.executable, "-m", "auditwheel", "repair", "-w", folder / "r", raw)
        (wheel,) = (folder / "r").glob("*.whl")
        return Path(shutil.copy2(wheel, out))


def check_contents(wheel: Path) -> None:
    """Size, dependencies and exported symbols."""
    from elftools.elf.elffile import ELFFile

    size = wheel.stat().st_size
    assert size < LARGEST, f"{wheel.name}: {size} bytes"
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith(".so"))
        elf = ELFFile(BytesIO(archive.read(module)))
    tags = elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
    needed = {tag.needed for tag in tags}
    foreign = {name for name in needed if not name.startswith("ld-linux")} - LIBRARIES
    assert not foreign, f"{wheel.name} needs {foreign}"
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    exported = {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"}
    assert exported == {"PyInit__native"}, f"{wheel.name} exports {exported}"
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    (tag,) = re.findall(r"platform tag:\s*\"(\w+)\"", " ".join(shown.split()))
    glibc = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    assert glibc, f"{wheel.name} is {tag}"
    assert tuple(map(int, glibc.groups())) <= GLIBC, f"{wheel.name} is {tag}"
    print(f"{wheel.name}: {size} bytes, {tag}, needs {', '.join(sorted(needed))}")


def check_instructions(wheel: Path, objects: Path) -> None:
    """What is compiled for an instruction set stays inside its units."""
    tests = (sys.executable, "-m", "pytest", "-q", "tests/test_isa_objects.py")
    found = str(objects / "build" / "CMakeFiles")
    with tempfile.TemporaryDirectory() as package, zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
        print(run(*tests, TBPTT_FAST_OBJECTS=found, PYTHONPATH=package), end="")


def check_isas(python: Path) -> None:
    """The kernels for this processor are there, and are found."""
    code = "import tbptt_fast; print(*tbptt_fast.available_isas())"
    found = run(python, "-I", "-c", code).split()
    flags = set(Path("/proc/cpuinfo").read_text().split())
    wanted = ["baseline"]
    if {"avx2", "fma"} <= flags:
        wanted.append("avx2")
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            wanted.append("avx512")
    assert found == wanted, f"found {found}, and the processor has {wanted}"


def check_installation(wheel: Path, python: str, test: bool) -> None:
    """Into a fresh environment; times are the best of a few, as machines are shared."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name) / "bin" / "python"
        run(python, "-m", "venv", name)
        run(fresh, "-m", "pip", "install", *(["pytest", "hypothesis"] if test else []), "numpy")
        install = (fresh, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall")
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            run(*install, wheel)
            taken.append(time.perf_counter() - start)
        assert min(taken) < INSTALL_SECONDS, f"installed in {min(taken):.1f} s"
        check_isas(fresh)
        code = (
            "import time, numpy; start = time.perf_counter(); import tbptt_fast; "
            "print(time.perf_counter() - start)"
        )
        imports = [float(run(fresh, "-I", "-c", code)) for _ in range(5)]
        assert min(imports) < IMPORT_SECONDS, f"imported in {1e3 * min(imports):.1f} ms"
        middle = 1e3 * statistics.median(imports)
        print(f"installs in {min(taken):.1f} s, imports in {middle:.1f} ms beside NumPy")
        if test:
            print(run(fresh, "-m", "pytest", "-q", "tests", PYTHONPATH="").splitlines()[-1])


def is_this(python: str) -> bool:
    """Whether wheels for that interpreter can be imported here."""
    code = "import sys; print(sys.version_info[:2])"
    return run(python, "-c", code).strip() == str(sys.version_info[:2])


def main() -> None:
    """Build and check."""
    parser = argparse.ArgumentParser(description="Build and check wheels for Linux.")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--objects", type=Path, help="a folder to keep objects in")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--test", action="store_true", help="run the tests of what was installed")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    checked = False
    with tempfile.TemporaryDirectory() as name:
        for arch in given.arch:
            objects = (given.objects or Path(name)).resolve() / arch
            objects.mkdir(parents=True, exist_ok=True)
            for python in given.python:
                wheel = build(arch, python, objects, given.out.resolve())
                check_contents(wheel)
                if arch == platform.machine():
                    check_installation(wheel, python, given.test)
                    if arch == "x86_64" and is_this(python):  # which has pytest
                        check_instructions(wheel, objects)
                        checked = True
    if not checked:
        print("instructions were not looked at: no wheel is for x86-64 and this interpreter")


if __name__ == "__main__":
    main()
