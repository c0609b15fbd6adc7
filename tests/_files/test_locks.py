"""Locks on folders, which one owner has at a time."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetunelib._files import locks
from finetunelib._files.locks import FolderLock, is_locked


def test_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    """A second lock is refused until the first one is released, and no file is created."""
    lock = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    copy.deepcopy(lock).release()  # A copy holds nothing.
    assert is_locked(tmp_path)
    lock.release()
    lock.release()
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    """A forked process that outlives its parent does not block the next run."""
    lock = FolderLock(tmp_path)
    reading, writing = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        os.read(reading, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        assert is_locked(tmp_path)
        descriptor = lock._descriptor
        assert descriptor is not None
        os.close(descriptor)  # As when the parent is killed.
        assert not is_locked(tmp_path)
    finally:
        lock._descriptor = None
        os.write(writing, b"x")
        os.waitpid(child, 0)
        for number in (reading, writing, told, tell):
            os.close(number)


def test_folder_that_cannot_be_locked_is_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders may be missing, and some systems or file systems have no locks."""
    assert not is_locked(tmp_path / "missing")

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fake = SimpleNamespace(flock=unsupported, LOCK_EX=2, LOCK_NB=4, LOCK_UN=8)
    monkeypatch.setattr(locks, "fcntl", fake)
    FolderLock(tmp_path).release()
    monkeypatch.setattr(locks, "fcntl", None)
    FolderLock(tmp_path).release()
