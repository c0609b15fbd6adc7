"""Locks on folders, by which processes see that a folder is in use.

The system releases a lock when its process ends, however it ends, and there is no file of it. Where
the system or the file system has no such locks, as on Windows, a folder never counts as in use.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]

#: The descriptors of the locks of this process.
_held: set[int] = set()


class FolderLock:
    """The right to write into a folder, which one owner has at a time.

    Args:
        folder: The folder, which must exist.

    Raises:
        BlockingIOError: If another process has it, or another lock of this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._descriptor: int | None = None
        if folder is not None:
            self._descriptor = _lock(folder)

    def release(self) -> None:
        """Let others lock the folder. Nothing happens if it is already released."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _held.discard(descriptor)
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # At once, for all copies of it.
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[FolderLock], tuple[None]]:
        return FolderLock, (None,)  # A copy holds nothing.


def is_locked(folder: Path) -> bool:
    """Return whether a process that is alive has locked a folder."""
    try:
        FolderLock(folder).release()
    except BlockingIOError:
        return True
    return False


def _lock(folder: Path) -> int | None:
    """Return the descriptor of a lock, or `None` if there are no locks here."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return None  # Some network file systems have no locks.
        raise
    _held.add(descriptor)
    return descriptor


def _close_in_child() -> None:
    """Close the locks of the parent, which would otherwise last as long as a worker does."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
