"""Files and folders written whole or not at all, and the checks that come before any work."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib.errors import FileMissingError, PathNotWritableError

if TYPE_CHECKING:  # Reading what a file tells must not need PyTorch.
    from finetunelib._typing import StrPath

#: What folders are called while they are written, and while they are deleted.
_UNFINISHED = ".unfinished"

#: What a folder is called while another one takes its place.
_FORMER = ".former"


def check_readable(path: StrPath, *, purpose: str) -> Path:
    """Return `path` as a `Path`, or raise when no file can be read there.

    Args:
        path: The path that a user gave.
        purpose: What the file is, for the message, such as `"weights file"`.

    Raises:
        FileMissingError: There is no file at `path`, or it is a folder.
    """
    file = Path(path)
    if _asks(file.is_dir):
        raise FileMissingError(f"The {purpose} `{file}` is a folder. Pass the path of a file.")
    if not _asks(file.is_file):
        raise FileMissingError(
            f"There is no {purpose} at `{file}` (looked in `{file.absolute().parent}`). "
            "Check the path and the working folder."
        )
    return file


def check_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, or raise when no file can be created there.

    Missing parent folders are no obstacle: they are made when the file is written.

    Raises:
        PathNotWritableError: `path` is a folder, or the nearest folder that exists is read-only
            or no folder at all.
    """
    file = Path(path)
    try:
        is_folder = file.is_dir()
    except (OSError, ValueError) as error:  # A name that is too long, or holds a NUL.
        raise PathNotWritableError(f"`{file}` cannot be a file's path: {error}.") from error
    if is_folder:
        raise PathNotWritableError(
            f"`{file}` is a folder. Pass the path of a file, such as `{file / 'model'}`."
        )
    folder = file.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise PathNotWritableError(
            f"Nothing can be written to `{file}`, because `{folder}` is a file and not a folder. "
            "Pass another path."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PathNotWritableError(
            f"Nothing can be written to `{file}`, because the folder `{folder}` is read-only "
            "for this user. Pass another path or change the folder's permissions."
        )
    return file


def check_folder_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, or raise if no folder of files can be written there.

    The folder may exist, or be created later.

    Raises:
        PathNotWritableError: If `path` is a file, or the nearest existing folder is read-only.
    """
    folder = Path(path)
    check_writable(folder / "file")
    return folder


@contextlib.contextmanager
def whole_file(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it into place when the block succeeds.

    The bytes reach the disk before the name does (fsync of the file, rename, fsync of the
    folder), so that a crash leaves the former file or the new one and nothing between. When the
    block raises, the temporary file is removed and the former file stays as it was.

    Raises:
        PathNotWritableError: The file cannot be written or renamed (disk full, permissions).
    """
    target = check_writable(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The viewer and the readers go by the ending, so the temporary file keeps it.
        descriptor, name = tempfile.mkstemp(
            prefix=f".{target.stem}-", suffix=f".tmp{target.suffix}", dir=target.parent
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
def whole_folder(path: StrPath, *, names: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and rename it into place when the block succeeds.

    The block writes files of the given names. Their bytes reach the disk first, then the folder's
    entries, then its name, so that a crash leaves a whole folder or none under that name. A former
    folder makes way only at that moment, and `names` are all that is deleted of it; where a crash
    falls between its leaving and the other's coming, `former_folder` finds it. When the block
    raises, the temporary folder is removed and the former one stays.

    Raises:
        PathNotWritableError: The folder cannot be written or renamed (disk full, permissions).
    """
    target = Path(path)
    names = tuple(names)
    check_writable(target / names[0])
    foreign = sorted({entry.name for entry in target.glob("*")} - set(names))
    if foreign:
        raise PathNotWritableError(
            f"`{target}` holds {', '.join(foreign[:3])}, which would be lost. Pass another path."
        )
    temporary = _beside(target, _UNFINISHED)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for name in names:
            ordinary_file(temporary / name)
            flush(temporary / name)
        flush_folder(temporary)
        _put_in_place(temporary, target, names)
    except PathNotWritableError as error:  # Of a file in it, whose own path says nothing to a user.
        message = str(error).replace(str(temporary), str(target))
        raise PathNotWritableError(message) from error
    except OSError as error:
        raise not_written(target, error) from error
    finally:
        _delete(temporary, names)


def former_folder(path: Path) -> Path | None:
    """Return what was at a path where nothing is, because of a crash between two renames."""
    formers = [] if path.exists() else _formers(path)
    return formers[0] if formers else None


def remove_folder(folder: Path, *, names: Iterable[str]) -> None:
    """Delete a folder that `whole_folder` wrote: the files of these names, and nothing else.

    It loses its name first, so that a crash leaves no half of it under that name.

    Raises:
        PathNotWritableError: It cannot be renamed.
    """
    names = tuple(names)
    if not folder.is_dir():
        return
    try:
        aside = folder.rename(_beside(folder, _UNFINISHED))
        _delete(aside, names)
        if any(entry.name not in names for entry in aside.glob("*")):
            aside.rename(folder)  # What is the user's gets its place back.
    except OSError as error:
        raise PathNotWritableError(
            f"`{folder}` could not be deleted: {error.strerror or error}. Check its permissions."
        ) from error


def sweep_unfinished(parent: Path, *, names: Iterable[str]) -> None:
    """Clean up what a process that was killed left in a folder while writing or deleting."""
    names = tuple(names)
    for former in parent.glob(f".*{_FORMER}"):
        target = parent / former.name[1:].rpartition("-")[0]
        if former_folder(target) == former:
            with contextlib.suppress(OSError):
                former.rename(target)
        else:
            _delete(former, names)
    for leftover in parent.glob(f".*{_UNFINISHED}"):
        _delete(leftover, names)


def _beside(folder: Path, ending: str) -> Path:
    """Return a hidden name beside a folder that nothing else has."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}-{secrets.token_hex(4)}{ending}")


def _formers(target: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{8}}{re.escape(_FORMER)}")
    found = target.parent.glob(f".*{_FORMER}")
    return sorted(entry for entry in found if pattern.fullmatch(entry.name))


def _put_in_place(temporary: Path, target: Path, names: Iterable[str]) -> None:
    """Give a folder its name, and delete the one that had it."""
    former = target.rename(_beside(target, _FORMER)) if target.is_dir() else None
    try:
        temporary.rename(target)
    except BaseException:
        if former is not None:
            former.rename(target)
        raise
    flush_folder(target.parent)
    for entry in _formers(target):
        _delete(entry, names)


def _delete(folder: Path, names: Iterable[str]) -> None:
    """Delete the files of these names, and the folder where nothing else is in it."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_whole(path: StrPath, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all, and return the path.

    Raises:
        PathNotWritableError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise not_written(Path(path), error) from error
    return Path(path)


def ordinary_file(file: Path) -> None:
    """Let others read a file that its writer may have made for its owner alone."""
    file.chmod(0o666 & ~_umask())


def not_written(target: Path, error: OSError) -> PathNotWritableError:
    """Return the error about a file that the system did not write."""
    return PathNotWritableError(
        f"`{target}` could not be written: {error.strerror or error}. "
        "The former file, if there was one, is unchanged."
    )


def flush(file: Path) -> None:
    """Let a file's bytes reach the disk."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Let a folder's names reach the disk, where the system does that."""
    # The files are there already; Windows, for one, cannot open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _asks(question: Callable[[], bool]) -> bool:
    """Answer a question about a path, also about one that no system can have."""
    try:
        return question()
    except (OSError, ValueError):
        return False  # Too long a name, or a NUL in it.


def _umask() -> int:
    # mkstemp makes files that only their owner can read; a saved model is an ordinary file.
    mask = os.umask(0)
    os.umask(mask)
    return mask
