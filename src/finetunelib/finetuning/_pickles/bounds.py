"""Bounds what `torch.load(weights_only=True)` would do with a file, before it is called.

A file may take its own size in memory, for the tensors, plus 64 MiB and 16 times its size for
everything else; most files take a small part of that.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetunelib.finetuning._pickles.archives import entries_of, is_archive
from finetunelib.finetuning._pickles.calls import storage_item_size
from finetunelib.finetuning._pickles.scan import LONGEST, Scanner
from finetunelib.finetuning._pickles.values import Container, Global, StorageRef

#: The memory that the content of a file may take besides its storages: this many bytes, and this
#: many times the file's size.
_BASE, _FACTOR = 64 * 2**20, 16

#: The first bytes of a file that torch.save wrote before it wrote archives.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_PROTOCOL_VERSION = 1001


def check_bounded(file: Path) -> None:
    """Check that reading a file of torch.save takes a bounded amount of memory and time.

    Raises:
        UnsafePickleError: If it refers to a class or function that weights do not need.
        ValueError: If it is damaged, or claims more than it contains.
        zipfile.BadZipFile: If its archive is damaged.
        OSError: If it cannot be read.
    """
    if is_archive(file):
        _check_archive(file)
    else:
        _check_legacy(file)


def _check_archive(file: Path) -> None:
    entries = entries_of(file)
    content = entries.get("data.pkl")
    if content is None:
        raise ValueError("its archive contains no data.pkl")
    if content.file_size > LONGEST:
        raise ValueError(f"its data.pkl has {content.file_size:,} bytes")
    with zipfile.ZipFile(file) as archive:
        data = archive.read(content)

    def size_of(key: object) -> int:
        entry = entries.get(f"data/{key}".lower())
        if entry is None:
            raise ValueError(f"a tensor refers to the storage {key!r}, which is missing")
        return entry.file_size

    storages = _Storages(size_of)
    Scanner(data, _budget(file), storages.get).scan()


def _check_legacy(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(LONGEST)
    if _is_tar(head):
        raise ValueError("it is a tar archive of the first versions of torch")
    if not head.startswith(_LEGACY):
        # Follow it all the same: the message then names a class or function in it.
        Scanner(head, _budget(file), _no_storage).scan()
        raise ValueError("it is neither an archive nor a legacy file of torch.save")
    storages = _Storages(lambda _: size)
    scanner = Scanner(head, _budget(file), storages.get)
    scanner.scan()
    if scanner.scan() != _PROTOCOL_VERSION:
        raise ValueError("its version is unknown")
    scanner.scan()  # The sizes of numbers on the machine that wrote it.
    scanner.scan()  # The content.
    keys = scanner.scan()
    if not (isinstance(keys, Container) and keys.kind is list):
        raise ValueError("it contains no list of storages")
    # The number of elements comes before the bytes of each storage.
    if storages.size + 8 * len(keys.items) > size - scanner.position:
        raise ValueError(
            f"its tensors claim {storages.size:,} bytes, more than the {size:,} of the file"
        )


class _Storages:
    """The storages that a pickle refers to.

    Args:
        size_of: Returns the number of bytes in the file for a storage's key.
    """

    def __init__(self, size_of: Callable[[object], int]) -> None:
        self._size_of = size_of
        self._found: dict[object, StorageRef] = {}
        self.size = 0

    def get(self, key: list[Any]) -> StorageRef:
        """Return the storage of a persistent id.

        Raises:
            ValueError: If it claims more elements than the file has bytes for.
        """
        tag, kind, name, location, count, *view = key
        item_size = storage_item_size(kind.name) if isinstance(kind, Global) else None
        valid = (
            tag == "storage"
            and item_size is not None
            and isinstance(name, str | int)
            and isinstance(location, str)
            and type(count) is int
            and view in ([], [None])
        )
        if not valid or item_size is None or count < 0:
            raise ValueError("it refers to an unknown storage")
        # torch creates a storage when it meets its key for the first time.
        if name not in self._found:
            size = count * item_size
            if size > self._size_of(name):
                raise ValueError(f"a storage claims {size:,} bytes, which it does not have")
            self._found[name] = StorageRef(size, item_size)
            self.size += size
        return self._found[name]


def _no_storage(_: list[Any]) -> StorageRef:
    raise ValueError("it refers to a storage outside of it")


def _budget(file: Path) -> int:
    return _BASE + _FACTOR * file.stat().st_size


def _is_tar(head: bytes) -> bool:
    """Return whether torch would read a file as a tar archive, whose own sizes are unchecked."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
