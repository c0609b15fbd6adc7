"""Folders for the viewer's own files, which do not outlive their process, even one that was killed.

Each folder is locked by the process that made it. The system takes the lock away when that process
ends in whatever way, so that a folder without one is nobody's, and the next viewer removes it.
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
    """Yield a new folder, and remove it at the end."""
    folder, lock = _made()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned() -> None:
    """Remove the folders of processes that ended without doing so."""
    if sys.platform == "win32":
        return  # Folders cannot be locked there.
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _is_own_folder(entry):
                _remove_if_abandoned(Path(entry.path))


def _made() -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process took it for an abandoned one, and is removing it.
        except OSError:
            return folder, None  # A file system without locks; then nothing is removed on it.
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
    """Return a descriptor that holds the folder's lock, or None where there are no locks.

    Raises:
        BlockingIOError: Another process has it.
        OSError: The folder is gone, or its file system has no locks.
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
