"""Atomic writing of files and folders, and checks of paths."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib.errors import (
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
)

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

#: The errors of a full disk, or of a quota or limit that has the same effect.
_FULL = {errno.ENOSPC, errno.EDQUOT}


def as_path(path: StrPath) -> Path:
    """Return a path that a user passed, with `~` expanded to the home folder.

    Raises:
        InvalidTypeError: If it is neither a string nor an `os.PathLike` of one.
        InvalidArgumentError: If it starts with `~` and there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except TypeError as error:
        raise InvalidTypeError(
            f"A path must be a string or an os.PathLike, got {path!r} ({type(path).__name__})."
        ) from error
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"`{path}` starts with `~`, but there is no such home folder. Pass another path, or "
            f"`./{path}` for a folder of this name."
        ) from error


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at a path, which may be invalid."""
    return _true(path.is_dir)


def check_readable(path: StrPath, *, purpose: str) -> Path:
    """Return `path` as a `Path`, if there is a file to read.

    Args:
        path: The path that a user passed.
        purpose: A noun for the file in the message, such as `"weights file"`.

    Raises:
        FileMissingError: If there is no file at `path`, or it is a folder.
    """
    file = as_path(path)
    if is_folder(file):
        raise FileMissingError(f"The {purpose} `{file}` is a folder. Pass the path of a file.")
    if not _true(file.is_file):
        raise FileMissingError(
            f"There is no {purpose} at `{file}` (in the folder `{file.absolute().parent}`). "
            "Check the path and the working directory."
        )
    return file


def check_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, if a file can be created there.

    Missing parent folders are allowed. They are created when the file is written.

    Raises:
        PathNotWritableError: If `path` is a folder, or its nearest existing parent is read-only or
            a file.
    """
    file = as_path(path)
    if _is_folder_or_invalid(file):
        raise PathNotWritableError(
            f"`{file}` is a folder. Pass the path of a file, such as `{file / 'model'}`."
        )
    folder = file.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise PathNotWritableError(
            f"Cannot write to `{file}`, because `{folder}` is a file and not a folder. "
            "Pass another path."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PathNotWritableError(
            f"Cannot write to `{file}`, because the folder `{folder}` is read-only for this user. "
            "Pass another path, or change the permissions of the folder."
        )
    return file


def check_folder_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, or raise if no folder of files can be written there.

    The folder may exist, or be created later.

    Raises:
        PathNotWritableError: If `path` is a file, or the nearest existing folder is read-only.
    """
    folder = as_path(path)
    check_writable(folder / "file")
    return folder


def _is_folder_or_invalid(file: Path) -> bool:
    """Return whether there is a folder at a path.

    Raises:
        PathNotWritableError: If no file can have this path.
    """
    try:
        return stat.S_ISDIR(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    # The name is too long, contains a NUL or cannot be encoded, or links form a loop.
    except (OSError, ValueError) as error:
        raise PathNotWritableError(
            f"`{file}` cannot be written: {getattr(error, 'strerror', None) or error}. "
            "Pass another path."
        ) from error


def _behind_links(path: Path) -> Path:
    """Return the path that a symbolic link leads to, or the path itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    The content is flushed to disk before the file is renamed: after a crash there is either the
    previous file or the complete new one. If the block raises, the temporary file is removed and
    the previous file is unchanged. If `path` is a symbolic link, the file that it leads to is
    written, and the link is kept.

    Raises:
        PathNotWritableError: If the file cannot be written or renamed (disk full, permissions).
    """
    target = check_writable(_behind_links(check_writable(path)))
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
    renamed: after a crash there is either a complete folder at `path` or none. The previous folder
    is renamed just before, and then its files of these names are deleted. If a crash happens in
    between, `previous_folder` finds it. If the block raises, the temporary folder is removed and
    the previous one is unchanged.

    Raises:
        PathNotWritableError: If the folder cannot be written or renamed (disk full, permissions).
    """
    names = tuple(names)
    target = _behind_links(check_folder_writable(path))
    check_writable(target / names[0])
    foreign = sorted({entry.name for entry in target.glob("*")} - set(names))
    if foreign:
        raise PathNotWritableError(
            f"`{target}` contains {', '.join(foreign[:3])}, which would be lost. Pass another path."
        )
    temporary = _hidden_path(target, _UNFINISHED)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
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
        _delete(temporary, names)


def previous_folder(path: Path) -> Path | None:
    """Return the folder that was at a path before a crash between two renames, if any."""
    found = [] if _true(path.exists) else _previous_folders(path)
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
    """Clean up temporary folders that a killed process left in a folder."""
    names = tuple(names)
    for previous in parent.glob(f".*{_PREVIOUS}"):
        target = parent / previous.name[1:].rpartition("-")[0]
        if previous_folder(target) == previous:
            with contextlib.suppress(OSError):
                previous.rename(target)
        else:
            _delete(previous, names)
    for leftover in parent.glob(f".*{_UNFINISHED}"):
        _delete(leftover, names)


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


def read_at_most(file: Path, largest: int) -> bytes:
    """Return the content of a file whose size is limited.

    Raises:
        ValueError: If it has more than `largest` bytes.
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        content = stream.read(min(largest, file.stat().st_size) + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return content


def ordinary_file(file: Path) -> None:
    """Give a file the permissions of a new file, if its writer made it private."""
    file.chmod(0o666 & ~_umask())


def not_written(target: Path, error: OSError) -> PathNotWritableError:
    """Return the error for a file that could not be written."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        reason = f"the disk is full ({reason}). Free some space, or pass another path"
    return PathNotWritableError(
        f"`{target}` could not be written: {reason}. The previous file, if any, is unchanged."
    )


def cause_of_failed_write(file: Path, error: Exception) -> OSError:
    """Return why a writer that does not say so has failed, by writing to the same folder.

    Args:
        file: The file that was not written.
        error: What the writer raised.
    """
    probe = file.with_name(f".{secrets.token_hex(4)}.probe")
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as cause:
        return cause
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return OSError(str(error))


def flush(file: Path) -> None:
    """Flush the content of a file to disk."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the system supports it."""
    # The files are already flushed. Windows cannot open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _true(condition: Callable[[], bool]) -> bool:
    """Return a condition about a path, or `False` if the path is invalid."""
    try:
        return condition()
    except (OSError, ValueError):
        return False  # The name is too long, or contains a NUL.


def _umask() -> int:
    # mkstemp creates files that only their owner can read.
    mask = os.umask(0)
    os.umask(mask)
    return mask
