"""Reads the directory of the archives of torch.save, after checking its size."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

#: The largest number of files in an archive, and of bytes of their names and attributes.
_MOST_ENTRIES, _LARGEST_DIRECTORY = 200_000, 64 * 2**20

_END, _END64, _LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"


def is_archive(file: Path) -> bool:
    """Return whether `torch.load` reads a file as an archive, which it decides by its start."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\3\4"


def entries_of(file: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files in an archive by their names in lower case, as torch finds them.

    Raises:
        ValueError: If the archive is not one that torch.save wrote: it is compressed, larger
            unpacked than the file, ambiguous, or has too many entries.
        zipfile.BadZipFile: If it is damaged.
    """
    size = file.stat().st_size
    check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = {entry.filename.lower(): entry for entry in entries}
    folders = {name.partition("/")[0] for name in names}
    if len(names) != len(entries) or len(folders) != 1:
        raise ValueError("its entries are ambiguous")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed")
    if any(entry.file_size != entry.compress_size for entry in entries):
        raise ValueError("its entries have contradictory sizes")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise ValueError(f"its entries claim {unpacked:,} bytes, but the file has {size:,}")
    (folder,) = folders
    return {name.removeprefix(f"{folder}/"): entry for name, entry in names.items()}


def check_directory(file: Path) -> None:
    """Check that the directory is at the end of a file, where every reader finds the same one.

    Raises:
        ValueError: If it has too many entries.
        zipfile.BadZipFile: If it is somewhere else, or damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(max(size - 98, 0))
        tail = stream.read()
    if len(tail) < 22 or tail[-22:-18] != _END or tail[-2:] != b"\0\0":
        raise zipfile.BadZipFile("its directory is missing")
    count, length, start = struct.unpack("<HII", tail[-12:-2])
    end = size - 22
    if tail[-42:-38] == _LOCATOR64:
        if tail[-98:-94] != _END64:
            raise zipfile.BadZipFile("its directory is damaged")
        count, length, start = struct.unpack("<QQQ", tail[-66:-42])
        end = size - 98
    if start + length != end:
        raise zipfile.BadZipFile("its directory is damaged")
    if count > _MOST_ENTRIES or length > _LARGEST_DIRECTORY:
        raise ValueError(f"it has {count:,} entries")
