"""Atomic writing of files and folders."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib._files.disk import flush, flush_folder, not_written, ordinary_file
from finetunelib._files.locks import FolderLock, is_locked
from finetunelib._files.paths import (
    as_path,
    behind_links,
    check_folder_writable,
    check_writable,
    is_true,
)
from finetunelib.errors import PathNotWritableError

if TYPE_CHECKING:  # Metadata is read without PyTorch.
    from finetunelib._typing import StrPath

#: The suffix of a folder while it is written or deleted.
_UNFINISHED = ".unfinished"

#: The suffix of a folder while another one replaces it.
_PREVIOUS = ".former"

#: The longest name of a file or folder in bytes, on all common file systems.
_LONGEST_NAME = 255

#: The parts of a file's name that its temporary file keeps, in characters of up to four bytes.
_KEPT_STEM, _KEPT_SUFFIX = 30, 20


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    The content is flushed to disk before the file is renamed: after a crash there is either the
    previous file or the complete new one. If the block raises, the temporary file is removed and
    the previous file is unchanged. If `path` is a symbolic link, its target is written, and
    the link is kept.

    Raises:
        PathNotWritableError: If the file cannot be written or renamed (disk full, permissions).
    """
    target = check_writable(behind_links(check_writable(path)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Readers and the viewer go by the suffix, so the temporary file has the same one.
        suffix = target.suffix if len(target.suffix) <= _KEPT_SUFFIX else ""
        descriptor, name = tempfile.mkstemp(
            prefix=f".{target.stem[:_KEPT_STEM]}-", suffix=f".tmp{suffix}", dir=target.parent
        )
    except OSError as error:
        raise not_written(target, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        try:
            flush(temporary)
            ordinary_file(temporary)
            temporary.replace(target)
            flush_folder(target.parent)
        except OSError as error:
            raise not_written(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: StrPath, *, names: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, and rename it to `path` if the block succeeds.

    The block writes files with the given names. They are flushed to disk before the folder is
    renamed: after a crash there is either a complete folder at `path` or none. The temporary folder
    is locked, because other processes delete unlocked leftovers. The previous folder
    is renamed just before, and then its files of these names are deleted. If a crash happens in
    between, `previous_folder` finds it. If the block raises, the temporary folder is removed and
    the previous one is unchanged.

    Raises:
        PathNotWritableError: If the folder cannot be written or renamed (disk full, permissions).
    """
    names = tuple(names)
    target = behind_links(check_folder_writable(path))
    check_writable(target / names[0])
    foreign = sorted({entry.name for entry in target.glob("*")} - set(names))
    if foreign:
        raise PathNotWritableError(
            f"`{target}` contains {', '.join(foreign[:3])}, which would be lost. Pass another path."
        )
    temporary = _hidden_path(target, _UNFINISHED)
    lock = FolderLock(None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        lock = FolderLock(temporary)
        yield temporary
        for name in names:
            ordinary_file(temporary / name)
            flush(temporary / name)
        flush_folder(temporary)
        _put_in_place(temporary, target, names)
    except PathNotWritableError as error:  # The message names a temporary path.
        message = str(error).replace(str(temporary), str(target))
        raise PathNotWritableError(message) from error
    except OSError as error:
        raise not_written(target, error) from error
    finally:
        lock.release()
        _delete(temporary, names)


def previous_folder(path: Path) -> Path | None:
    """Return the folder that was at a path before a crash between two renames, if any."""
    found = [] if is_true(path.exists) else _previous_folders(path)
    return found[0] if found else None


def remove_folder(folder: Path, *, names: Iterable[str]) -> None:
    """Delete the files with these names in a folder, and the folder if it is then empty.

    The folder is renamed first: after a crash there is no incomplete folder under its name.

    Raises:
        PathNotWritableError: If the folder cannot be renamed.
    """
    names = tuple(names)
    if not folder.is_dir():
        return
    try:
        aside = folder.rename(_hidden_path(folder, _UNFINISHED))
        _delete(aside, names)
        if any(entry.name not in names for entry in aside.glob("*")):
            aside.rename(folder)  # The files of the user keep their path.
    except OSError as error:
        raise PathNotWritableError(
            f"`{folder}` could not be deleted: {error.strerror or error}. Check its permissions."
        ) from error


def sweep_unfinished(parent: Path, *, names: Iterable[str]) -> None:
    """Clean up temporary folders that a killed process left in a folder.

    Those of a living process are left alone.
    """
    names = tuple(names)
    unfinished = list(parent.glob(f".*{_UNFINISHED}"))
    living = {entry for entry in unfinished if is_locked(entry)}
    replaced = {_target_of(entry) for entry in living}
    for previous in parent.glob(f".*{_PREVIOUS}"):
        target = _target_of(previous)
        if target in replaced:
            continue
        if previous_folder(target) == previous:
            with contextlib.suppress(OSError):
                previous.rename(target)
        else:
            _delete(previous, names)
    for leftover in unfinished:
        if leftover not in living:
            _delete(leftover, names)


def _target_of(hidden: Path) -> Path:
    """Return the folder that a hidden one is to become, or was."""
    return hidden.parent / hidden.name[1:].rpartition("-")[0]


def _hidden_path(folder: Path, ending: str) -> Path:
    """Return an unused hidden name next to a folder.

    Raises:
        PathNotWritableError: If the folder's name is too long for that.
    """
    folder = folder.absolute()
    name = f".{folder.name}-{secrets.token_hex(4)}{ending}"
    excess = len(os.fsencode(name)) - _LONGEST_NAME
    if excess > 0:
        longest = len(os.fsencode(folder.name)) - excess
        raise PathNotWritableError(
            f"The name of the folder `{folder}` is too long. It may have {longest} bytes at most."
        )
    return folder.with_name(name)


def _previous_folders(target: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{8}}{re.escape(_PREVIOUS)}")
    found = target.parent.glob(f".*{_PREVIOUS}")
    return sorted(entry for entry in found if pattern.fullmatch(entry.name))


def _put_in_place(temporary: Path, target: Path, names: Iterable[str]) -> None:
    """Rename a folder, and delete the one that had the name before."""
    previous = target.rename(_hidden_path(target, _PREVIOUS)) if target.is_dir() else None
    try:
        temporary.rename(target)
    except BaseException:
        if previous is not None:
            previous.rename(target)
        raise
    flush_folder(target.parent)
    for entry in _previous_folders(target):
        _delete(entry, names)


def _delete(folder: Path, names: Iterable[str]) -> None:
    """Delete the files with these names, and the folder if it is then empty."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_atomically(path: StrPath, content: bytes) -> Path:
    """Write `content` to `path` atomically, and return the path.

    Raises:
        PathNotWritableError: If the file cannot be written.
    """
    with atomic_file(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise not_written(as_path(path), error) from error
    return as_path(path)
