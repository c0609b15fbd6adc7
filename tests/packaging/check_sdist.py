"""Check that an sdist contains the files that git tracks, and no others: check_sdist.py SDIST.

With the wheel as a second argument, the metadata of both are compared too.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What only the repository needs.
LEFT_OUT = (".ci/", ".github/")


def tracked_files(root: Path) -> set[str]:
    """Return the files that git tracks at `root`, except those that the sdist leaves out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    return {name for name in listed.split("\0") if name and not name.startswith(LEFT_OUT)}


def files_of(sdist: Path) -> set[str]:
    """Return the names of the files in an sdist, relative to its top folder."""
    with tarfile.open(sdist) as archive:
        return {name.name.partition("/")[2] for name in archive.getmembers() if name.isfile()}


def problems_of_contents(files: set[str], tracked: set[str]) -> list[str]:
    """Return the files that are missing from an sdist, and those that do not belong there."""
    found = {"missing": tracked - files, "foreign": files - tracked - {"PKG-INFO"}}
    return [f"{kind}: {', '.join(sorted(names))}" for kind, names in found.items() if names]


def problems_of_metadata(sdist: Path, wheel: Path) -> list[str]:
    """Return whether the metadata of a wheel differs from that of its sdist."""
    with tarfile.open(sdist) as archive:
        name = next(name for name in archive.getnames() if name.count("/") == 1 and "PKG" in name)
        member = archive.extractfile(name)
        ours = member.read() if member else b""
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        name = next(n for n in archive_of_wheel.namelist() if n.endswith(".dist-info/METADATA"))
        theirs = archive_of_wheel.read(name)
    return [] if ours == theirs else [f"{wheel.name} states other metadata than {sdist.name}"]


def main(sdist: str, wheel: str | None = None) -> int:
    """Print what is wrong, and return 0 if nothing is."""
    found = problems_of_contents(files_of(Path(sdist)), tracked_files(ROOT))
    if wheel is not None:
        found += problems_of_metadata(Path(sdist), Path(wheel))
    sys.stderr.writelines(f"{sdist}: {problem}\n" for problem in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
