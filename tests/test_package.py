"""The package itself: stubs, docstrings, doctests, documents, and what importing it costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import tbptt_fast
from tbptt_fast import _native

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = files("tbptt_fast")
MODULES = ["tbptt_fast"] + [
    module.name
    for module in pkgutil.walk_packages(tbptt_fast.__path__, "tbptt_fast.")
    if module.name not in ("tbptt_fast._native", "tbptt_fast._cuda", "tbptt_fast.__main__")
    # one for each backend of Keras, of which a process has one
    and not module.name.startswith("tbptt_fast.keras._backend_")
]

API = [name for name in MODULES if not re.search(r"\._|\.cli", name)]


def python(code: str, *options: str) -> str:
    """What a fresh interpreter prints; the package is the one under test."""
    command = [sys.executable, *options, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", tbptt_fast.__version__)
    assert tbptt_fast.build_info()["version"] == tbptt_fast.__version__


def test_docstrings_are_not_needed() -> None:
    """-OO strips them, and other texts are made of some."""
    frameworks = ("tbptt_fast.jax", "tbptt_fast.keras", "tbptt_fast.torch")
    names = [name for name in API if not name.startswith(frameworks)]
    assert python(f"import {', '.join(names)}", "-OO") == ""


def test_sources_are_told_whatever_the_indentation() -> None:
    """Python 3.13 strips it from docstrings."""
    from tbptt_fast.cuda._docs import source_of

    def indented() -> None: ...
    def stripped() -> None: ...

    indented.__doc__ = "What.\n\n    Source: a paper,\n    eq. 1.\n\n    >>> 1\n    "
    stripped.__doc__ = inspect.cleandoc(indented.__doc__)
    assert source_of(indented) == source_of(stripped) == "    Source: a paper,\n    eq. 1."
    assert source_of(test_version) == ""


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_native.pyi").is_file()


def arguments(function: Any) -> int:
    """The number of arguments of a native function, from the signature that pybind11 writes."""
    signature = function.__doc__.splitlines()[0]
    return len(re.findall(r"\barg\d+: ", signature))


def test_stub_and_module_agree() -> None:
    stub = ast.parse((PACKAGE / "_native.pyi").read_text(encoding="utf-8"))
    functions = {node.name: node.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node.body for node in stub.body if isinstance(node, ast.ClassDef)}
    public = {name for name in vars(_native) if not name.startswith("_")}
    if "jax_targets" not in public:  # an option of the build
        functions = {name: args for name, args in functions.items() if name[:4] != "jax_"}
    assert functions.keys() | classes.keys() == public
    for name, given in functions.items():
        assert len(given.args) == arguments(getattr(_native, name)), name
    for name, body in classes.items():
        members = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        actual = vars(getattr(_native, name))
        assert members == {member for member in actual if not member.startswith("_")}, name


def public_members(owner: Any) -> Iterator[tuple[str, Any]]:
    """Functions, classes and their methods, as far as they were written for this package."""
    for name in getattr(owner, "__all__", vars(owner)):
        value = getattr(owner, name)
        if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        if not (value.__module__ or "").startswith("tbptt_fast"):
            continue
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{method}", found) for method, found in public_members(value))


def documented(value: Any) -> bool:
    """It says more than the signature, which pybind11 and NamedTuple write by themselves."""
    text = inspect.getdoc(value) or ""
    return bool(re.sub(rf"^{value.__name__}\(.*", "", text).strip())


def imported(name: str) -> Any:
    """The module; what needs a framework that is not installed skips."""
    for framework in ("jax", "jax.flax", "keras", "torch"):
        if f"{name}.".startswith(f"tbptt_fast.{framework}."):
            pytest.importorskip(framework.rpartition(".")[2])
    if (
        name.startswith("tbptt_fast.jax")
        and not importlib.import_module("tbptt_fast.jax").available()
    ):
        pytest.skip("built without the functions for JAX")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", API)
def test_public_names_have_docstrings(name: str) -> None:
    module = imported(name)
    assert module.__doc__
    assert not [member for member, value in public_members(module) if not documented(value)]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(imported(name)).failed == 0


def test_import_is_light() -> None:
    """No framework, no plots, no progress bars: NumPy and what it imports, and little else."""
    heavy = ("flax", "jax", "keras", "matplotlib", "tensorflow", "torch", "tqdm")
    code = "import sys, tbptt_fast; print([name for name in {} if name in sys.modules])"
    assert python(code.format(heavy)).strip() == "[]"


def test_info() -> None:
    """`python -m tbptt_fast info`: one line each for what decides speed and what is missing."""
    command = [sys.executable, "-m", "tbptt_fast", "info"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shown = dict(re.split(r" {2,}|(?<=\]) ", line, maxsplit=1) for line in lines)
    assert shown["tbptt_fast"] == tbptt_fast.__version__
    assert shown["compiler"] == tbptt_fast.build_info()["compiler"]
    for isa in tbptt_fast.available_isas():
        assert isa in shown["ISA"]
    assert int(shown["threads"]) >= 1
    assert re.match("yes: |no: ", shown["CUDA"])
    assert re.search(r"torch (not )?found", shown["adapters"])


def document(name: str) -> str:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the tests")
    return path.read_text(encoding="utf-8")


def test_readme_commands_and_example() -> None:
    readme = document("README.md")
    assert "pip install '.[cli]' && python -m tbptt_fast train" in readme
    assert "pip install '.[test]' && python -m pytest" in readme
    examples = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert examples
    for example in examples:
        for framework in ("jax", "keras", "torch"):
            if f"import {framework}" in example:
                imported(f"tbptt_fast.{framework}")
        assert python(example)


def expand(path: str) -> Iterator[str]:
    """`a.{h,cpp}` as the shell reads it."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if not braces:
        yield path
        return
    for choice in braces[1].split(","):
        yield from expand(path[: braces.start()] + choice + path[braces.end() :])


def test_paths_in_contributing_exist() -> None:
    found = re.findall(
        r"(?<![\w/])(?:csrc|python|tests|bench|examples)/[\w./*{},-]*", document("CONTRIBUTING.md")
    )
    paths = {path for one in found for path in expand(one.rstrip(".,/"))}
    assert len(paths) > 20
    assert not {path for path in paths if not list(ROOT.glob(path))}


def test_presets_are_the_documented_ones() -> None:
    presets = json.loads(document("CMakePresets.json"))["configurePresets"]
    names = {preset["name"] for preset in presets}
    assert names == {"default", "dev", "cuda", "asan", "tsan", "fuzz"}
    for preset in presets:
        assert f"--preset {preset['name']}" in document("CONTRIBUTING.md")


def test_wheel_is_small() -> None:
    """Below 3 MB: what is installed, compressed as in a wheel; without the kernels for GPUs."""
    root = Path(str(PACKAGE))
    shipped = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    shipped = [path for path in shipped if not path.name.startswith("_cuda.")]
    contents = [path.read_bytes() for path in shipped]
    if any(b".symtab" in content for content in contents):
        pytest.skip("a development build keeps its symbols")
    assert sum(len(zlib.compress(content)) for content in contents) < 3e6
