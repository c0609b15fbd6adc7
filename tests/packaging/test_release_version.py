"""Comparing the version with the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest
from release_version import ROOT, problems, problems_of_tree, read_version

RELEASED = "## [Unreleased]\n\n## [1.1.0] - 2026-02-01\n\n- B.\n\n## [1.0.0] - 2026-01-01\n\n- A.\n"
PENDING = RELEASED.replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n")


@pytest.mark.parametrize(
    ("version", "changelog", "tag"),
    [
        ("1.1.0", RELEASED, None),
        ("1.1.0", RELEASED, "v1.1.0"),
        ("1.1.0", RELEASED.replace("## [Unreleased]\n\n", ""), "v1.1.0"),
        ("1.2.0", PENDING, None),
        ("1.10.0", PENDING.replace("1.1.0", "1.9.0"), None),
        ("0.1.0", "## [Unreleased]\n\n- First.\n", None),
    ],
)
def test_version_that_fits_has_no_problems(version: str, changelog: str, tag: str | None) -> None:
    """The version is that of the latest release, or a later one."""
    assert problems(version, changelog, tag) == []


@pytest.mark.parametrize(
    ("version", "changelog", "tag", "named"),
    [
        ("1.0.0", RELEASED, None, "already at 1.1.0"),
        ("1.1.0", PENDING, None, "1.1.0 is released, but [Unreleased] has entries"),
        ("1.2", PENDING, None, "'1.2'"),
        ("1.2.0", PENDING, "v1.2.0", "topmost release must be 1.2.0"),
        ("1.1.0", RELEASED, "1.1.0", "v1.1.0, got '1.1.0'"),
        ("1.1.0", PENDING, "v1.1.0", "[Unreleased] must be empty"),
        (
            "1.1.0",
            RELEASED.replace(" - 2026-02-01", ""),
            None,
            "[1.1.0] needs a version",
        ),
        ("1.1.0", RELEASED.replace("1.0.0", "1.1.0"), None, "each release once, newest first"),
    ],
)
def test_version_that_does_not_fit_is_named(
    version: str, changelog: str, tag: str | None, named: str
) -> None:
    """Each difference between the version, the tag and the changelog is reported."""
    assert named in " ".join(problems(version, changelog, tag))


def test_version_of_this_tree_fits_its_changelog() -> None:
    """The tree is a release, or prepares the next one."""
    assert problems_of_tree(ROOT) == []


def test_second_place_for_the_version_is_a_problem(tmp_path: Path) -> None:
    """The version is in one file only."""
    package = tmp_path / "src" / "finetunelib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.1.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(RELEASED)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    assert ["dynamic" in problem for problem in problems_of_tree(tmp_path)] == [True]


def test_version_is_read_from_one_assignment(tmp_path: Path) -> None:
    """With two assignments it is unclear which one is used."""
    package = tmp_path / "src" / "finetunelib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.1.0"\n')
    assert read_version(tmp_path) == "1.1.0"
    (package / "__init__.py").write_text('__version__ = "1.1.0"\n__version__ = "1.2.0"\n')
    with pytest.raises(SystemExit, match="got 2 assignments"):
        read_version(tmp_path)
