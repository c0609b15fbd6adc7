"""The lowest supported versions of the dependencies, as constraints for pip.

They are read from pyproject.toml, the only file that contains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Extras for people who work on the library or run its larger examples, of which only the newest
#: versions are supported.
FOR_DEVELOPERS = frozenset({"bench", "docs", "fields", "test", "dev"})


def runtime_extras(project: Mapping[str, Any]) -> list[str]:
    """Return the extras that users install, in order of name."""
    return sorted(set(project.get("optional-dependencies", {})) - FOR_DEVELOPERS)


def lowest_versions(project: Mapping[str, Any]) -> dict[str, str]:
    """Return the lowest version of each dependency and of the users' extras, by name.

    Args:
        project: The table `[project]` of pyproject.toml.

    Raises:
        ValueError: If a requirement is not of the form `name>=version`, or two disagree.
    """
    lowest: dict[str, str] = {}
    for requirement in requirements(project):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise ValueError(f"A requirement must be name>=version, got {requirement!r}.")
        name, version = match.groups()
        if lowest.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds: {lowest[name]} and {version}.")
    return lowest


def requirements(project: Mapping[str, Any]) -> Iterator[str]:
    """Yield the requirements of the package and of the users' extras."""
    yield from project["dependencies"]
    for extra in runtime_extras(project):
        yield from project["optional-dependencies"][extra]
