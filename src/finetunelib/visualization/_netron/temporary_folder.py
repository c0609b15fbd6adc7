"""Temporary folders that are removed even if their process is killed.

Each folder is locked by the process that created it. The operating system releases the lock when
that process ends, for whatever reason. The next viewer removes folders that are not locked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = "finetunelib-viewer-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder for the duration of the block."""
    folder, lock = _create()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders of processes that were killed."""
    if sys.platform == "win32":
        return  # Folders cannot be locked on Windows.
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _is_own_folder(entry):
                _remove_if_abandoned(Path(entry.path))


def _create() -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process saw it unlocked, and is removing it.
        except OSError:
            return (
                folder,
                None,
            )  # A file system without locks. `remove_abandoned` removes nothing there.
        if lock is None or _is_at(folder, lock):
            return folder, lock
        os.close(lock)


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = _lock(folder)
    except OSError:
        return  # In use, or gone.
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that locks the folder, or `None` on Windows.

    Raises:
        BlockingIOError: If another process has locked it.
        OSError: If the folder does not exist, or its file system has no locks.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False
