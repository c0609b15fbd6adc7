"""Files written whole or not at all, and the checks of paths."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetunelib._files import check_readable, check_writable, whole_file, write_whole
from finetunelib.errors import FileMissingError, PathNotWritableError


def names_in(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: object, **__: object) -> None:
    """Fail as the system does when the disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let the system refuse to write more than `size` bytes to a file of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# check_readable


def test_check_readable_returns_the_file_as_a_path(tmp_path: Path) -> None:
    """A string that names a file comes back as a `Path`."""
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    assert check_readable(str(file), purpose="weights file") == file


def test_check_readable_names_a_missing_file_and_its_purpose(tmp_path: Path) -> None:
    """The message holds the path and what was looked for."""
    file = tmp_path / "nowhere.bin"
    with pytest.raises(FileMissingError) as caught:
        check_readable(file, purpose="weights file")
    assert str(file) in str(caught.value)
    assert "weights file" in str(caught.value)


def test_check_readable_tells_where_a_relative_path_was_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the working folder that a relative path starts from."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileMissingError) as caught:
        check_readable("nowhere.bin", purpose="weights file")
    assert str(Path.cwd()) in str(caught.value)


def test_check_readable_refuses_a_folder(tmp_path: Path) -> None:
    """A folder is no file to read, and is named."""
    with pytest.raises(FileMissingError) as caught:
        check_readable(tmp_path, purpose="weights file")
    assert str(tmp_path) in str(caught.value)


def test_check_readable_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    """No file can have a name of a thousand letters, so none is there."""
    with pytest.raises(FileMissingError, match=r"a{1000}"):
        check_readable(tmp_path / ("a" * 1000), purpose="weights file")


# check_writable


def test_check_writable_returns_the_file_as_a_path(tmp_path: Path) -> None:
    """A string that names a file to be comes back as a `Path`."""
    assert check_writable(str(tmp_path / "new.bin")) == tmp_path / "new.bin"


def test_check_writable_creates_nothing(tmp_path: Path) -> None:
    """Asking whether a file can be written makes neither the file nor its folders."""
    check_writable(tmp_path / "a" / "b" / "new.bin")
    assert names_in(tmp_path) == []


def test_check_writable_refuses_a_folder(tmp_path: Path) -> None:
    """A folder is no file to write, and is named."""
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("below", ["new.bin", "a/b/new.bin"])
def test_check_writable_names_the_file_that_stands_in_for_a_folder(
    tmp_path: Path, below: str
) -> None:
    """Nothing can be written below a file, at any depth, and that file is named."""
    obstacle = tmp_path / "obstacle.txt"
    obstacle.write_text("a file")
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(obstacle / below)
    assert f"`{obstacle}`" in str(caught.value)


def test_check_writable_names_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that the user may not write to is an error that names it."""

    def may_not(path: os.PathLike[str], mode: int) -> bool:
        return Path(path) != tmp_path

    # Not by chmod: root may write to read-only folders.
    monkeypatch.setattr(os, "access", may_not)
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(tmp_path / "missing" / "new.bin")
    assert f"`{tmp_path}`" in str(caught.value)


def test_check_writable_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    """A name of a thousand letters is refused like any other path that cannot be written."""
    with pytest.raises(PathNotWritableError, match=r"a{1000}"):
        check_writable(tmp_path / ("a" * 1000))


# whole_file and write_whole


def test_write_whole_writes_the_content(tmp_path: Path) -> None:
    """The file holds exactly the bytes that were given."""
    write_whole(tmp_path / "new.bin", b"\x00\r\n\xff")
    assert (tmp_path / "new.bin").read_bytes() == b"\x00\r\n\xff"


def test_write_whole_returns_the_path(tmp_path: Path) -> None:
    """A string comes back as the `Path` of the file."""
    assert write_whole(str(tmp_path / "new.bin"), b"x") == tmp_path / "new.bin"


def test_write_whole_replaces_a_former_file(tmp_path: Path) -> None:
    """Nothing of a longer former file remains."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"the former content")
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_write_whole_makes_missing_folders(tmp_path: Path) -> None:
    """Parent folders that do not exist are made."""
    write_whole(tmp_path / "a" / "b" / "new.bin", b"x")
    assert (tmp_path / "a" / "b" / "new.bin").read_bytes() == b"x"


def test_write_whole_takes_a_path_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name is written into the working folder."""
    monkeypatch.chdir(tmp_path)
    write_whole("new.bin", b"x")
    assert (tmp_path / "new.bin").read_bytes() == b"x"


def test_write_whole_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Only the file itself is in the folder afterwards."""
    write_whole(tmp_path / "new.bin", b"x")
    assert names_in(tmp_path) == ["new.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_file_has_the_permissions_of_an_ordinary_file(tmp_path: Path, mask: int) -> None:
    """The user's umask decides who may read the file, as for every file that a program makes."""
    former = os.umask(mask)
    try:
        write_whole(tmp_path / "new.bin", b"x")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "new.bin").stat().st_mode) == 0o666 & ~mask


def test_whole_file_yields_a_path_beside_the_file_with_its_ending(tmp_path: Path) -> None:
    """Writers that go by a path's ending see the one of the file to be."""
    with whole_file(tmp_path / "model.onnx") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"


def test_whole_file_shows_the_former_file_until_the_block_ends(tmp_path: Path) -> None:
    """A reader meets the former file or the new one, never a part."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"former")
    with whole_file(file) as temporary:
        temporary.write_bytes(b"half of the new")
        assert file.read_bytes() == b"former"


def test_whole_file_makes_the_bytes_durable_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, then renamed, then its folder is synced, so that a crash is harmless."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_whole(tmp_path / "new.bin", b"x")
    assert events == ["sync file", "rename", "sync folder"]


class Stop(BaseException):
    """Stands for whatever may end a block, KeyboardInterrupt included."""


def fail_half_way(file: Path, error: type[BaseException]) -> None:
    """Write a part of a file, and raise."""
    with whole_file(file) as temporary:
        temporary.write_bytes(b"half of the new")
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_whole_file_passes_on_what_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """An error of the block is the caller's own, and comes out as it is."""
    with pytest.raises(error) as caught, whole_file(tmp_path / "new.bin"):
        raise error("mine")
    assert type(caught.value) is error


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_former_file_is_unchanged_when_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A block that fails after writing leaves the former bytes."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"former")
    with pytest.raises(error):
        fail_half_way(file, error)
    assert file.read_bytes() == b"former"


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_no_temporary_file_remains_when_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A block that fails leaves nothing in the folder."""
    with pytest.raises(error):
        fail_half_way(tmp_path / "new.bin", error)
    assert names_in(tmp_path) == []


def test_whole_file_refuses_before_the_block_runs(tmp_path: Path) -> None:
    """Whether the path can be written is known before any work is done."""
    ran = False
    with pytest.raises(PathNotWritableError), whole_file(tmp_path):
        ran = True
    assert not ran


def test_write_whole_refuses_a_path_below_a_file(tmp_path: Path) -> None:
    """A file cannot be the folder of another one."""
    (tmp_path / "obstacle.txt").write_text("a file")
    with pytest.raises(PathNotWritableError) as caught:
        write_whole(tmp_path / "obstacle.txt" / "new.bin", b"x")
    assert str(tmp_path / "obstacle.txt") in str(caught.value)


def failing_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the bytes are to reach it."""
    monkeypatch.setattr(os, "fsync", disk_full)


def failing_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the file is to be renamed."""
    monkeypatch.setattr(os, "replace", disk_full)


def failing_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the bytes are written."""
    monkeypatch.setattr(Path, "write_bytes", disk_full)


def failing_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the temporary file is made."""
    monkeypatch.setattr("tempfile.mkstemp", disk_full)


def failing_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the folder is made."""
    monkeypatch.setattr(Path, "mkdir", disk_full)


FAILURES = [failing_fsync, failing_rename, failing_write, failing_start, failing_folder]


@pytest.mark.parametrize("failing", FAILURES)
def test_full_disk_is_an_error_that_names_the_file_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Wherever the system refuses, the library's own error tells which file and why."""
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(PathNotWritableError) as caught:
            write_whole(tmp_path / "new.bin", b"x")
    assert str(tmp_path / "new.bin") in str(caught.value)
    assert "No space left on device" in str(caught.value)


@pytest.mark.parametrize("failing", FAILURES)
def test_full_disk_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The former file keeps its bytes and no temporary file stays behind."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"former")
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(PathNotWritableError):
            write_whole(file, b"new")
    assert names_in(tmp_path) == ["new.bin"]
    assert file.read_bytes() == b"former"


def test_write_that_the_system_breaks_off_leaves_the_former_file(tmp_path: Path) -> None:
    """A file that grows beyond the user's limit is given up, without a part of it."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"former")
    with files_limited_to(1000), pytest.raises(PathNotWritableError):
        write_whole(file, b"x" * 100_000)
    assert names_in(tmp_path) == ["new.bin"]
    assert file.read_bytes() == b"former"


def test_error_of_the_system_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error number stays within reach, for a caller that wants to look at it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(PathNotWritableError) as caught:
            write_whole(tmp_path / "new.bin", b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
