"""The supported Python versions, and their paths on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CLASSIFIER = "Programming Language :: Python :: "


def supported_pythons(project: Mapping[str, Any]) -> list[str]:
    """Return the supported versions, such as "3.11", oldest first, from `[project]`.

    Raises:
        ValueError: If `requires-python` does not begin at the oldest one.
    """
    listed = (item.removeprefix(CLASSIFIER) for item in project["classifiers"])
    versions = [version for version in listed if re.fullmatch(r"3\.\d+", version)]
    versions.sort(key=lambda version: int(version.partition(".")[2]))
    if not versions or project["requires-python"] != f">={versions[0]}":
        raise ValueError(
            f"`requires-python` is {project['requires-python']!r}, "
            f"but the classifiers list {versions}."
        )
    return versions


def find_python(version: str) -> str | None:
    """Return the path of a Python of this version that can create environments, or `None`."""
    return next((path for path in candidates(version) if is_usable(path, version)), None)


def candidates(version: str) -> Iterator[str]:
    """Yield paths of a Python of this version: on PATH, then in pyenv, the newest first."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = list((pyenv / "versions").glob(f"{version}.*"))
    folders.sort(key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)], reverse=True)
    yield from (str(folder / "bin" / "python") for folder in folders)


def is_usable(path: str, version: str) -> bool:
    """Return whether the program at `path` is this Python and has what an environment needs.

    pyenv leaves programs on PATH that only say that the version is not active, and Debian's
    Python has no ensurepip without another package.
    """
    code = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
    try:
        answer = subprocess.run(
            [path, "-c", code], check=False, capture_output=True, text=True, timeout=60
        )
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version
