"""The machine code: what is compiled for an instruction set stays inside its namespace.

The linker keeps one of several equal weak symbols. If a function without an ISA in its name were
compiled with AVX flags in one unit and without in another, the AVX one could be kept, and end the
process on a machine without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tbptt_fast import _native

ISAS = ("baseline", "avx2", "avx512")

# VEX and EVEX instructions are all those whose names begin with v, but for two of the 286.
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
AVX = re.compile(r"^\s*[0-9a-f]+:\s+(?!verr|verw)v[a-z]|%[yz]mm")


def tool(name: str, *arguments: str | Path) -> str:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    command = [name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def objects() -> dict[str, list[Path]]:
    """The object files of a CMake build by target; TBPTT_FAST_OBJECTS is its CMakeFiles folder."""
    given = os.environ.get("TBPTT_FAST_OBJECTS")
    if not given:
        pytest.skip("TBPTT_FAST_OBJECTS does not name the CMakeFiles folder of a build")
    found = {isa: sorted(Path(given).glob(f"tbptt_{isa}.dir/**/*.o")) for isa in ISAS}
    found["module"] = sorted(Path(given).glob("_native.dir/**/*.o"))
    assert found["baseline"], f"no objects in {given}"
    assert found["module"], f"no objects in {given}"
    return found


def functions_with_avx(path: Path) -> set[str]:
    """The symbols whose code needs AVX."""
    found, name = set(), ""
    for line in tool("objdump", "-d", "--no-show-raw-insn", path).splitlines():
        if match := FUNCTION.match(line):
            name = match[1]
        elif AVX.search(line):
            found.add(name)
    return found


def weak_symbols(path: Path) -> set[str]:
    """Without DW.ref.*, pointers to data that the compiler writes for exceptions."""
    lines = (line.split() for line in tool("nm", "--defined-only", path).splitlines())
    return {name for _, kind, name in lines if kind in "VvWwu" and not name.startswith("DW.ref.")}


@pytest.mark.parametrize("isa", ISAS)
def test_weak_symbols_carry_the_name_of_their_isa(isa: str) -> None:
    weak = {name for path in objects()[isa] for name in weak_symbols(path)}
    assert not {name for name in weak if f"{len(isa)}{isa}" not in name}


def test_no_weak_symbol_is_shared_between_isas() -> None:
    seen: dict[str, str] = {}
    for target, paths in objects().items():
        for name in {name for path in paths for name in weak_symbols(path)}:
            assert name not in seen, f"{name} is in {seen[name]} and in {target}"
            seen[name] = target


def test_no_avx_outside_its_units() -> None:
    for path in objects()["baseline"] + objects()["module"]:
        assert not functions_with_avx(path), path
    if objects()["avx2"]:  # the search does find it where it belongs
        assert any(functions_with_avx(path) for path in objects()["avx2"])


def test_no_avx_outside_its_namespaces_in_the_module() -> None:
    """The same in the linked module, with whatever the linker added to it."""
    path = Path(str(_native.__file__))
    if not tool("nm", path).strip():
        if "TBPTT_FAST_OBJECTS" in os.environ:
            return  # stripped, as it is shipped: its objects tell
        pytest.skip("the module is stripped; the preset dev keeps the symbols")
    foreign = functions_with_avx(path)
    assert not {name for name in foreign if "4avx2" not in name and "6avx512" not in name}
