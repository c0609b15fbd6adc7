"""The lowest supported dependencies, as pyproject.toml states them."""

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
    """Core and the users' extras count; the tools of development do not."""
    assert lowest_versions(PROJECT) == {"torch": "2.10", "tqdm": "4.66", "matplotlib": "3.9"}
    assert runtime_extras(PROJECT) == ["plots"]


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch>=2.10,<3", "torch==2.10"])
def test_requirement_that_is_no_floor_is_refused(requirement: str) -> None:
    """A dependency without a floor, or with a cap, is nothing that could be tried."""
    with pytest.raises(ValueError, match=f"'{requirement}'"):
        lowest_versions({"dependencies": [requirement]})


def test_two_floors_of_one_package_are_refused() -> None:
    """An extra cannot support less, or more, than the package does."""
    extras = {"examples": ["tqdm>=4.70"]}
    with pytest.raises(ValueError, match=r"tqdm has two floors: 4\.66 and 4\.70"):
        lowest_versions({**PROJECT, "optional-dependencies": extras})


def test_every_dependency_of_this_project_has_a_floor() -> None:
    """The project's own table can be read."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"torch", "onnx", "netron", "matplotlib"} <= set(lowest_versions(project))
