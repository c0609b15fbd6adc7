"""The supported Python versions, and finding them."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from release_pythons import CLASSIFIER, find_python, supported_pythons
from release_version import ROOT

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose `bin` is the only folder on PATH and whose `pyenv` is pyenv's root."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def script(path: Path, text: str) -> Path:
    """Write a program and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_supported_pythons_are_the_classifiers_oldest_first() -> None:
    """Other classifiers are ignored, and 3.9 comes before 3.10."""
    names = ["3 :: Only", "3.10", "3.9", "3"]
    project = {"classifiers": [CLASSIFIER + name for name in names], "requires-python": ">=3.9"}
    assert supported_pythons(project) == ["3.9", "3.10"]


def test_requirement_and_classifiers_that_disagree_are_refused() -> None:
    """The classifiers list the versions that pip allows."""
    project = {"classifiers": [CLASSIFIER + "3.12"], "requires-python": ">=3.11"}
    with pytest.raises(ValueError, match=r"'>=3\.11', but .*\['3\.12'\]"):
        supported_pythons(project)


def test_this_project_supports_the_python_that_runs_its_tests() -> None:
    """The table in pyproject.toml is valid."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert HERE in supported_pythons(project)


def test_python_on_path_comes_first(machine: Path) -> None:
    """The program that the shell would run is used."""
    mine = script(machine / "bin" / f"python{HERE}", f'exec "{sys.executable}" "$@"')
    script(machine / "pyenv/versions" / f"{HERE}.1" / "bin/python", f'exec "{sys.executable}" "$@"')
    assert find_python(HERE) == str(mine)


def test_shim_that_does_not_run_leads_to_the_newest_of_pyenv(machine: Path) -> None:
    """The program on PATH fails if no version is chosen; the versions are in pyenv's folders."""
    script(machine / "bin" / f"python{HERE}", "exit 127")
    for patch in ("9", "10"):
        python = machine / "pyenv/versions" / f"{HERE}.{patch}" / "bin/python"
        script(python, f'exec "{sys.executable}" "$@"')
    assert find_python(HERE) == str(machine / "pyenv/versions" / f"{HERE}.10" / "bin/python")


def test_program_of_another_version_is_not_used(machine: Path) -> None:
    """The name of a program is not enough."""
    script(machine / "bin" / "python3.999", f'exec "{sys.executable}" "$@"')
    assert find_python("3.999") is None
