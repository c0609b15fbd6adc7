"""The lowest supported versions of the dependencies in pyproject.toml."""

from __future__ import annotations

import tomllib

import pytest
from release_floors import lowest_versions, runtime_extras
from release_version import ROOT

PROJECT = {
    "dependencies": ["torch>=2.10", "tqdm>=4.66"],
    "optional-dependencies": {"plots": ["matplotlib>=3.9"], "dev": ["ruff"], "test": ["pytest>=8"]},
}


def test_lowest_versions_are_those_of_users_and_not_of_developers() -> None:
    """The core dependencies and the users' extras count, but not the development tools."""
    assert lowest_versions(PROJECT) == {"torch": "2.10", "tqdm": "4.66", "matplotlib": "3.9"}
    assert runtime_extras(PROJECT) == ["plots"]


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch>=2.10,<3", "torch==2.10"])
def test_requirement_without_a_lower_bound_is_refused(requirement: str) -> None:
    """A requirement must have a lower bound and no upper one."""
    with pytest.raises(ValueError, match=f"'{requirement}'"):
        lowest_versions({"dependencies": [requirement]})


def test_two_lower_bounds_of_one_package_are_refused() -> None:
    """A dependency has the same lower bound in the core and in every extra."""
    extras = {"examples": ["tqdm>=4.70"]}
    with pytest.raises(ValueError, match=r"tqdm has two lower bounds: 4\.66 and 4\.70"):
        lowest_versions({**PROJECT, "optional-dependencies": extras})


def test_every_dependency_of_this_project_has_a_lower_bound() -> None:
    """The table in pyproject.toml is valid."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"torch", "onnx", "netron", "matplotlib"} <= set(lowest_versions(project))
