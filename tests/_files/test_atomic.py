"""Atomic writing of files, and the checks of paths."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetunelib._files.atomic import atomic_file, atomic_folder, write_atomically
from finetunelib._files.disk import cause_of_failed_write, read_at_most
from finetunelib._files.paths import check_folder_writable, check_readable, check_writable
from finetunelib.errors import (
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
)
from support_disk import files_limited_to


def names_in(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: object, **__: object) -> None:
    """Fail as the system does when the disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


# check_readable


def test_check_readable_returns_the_file_as_a_path(tmp_path: Path) -> None:
    """The path of a file may be a string."""
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    assert check_readable(str(file), purpose="weights file") == file


def test_check_readable_names_a_missing_file_and_its_purpose(tmp_path: Path) -> None:
    """The message contains the path and the purpose."""
    file = tmp_path / "nowhere.bin"
    with pytest.raises(FileMissingError) as caught:
        check_readable(file, purpose="weights file")
    assert str(file) in str(caught.value)
    assert "weights file" in str(caught.value)


def test_check_readable_names_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved against it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileMissingError) as caught:
        check_readable("nowhere.bin", purpose="weights file")
    assert str(Path.cwd()) in str(caught.value)


def test_check_readable_refuses_a_folder(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(FileMissingError) as caught:
        check_readable(tmp_path, purpose="weights file")
    assert str(tmp_path) in str(caught.value)


def test_check_readable_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    """A file with such a name cannot exist."""
    with pytest.raises(FileMissingError, match=r"a{1000}"):
        check_readable(tmp_path / ("a" * 1000), purpose="weights file")


# check_writable


def test_check_writable_returns_the_file_as_a_path(tmp_path: Path) -> None:
    """The path of a new file may be a string."""
    assert check_writable(str(tmp_path / "new.bin")) == tmp_path / "new.bin"


def test_check_writable_creates_nothing(tmp_path: Path) -> None:
    """The check creates neither the file nor its folders."""
    check_writable(tmp_path / "a" / "b" / "new.bin")
    assert names_in(tmp_path) == []


def test_check_writable_refuses_a_folder(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("below", ["new.bin", "a/b/new.bin"])
def test_check_writable_names_a_file_that_should_be_a_folder(tmp_path: Path, below: str) -> None:
    """A path below a file cannot be written at any depth."""
    obstacle = tmp_path / "obstacle.txt"
    obstacle.write_text("a file")
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(obstacle / below)
    assert f"`{obstacle}`" in str(caught.value)


def test_check_writable_names_a_read_only_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names a folder that the user may not write to."""

    def may_not(path: os.PathLike[str], mode: int) -> bool:
        return Path(path) != tmp_path

    # chmod does not work here, because root may write to read-only folders.
    monkeypatch.setattr(os, "access", may_not)
    with pytest.raises(PathNotWritableError) as caught:
        check_writable(tmp_path / "missing" / "new.bin")
    assert f"`{tmp_path}`" in str(caught.value)


def test_check_writable_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    """It is an error of the library, as for other paths that cannot be written."""
    with pytest.raises(PathNotWritableError, match=r"a{1000}"):
        check_writable(tmp_path / ("a" * 1000))


# atomic_file and write_atomically


def test_write_atomically_writes_the_content(tmp_path: Path) -> None:
    """The file contains exactly the given bytes."""
    write_atomically(tmp_path / "new.bin", b"\x00\r\n\xff")
    assert (tmp_path / "new.bin").read_bytes() == b"\x00\r\n\xff"


def test_write_atomically_returns_the_path(tmp_path: Path) -> None:
    """The result is a `Path`, also for a string."""
    assert write_atomically(str(tmp_path / "new.bin"), b"x") == tmp_path / "new.bin"


def test_write_atomically_replaces_a_previous_file(tmp_path: Path) -> None:
    """Nothing remains of a longer previous file."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"the previous content")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"


def test_write_atomically_creates_missing_folders(tmp_path: Path) -> None:
    """Missing parent folders are created."""
    write_atomically(tmp_path / "a" / "b" / "new.bin", b"x")
    assert (tmp_path / "a" / "b" / "new.bin").read_bytes() == b"x"


def test_write_atomically_takes_a_path_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name is a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_atomically("new.bin", b"x")
    assert (tmp_path / "new.bin").read_bytes() == b"x"


def test_write_atomically_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Only the file itself is in the folder afterwards."""
    write_atomically(tmp_path / "new.bin", b"x")
    assert names_in(tmp_path) == ["new.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_file_has_the_permissions_of_an_ordinary_file(tmp_path: Path, mask: int) -> None:
    """The umask determines who may read the file, as for any new file."""
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new.bin", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.bin").stat().st_mode) == 0o666 & ~mask


def test_atomic_file_yields_a_path_next_to_the_file_with_its_suffix(tmp_path: Path) -> None:
    """Some writers choose a format by the suffix."""
    with atomic_file(tmp_path / "model.onnx") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"


def test_atomic_file_keeps_the_previous_file_until_the_block_ends(tmp_path: Path) -> None:
    """A reader sees the previous file or the new one, never a part."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"previous")
    with atomic_file(file) as temporary:
        temporary.write_bytes(b"half of the new")
        assert file.read_bytes() == b"previous"


def test_atomic_file_makes_the_bytes_durable_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, then renamed, then its folder is synced."""
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
    write_atomically(tmp_path / "new.bin", b"x")
    assert events == ["sync file", "rename", "sync folder"]


class Stop(BaseException):
    """An exception that is not an `Exception`, like KeyboardInterrupt."""


def fail_half_way(file: Path, error: type[BaseException]) -> None:
    """Write a part of a file, and raise."""
    with atomic_file(file) as temporary:
        temporary.write_bytes(b"half of the new")
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_atomic_file_passes_on_what_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """An error in the block is passed on unchanged."""
    with pytest.raises(error) as caught, atomic_file(tmp_path / "new.bin"):
        raise error("mine")
    assert type(caught.value) is error


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_previous_file_is_unchanged_when_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A block that fails after writing has no effect on it."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"previous")
    with pytest.raises(error):
        fail_half_way(file, error)
    assert file.read_bytes() == b"previous"


@pytest.mark.parametrize("error", [ValueError, OSError, Stop])
def test_no_temporary_file_remains_when_the_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A block that fails leaves nothing in the folder."""
    with pytest.raises(error):
        fail_half_way(tmp_path / "new.bin", error)
    assert names_in(tmp_path) == []


def test_atomic_file_refuses_before_the_block_runs(tmp_path: Path) -> None:
    """The path is checked before any work is done."""
    ran = False
    with pytest.raises(PathNotWritableError), atomic_file(tmp_path):
        ran = True
    assert not ran


def test_write_atomically_refuses_a_path_below_a_file(tmp_path: Path) -> None:
    """A file cannot be the folder of another one."""
    (tmp_path / "obstacle.txt").write_text("a file")
    with pytest.raises(PathNotWritableError) as caught:
        write_atomically(tmp_path / "obstacle.txt" / "new.bin", b"x")
    assert str(tmp_path / "obstacle.txt") in str(caught.value)


def failing_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the file is flushed."""
    monkeypatch.setattr(os, "fsync", disk_full)


def failing_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the file is renamed."""
    monkeypatch.setattr(os, "replace", disk_full)


def failing_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the file is written."""
    monkeypatch.setattr(Path, "write_bytes", disk_full)


def failing_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the temporary file is created."""
    monkeypatch.setattr("tempfile.mkstemp", disk_full)


def failing_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the disk full when the folder is created."""
    monkeypatch.setattr(Path, "mkdir", disk_full)


FAILURES = [failing_fsync, failing_rename, failing_write, failing_start, failing_folder]


@pytest.mark.parametrize("failing", FAILURES)
def test_full_disk_is_an_error_that_names_the_file_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The library's error names both, whichever system call fails."""
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(PathNotWritableError) as caught:
            write_atomically(tmp_path / "new.bin", b"x")
    assert str(tmp_path / "new.bin") in str(caught.value)
    assert "No space left on device" in str(caught.value)


@pytest.mark.parametrize("failing", FAILURES)
def test_full_disk_leaves_the_folder_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The previous file is unchanged and no temporary file remains."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"previous")
    with monkeypatch.context() as patch:
        failing(patch)
        with pytest.raises(PathNotWritableError):
            write_atomically(file, b"new")
    assert names_in(tmp_path) == ["new.bin"]
    assert file.read_bytes() == b"previous"


def test_interrupted_write_leaves_the_previous_file(tmp_path: Path) -> None:
    """A file that exceeds the user's limit leaves no part behind."""
    file = tmp_path / "new.bin"
    file.write_bytes(b"previous")
    with files_limited_to(1000), pytest.raises(PathNotWritableError):
        write_atomically(file, b"x" * 100_000)
    assert names_in(tmp_path) == ["new.bin"]
    assert file.read_bytes() == b"previous"


def test_error_of_the_system_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller can read the error number from it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(PathNotWritableError) as caught:
            write_atomically(tmp_path / "new.bin", b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


# Paths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another working directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_tilde_is_the_home_folder(home: Path) -> None:
    """A path that starts with `~` is written to and read from the home folder."""
    write_atomically("~/a/new.bin", b"x")
    assert (home / "a" / "new.bin").read_bytes() == b"x"
    assert check_readable("~/a/new.bin", purpose="file") == home / "a" / "new.bin"
    assert names_in(Path.cwd()) == []


def test_home_of_an_unknown_user_is_rejected(home: Path) -> None:
    """A path in a home folder that does not exist is an error, and nothing is written."""
    with pytest.raises(InvalidArgumentError, match="~nobody_of_this_name"):
        write_atomically("~nobody_of_this_name/new.bin", b"x")
    assert names_in(home.parent) == ["home", "work"]


@pytest.mark.parametrize("path", [b"new.bin", 3, None])
def test_path_of_another_type_is_rejected(path: Any) -> None:
    """The message contains the type, also that of bytes."""
    for check in (check_writable, lambda path: check_readable(path, purpose="file")):
        with pytest.raises(InvalidTypeError, match=type(path).__name__):
            check(path)


@pytest.mark.parametrize(
    "name", ["a\0b", "a" * 256, "é" * 128, "\ud800"], ids=["NUL", "long", "long bytes", "surrogate"]
)
def test_path_that_no_file_can_have_is_rejected(tmp_path: Path, name: str) -> None:
    """Checking, reading or writing such a path raises an error of the library."""
    with pytest.raises(PathNotWritableError):
        check_writable(tmp_path / name)
    with pytest.raises(PathNotWritableError):
        write_atomically(tmp_path / name, b"x")
    with pytest.raises(PathNotWritableError):
        check_folder_writable(tmp_path / name)
    with pytest.raises(FileMissingError):
        check_readable(tmp_path / name, purpose="file")
    assert names_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="names must be UTF-8 there")
def test_name_that_is_not_utf8_is_written_and_read(tmp_path: Path) -> None:
    """Linux allows any bytes in names, which Python represents by surrogates."""
    path = write_atomically(tmp_path / "\udcff.bin", b"x")
    assert check_readable(path, purpose="file").read_bytes() == b"x"
    assert [os.fsencode(name) for name in names_in(tmp_path)] == [b"\xff.bin"]


@pytest.mark.parametrize("length", [236, 251, 255])
@pytest.mark.parametrize("suffix", [".bin", "." + "b" * 100], ids=["suffix", "long suffix"])
def test_longest_names_are_written(tmp_path: Path, length: int, suffix: str) -> None:
    """The temporary file has a shorter name, so a file may have the longest one."""
    name = "a" * (length - len(suffix)) + suffix
    write_atomically(tmp_path / name, b"x")
    assert names_in(tmp_path) == [name]


def test_longest_name_in_wide_characters_is_written(tmp_path: Path) -> None:
    """The limit is a number of bytes, and not of characters."""
    name = "猫" * 83 + ".bin"
    write_atomically(tmp_path / name, b"x")
    assert names_in(tmp_path) == [name]


def test_folder_whose_name_is_too_long_is_rejected(tmp_path: Path) -> None:
    """A folder has a longer name while it is replaced, so its own name must be a little shorter."""
    with (
        pytest.raises(PathNotWritableError, match="at most"),
        atomic_folder(tmp_path / ("a" * 250), names=["file"]),
    ):
        pass
    assert names_in(tmp_path) == []


# Symbolic links


def test_link_is_written_through(tmp_path: Path) -> None:
    """The target of a link gets the content, and the link is kept."""
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.bin", tmp_path / "link.bin"
    target.write_bytes(b"previous")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["link.bin", "real"]
    assert names_in(tmp_path / "real") == ["a.bin"]


def test_broken_link_is_written_through(tmp_path: Path) -> None:
    """The missing target is created, and the link is kept."""
    (tmp_path / "link.bin").symlink_to("a/b.bin")
    write_atomically(tmp_path / "link.bin", b"new")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"
    assert (tmp_path / "link.bin").is_symlink()


def test_loop_of_links_is_rejected(tmp_path: Path) -> None:
    """Links that refer to each other have no target."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(PathNotWritableError):
        write_atomically(tmp_path / "a", b"new")
    with pytest.raises(FileMissingError):
        check_readable(tmp_path / "a", purpose="file")


def test_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    """The target folder of a link is replaced, and the link is kept."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"previous")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    with atomic_folder(tmp_path / "link", names=["file"]) as folder:
        (folder / "file").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"new"
    assert names_in(tmp_path) == ["link", "real"]


# A full disk


def test_full_disk_is_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says in plain words that the disk is full."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(PathNotWritableError, match="the disk is full"):
            write_atomically(tmp_path / "new.bin", b"x")


def test_cause_of_a_failed_write_is_found(tmp_path: Path) -> None:
    """A writer that hides why it failed is explained by the error of a small write."""
    hidden = RuntimeError("unexpected pos")
    with files_limited_to(1000):
        cause = cause_of_failed_write(tmp_path / "new.bin", hidden)
    assert cause.errno == errno.EFBIG
    assert "unexpected pos" in str(cause_of_failed_write(tmp_path / "new.bin", hidden))
    assert names_in(tmp_path) == []


def test_file_above_a_limit_is_not_read(tmp_path: Path) -> None:
    """A file that is too large is rejected, and one of exactly the limit is read."""
    (tmp_path / "a").write_bytes(b"12345")
    assert read_at_most(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_at_most(tmp_path / "a", 4)
