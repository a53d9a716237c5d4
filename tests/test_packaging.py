"""What the wheels are built for, and that nothing but a tag can publish them."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

import pytest

from .test_package import document

tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later

# Free-threaded Python is "t".
VERSIONS = ("310", "311", "312", "313", "314", "314t")
PROMISED = {
    f"cp{version}-{platform}"
    for version in VERSIONS
    for platform in (
        *(f"{libc}linux_{arch}" for libc in ("many", "musl") for arch in ("x86_64", "aarch64")),
        *(f"macosx_{arch}" for arch in ("x86_64", "arm64")),
    )
}
# What else cibuildwheel would build, and is not promised.
OTHERS = {"cp39-manylinux_x86_64", "cp313t-manylinux_x86_64", "pp311-macosx_arm64"}


def project() -> Any:
    return tomllib.loads(document("pyproject.toml"))


def workflow(name: str) -> str:
    return document(f".github/workflows/{name}.yml")


def jobs(text: str) -> dict[str, str]:
    """The text of each job: the form of these files is ours, and needs no parser."""
    _, names = text.split("\njobs:\n")
    parts = re.split(r"^  (\w+):\n", names, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_promised_wheel_is_built() -> None:
    patterns = project()["tool"]["cibuildwheel"]["build"]
    built = {name for name in PROMISED | OTHERS if any(fnmatch(name, p) for p in patterns)}
    assert built == PROMISED
    assert project()["tool"]["cibuildwheel"]["archs"] == ["auto64"]  # of the four machines:
    runners = re.search(r"runner: \[(.*)\]", workflow("wheels"))
    assert runners
    assert runners[1].split(", ") == [
        *("ubuntu-24.04", "ubuntu-24.04-arm"),
        *("macos-15-intel", "macos-15"),
    ]


def test_wheels_are_tested() -> None:
    section, extras = project()["tool"]["cibuildwheel"], project()["project"]
    assert section["test-command"] == "python -m pytest {project}/tests"
    assert set(section["test-requires"]) < set(extras["optional-dependencies"]["test"])
    assert not any("skip" in key for key in section)
    assert section["config-settings"] == {
        "cmake.define.TBPTT_FAST_CUDA": "OFF",
        "cmake.define.TBPTT_FAST_JAX": "ON",
    }


def test_only_a_tag_publishes_and_only_that_job_may() -> None:
    for name in ("ci", "wheels"):
        text = workflow(name)
        assert "\npermissions: {}\n" in text
        assert "secrets." not in text
        # what runs in a workflow is what was looked at, not what a name stands for by then
        uses = re.findall(r"uses: (.*)", text)
        assert uses
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", one) for one in uses)
    found = jobs(workflow("wheels"))
    assert [name for name, text in found.items() if "id-token" in text] == ["publish"]
    for name, text in found.items():
        assert ("contents: read" in text) == (name != "publish")
    publish = found["publish"]
    assert "needs: [wheels, sdist]\n" in publish
    assert "if: github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v')\n" in publish
    assert "pypa/gh-action-pypi-publish@" in publish
