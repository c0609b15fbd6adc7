"""Imports of optional packages."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from finetunelib._optional import require
from finetunelib.errors import MissingDependencyError


def test_require_returns_the_module() -> None:
    """A package that is installed is imported."""
    assert require("math", extra="plots") is math


def test_require_imports_a_submodule_by_its_dotted_name() -> None:
    """The result is the named module and not its package."""
    assert require("importlib.metadata", extra="plots").__name__ == "importlib.metadata"


@pytest.mark.parametrize("package", ["no_such_package_of_ours", "no_such_package_of_ours.part"])
def test_require_names_the_missing_package_and_the_command_that_installs_it(package: str) -> None:
    """The message contains the name and the pip command."""
    with pytest.raises(MissingDependencyError) as caught:
        require(package, extra="plots")
    assert f"`{package}`" in str(caught.value)
    assert 'pip install "finetunelib[plots]"' in str(caught.value)


def test_require_sets_the_name_that_import_errors_have() -> None:
    """`error.name` is the package, as for every ImportError."""
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package_of_ours", extra="plots")
    assert caught.value.name == "no_such_package_of_ours"


def test_require_passes_on_a_missing_dependency_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed package itself is not reported as missing."""
    (tmp_path / "half_installed_of_ours.py").write_text("import no_such_package_of_ours\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        require("half_installed_of_ours", extra="plots")
    assert not isinstance(caught.value, MissingDependencyError)
    assert caught.value.name == "no_such_package_of_ours"
