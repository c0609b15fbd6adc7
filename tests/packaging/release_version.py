"""Comparing the version with the changelog.

Only `finetunelib/__init__.py` contains the version. It is that of the changelog's latest release,
or of the one being prepared. With a tag, the release must have a dated heading, and [Unreleased]
must be empty.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Heading:
    """A second-level heading of the changelog, and whether there are entries below it."""

    name: str
    date: str | None
    has_entries: bool


def read_version(root: Path) -> str:
    """Return the version that the package's `__init__.py` states."""
    text = (root / "src" / "finetunelib" / "__init__.py").read_text(encoding="utf-8")
    found = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(f"`__version__` must be assigned once, got {len(found)} assignments.")
    return str(found[0])


def headings(changelog: str) -> list[Heading]:
    """Return the changelog's sections, from the top."""
    parts = re.split(r"^## \[([^\]]+)\](?: - (\S+))?$", changelog, flags=re.MULTILINE)[1:]
    sections = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [
        Heading(name, date, bool(re.search(r"^- ", body, re.MULTILINE)))
        for name, date, body in sections
    ]


def problems(version: str, changelog: str, tag: str | None = None) -> list[str]:
    """Return what is wrong with a version, given the changelog and the tag, if any."""
    if not NUMBER.fullmatch(version):
        return [f"`__version__` must be three numbers such as 1.2.3, got {version!r}."]
    sections = headings(changelog)
    releases = [section for section in sections if section.name != "Unreleased"]
    found = [
        f"The heading [{release.name}] needs a version and a date: ## [1.2.3] - 2026-01-31"
        for release in releases
        if not NUMBER.fullmatch(release.name)
        or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", release.date or "")
    ]
    if found:
        return found
    numbers = [as_numbers(release.name) for release in releases]
    if numbers != sorted(set(numbers), reverse=True):
        found.append("The changelog must list each release once, newest first.")
    unreleased = any(section.name == "Unreleased" and section.has_entries for section in sections)
    newest = releases[0].name if releases else "0.0.0"
    if as_numbers(version) < as_numbers(newest):
        found.append(f"`__version__` is {version}, but the changelog is already at {newest}.")
    if version == newest and unreleased:
        found.append(f"{version} is released, but [Unreleased] has entries: raise `__version__`.")
    if tag is not None:
        found.extend(problems_of_tag(version, newest, tag, unreleased=unreleased))
    return found


def problems_of_tag(version: str, newest: str, tag: str, *, unreleased: bool) -> list[str]:
    """Return what is wrong with a tag as the name of this version."""
    found = []
    if tag != f"v{version}":
        found.append(f"The tag must be v{version}, got {tag!r}.")
    if version != newest:
        found.append(f"The changelog's topmost release must be {version}.")
    elif unreleased:
        found.append("[Unreleased] must be empty at a release.")
    return found


def problems_of_tree(root: Path, tag: str | None = None) -> list[str]:
    """Return what is wrong in the tree at `root`, including a second version."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    if "version" in project or "version" not in project.get("dynamic", []):
        found.append("pyproject.toml must not state the version, but list it under `dynamic`.")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    return found + problems(read_version(root), changelog, tag)


def as_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparison."""
    return tuple(map(int, version.split(".")))
