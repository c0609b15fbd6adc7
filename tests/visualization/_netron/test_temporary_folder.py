"""Temporary folders: they exist as long as their process, and are removed if it is killed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetunelib.visualization._netron.temporary_folder import (
    PREFIX,
    remove_abandoned,
    temporary_folder,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")

#: Creates a folder with a file, prints its path, and waits.
_PROGRAM = """
import importlib.util, sys, tempfile
tempfile.tempdir = sys.argv[1]
module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("m", sys.argv[2]))
module.__spec__.loader.exec_module(module)
with module.temporary_folder() as folder:
    (folder / "Linear.onnx").write_bytes(b"content")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def other(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a temporary folder, and that folder."""
    from finetunelib.visualization._netron import temporary_folder

    # Loaded from its file, because importing the package takes seconds.
    source = Path(temporary_folder.__file__)
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(temporary), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_folder_exists_during_the_block(temporary: Path) -> None:
    """The folder is private to its owner, and removed with its content."""
    with temporary_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "Linear.onnx").write_bytes(b"content")
    assert list(temporary.iterdir()) == []


def test_folder_is_removed_after_an_error(temporary: Path) -> None:
    """An exception in the block leaves no folder."""

    def fail() -> None:
        with temporary_folder():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(temporary.iterdir()) == []


def test_folder_of_killed_process_is_removed(
    other: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    """A process killed by SIGKILL cannot clean up; `remove_abandoned` does."""
    process, folder = other
    process.kill()
    process.wait()
    assert (folder / "Linear.onnx").is_file()
    remove_abandoned()
    assert list(temporary.iterdir()) == []


def test_folder_of_running_process_is_kept(
    other: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    """The folder of another viewer is not removed."""
    _, folder = other
    remove_abandoned()
    assert (folder / "Linear.onnx").read_bytes() == b"content"


def test_folder_of_this_process_is_kept(temporary: Path) -> None:
    """A second viewer does not remove the folder of the first."""
    with temporary_folder() as folder:
        remove_abandoned()
        assert folder.is_dir()


def test_other_files_and_folders_are_kept(temporary: Path) -> None:
    """Only folders with the prefix are removed."""
    (temporary / "finetunelib-mine").mkdir()
    (temporary / f"{PREFIX}file").write_bytes(b"not a folder")
    remove_abandoned()
    assert sorted(entry.name for entry in temporary.iterdir()) == [
        "finetunelib-mine",
        f"{PREFIX}file",
    ]


def test_symbolic_link_is_not_followed(temporary: Path, tmp_path: Path) -> None:
    """The target of a link with the prefix is not removed."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"content")
    (temporary / f"{PREFIX}link").symlink_to(kept, target_is_directory=True)
    remove_abandoned()
    assert (kept / "file").read_bytes() == b"content"


def test_folder_of_another_user_is_kept(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files may be shared by several users."""
    (temporary / f"{PREFIX}other").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned()
    assert (temporary / f"{PREFIX}other").is_dir()


def test_folder_removed_before_it_is_locked_is_created_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove a new folder that is not locked yet."""
    created: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def unlucky(*, prefix: str) -> str:
        created.append(mkdtemp(prefix=prefix))
        if len(created) == 1:
            shutil.rmtree(created[0])
        return created[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", unlucky)
    with temporary_folder() as folder:
        assert folder.is_dir()
        assert str(folder) == created[1]


def test_threads_create_and_remove_folders_at_once(temporary: Path) -> None:
    """Each of several threads keeps its folder while others remove abandoned ones."""

    def create(_: int) -> bool:
        with temporary_folder() as folder:
            remove_abandoned()
            return folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(create, range(200)))
    assert list(temporary.iterdir()) == []


def test_folder_without_locks_is_never_removed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file system has no locks, a folder can be used, and may always be in use."""
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with temporary_folder() as folder:
        remove_abandoned()
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


def test_missing_folder_for_temporary_files_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`remove_abandoned` does not raise if there is no folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    remove_abandoned()
    assert not (tmp_path / "missing").exists()


def test_descriptors_are_closed(temporary: Path) -> None:
    """The lock of a folder is released with it."""
    descriptors = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with temporary_folder():
            remove_abandoned()
    assert len(list(descriptors.iterdir())) == before
