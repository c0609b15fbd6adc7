"""The contents of an sdist."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from check_sdist import files_of, problems_of_contents, problems_of_metadata


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """Return the path of an sdist of three files."""
    path = tmp_path / "thing-1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("PKG-INFO", "src/thing.py", "src/thing/PKG-notes"):
            member = tarfile.TarInfo(f"thing-1.0.0/{name}")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return path


def wheel(folder: Path, metadata: bytes) -> Path:
    """Write a wheel with some metadata and return its path."""
    path = folder / "thing-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing-1.0.0.dist-info/METADATA", metadata)
    return path


def test_files_are_named_without_the_folder_of_the_sdist(sdist: Path) -> None:
    """The names are those that git lists."""
    assert files_of(sdist) == {"PKG-INFO", "src/thing.py", "src/thing/PKG-notes"}


def test_files_that_are_missing_or_foreign_are_named() -> None:
    """Missing and unexpected files are found; PKG-INFO is expected."""
    found = problems_of_contents({"a", "secret", "PKG-INFO"}, {"a", "b"})
    assert found == ["missing: b", "foreign: secret"]
    assert problems_of_contents({"a", "PKG-INFO"}, {"a"}) == []


def test_wheel_with_other_metadata_is_found(sdist: Path, tmp_path: Path) -> None:
    """The dependencies of both files are the same, byte for byte."""
    assert problems_of_metadata(sdist, wheel(tmp_path, b"abc")) == []
    found = problems_of_metadata(sdist, wheel(tmp_path, b"abd"))
    assert found == ["thing-1.0.0-py3-none-any.whl states other metadata than thing-1.0.0.tar.gz"]
