"""Files written whole or not at all, and the checks of a path that come before any work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from finetunelib._typing import StrPath
from finetunelib.errors import FileMissingError, PathNotWritableError


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
        raise _not_written(target, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        try:
            _flush(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
            with contextlib.suppress(OSError):  # The file is there; not every system does this.
                _flush(target.parent)
        except OSError as error:
            raise _not_written(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: StrPath, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all, and return the path.

    Raises:
        PathNotWritableError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise _not_written(Path(path), error) from error
    return Path(path)


def _not_written(target: Path, error: OSError) -> PathNotWritableError:
    return PathNotWritableError(
        f"`{target}` could not be written: {error.strerror or error}. "
        "The former file, if there was one, is unchanged."
    )


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and its renames are durable without it.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
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
