"""The viewer's own folders: there while their process is, and gone after it, however it ended."""

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

#: Makes a folder with a file, says where, and waits.
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
    """Another process that has a folder, and that folder."""
    from finetunelib.visualization._netron import temporary_folder

    # By its file alone: the package would be imported for seconds.
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


def test_a_folder_is_there_for_the_block(temporary: Path) -> None:
    """It is new and for its owner alone, and goes with what was put in it."""
    with temporary_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "Linear.onnx").write_bytes(b"content")
    assert list(temporary.iterdir()) == []


def test_a_folder_is_gone_after_an_error(temporary: Path) -> None:
    """What fails inside of the block leaves nothing."""

    def fail() -> None:
        with temporary_folder():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed(
    other: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    """SIGKILL leaves no time to clean up; the next viewer does it."""
    process, folder = other
    process.kill()
    process.wait()
    assert (folder / "Linear.onnx").is_file()
    remove_abandoned()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_running_process_stays(
    other: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    """What another viewer shows is not taken away from it."""
    _, folder = other
    remove_abandoned()
    assert (folder / "Linear.onnx").read_bytes() == b"content"


def test_the_folder_of_this_process_stays(temporary: Path) -> None:
    """A second viewer leaves the first one's file."""
    with temporary_folder() as folder:
        remove_abandoned()
        assert folder.is_dir()


def test_what_is_named_otherwise_stays(temporary: Path) -> None:
    """Files and folders of others are none of the viewer's."""
    (temporary / "finetunelib-mine").mkdir()
    (temporary / f"{PREFIX}file").write_bytes(b"a file and no folder")
    remove_abandoned()
    assert sorted(entry.name for entry in temporary.iterdir()) == [
        "finetunelib-mine",
        f"{PREFIX}file",
    ]


def test_a_link_is_not_followed(temporary: Path, tmp_path: Path) -> None:
    """A link that is called like a folder of the viewer's leads nowhere."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"content")
    (temporary / f"{PREFIX}link").symlink_to(kept, target_is_directory=True)
    remove_abandoned()
    assert (kept / "file").read_bytes() == b"content"


def test_the_folder_of_another_user_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files is shared."""
    (temporary / f"{PREFIX}theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned()
    assert (temporary / f"{PREFIX}theirs").is_dir()


def test_a_folder_that_is_taken_for_abandoned_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove it before it is locked; a viewer gets one all the same."""
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def unlucky(*, prefix: str) -> str:
        made.append(mkdtemp(prefix=prefix))
        if len(made) == 1:
            shutil.rmtree(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", unlucky)
    with temporary_folder() as folder:
        assert folder.is_dir()
        assert str(folder) == made[1]


def test_folders_are_made_while_others_clean_up(temporary: Path) -> None:
    """Of many threads that make folders and remove abandoned ones, each keeps its own."""

    def make(_: int) -> bool:
        with temporary_folder() as folder:
            remove_abandoned()
            return folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(make, range(200)))
    assert list(temporary.iterdir()) == []


def test_a_folder_without_locks_is_used_and_never_taken_for_abandoned(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has none, a viewer works, and nobody removes what may be in use."""
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with temporary_folder() as folder:
        remove_abandoned()
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


def test_a_missing_folder_for_temporary_files_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for what is abandoned never fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    remove_abandoned()
    assert not (tmp_path / "missing").exists()


def test_no_descriptor_is_left(temporary: Path) -> None:
    """A folder that is gone holds no lock."""
    descriptors = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with temporary_folder():
            remove_abandoned()
    assert len(list(descriptors.iterdir())) == before
