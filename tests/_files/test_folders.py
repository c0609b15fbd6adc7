"""Atomic writing and deleting of folders, and cleaning up after a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetunelib._files.atomic import (
    atomic_folder,
    previous_folder,
    remove_folder,
    sweep_unfinished,
)
from finetunelib.errors import PathNotWritableError

NAMES = ("a.txt", "b.txt")


def write(path: Path, text: str = "new") -> None:
    """Write a folder with both files."""
    with atomic_folder(path, names=NAMES) as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """Return the text of every file below a folder, by its path; "/" for a folder."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): "/" if path.is_dir() else path.read_text() for path in paths
    }


def disk_full(*_: object, **__: object) -> None:
    """Fail as the system does when the disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_appears_with_all_of_its_files(tmp_path: Path) -> None:
    """Missing parents are created, and nothing else is left."""
    write(tmp_path / "deep" / "one")
    assert tree(tmp_path) == {
        "deep": "/",
        "deep/one": "/",
        "deep/one/a.txt": "new",
        "deep/one/b.txt": "new",
    }


def test_a_folder_does_not_exist_before_it_is_complete(tmp_path: Path) -> None:
    """While it is written, it has another name."""
    with atomic_folder(tmp_path / "one", names=NAMES) as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / "one").exists()
        for name in NAMES:
            (folder / name).write_text("new")
    assert (tmp_path / "one").is_dir()


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_previous_folder(
    tmp_path: Path, failure: BaseException
) -> None:
    """The error is passed on, and the files that the block wrote are removed."""
    write(tmp_path / "one", "old")
    before = tree(tmp_path)

    def fail() -> None:
        with atomic_folder(tmp_path / "one", names=NAMES) as folder:
            (folder / "a.txt").write_text("half")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert tree(tmp_path) == before


def test_a_block_that_does_not_write_every_file_is_an_error(tmp_path: Path) -> None:
    """An incomplete folder is not renamed."""
    with (
        pytest.raises(PathNotWritableError, match="one"),
        atomic_folder(tmp_path / "one", names=NAMES) as folder,
    ):
        (folder / "a.txt").write_text("new")
    assert tree(tmp_path) == {}


def test_every_file_is_flushed_before_the_folder_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the files, then the folder, then the rename, then the parent."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flushed(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    write(tmp_path / "one")
    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not name the files of descriptors")
    *files, folder, renaming, parent = events
    assert files == list(NAMES)
    assert folder.endswith(".unfinished")
    assert (renaming, parent) == ("rename", tmp_path.name)


def test_the_previous_folder_is_restored_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rename fails, and the previous folder has its name and files again."""
    write(tmp_path / "one", "old")
    before = tree(tmp_path)
    rename = os.rename

    def fails_for_new(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".unfinished"):
            disk_full()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_new)
    with pytest.raises(PathNotWritableError, match="No space left") as caught:
        write(tmp_path / "one")
    assert f"`{tmp_path / 'one'}`" in str(caught.value)
    assert tree(tmp_path) == before


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    """The error names the files that would be lost."""
    write(tmp_path / "one", "old")
    (tmp_path / "one" / "notes.txt").write_text("keep")
    before = tree(tmp_path)
    with pytest.raises(PathNotWritableError, match=r"notes\.txt"):
        write(tmp_path / "one")
    assert tree(tmp_path) == before


def test_a_message_about_a_file_names_the_folder_that_the_user_passed(tmp_path: Path) -> None:
    """The temporary name is not shown."""
    with (
        pytest.raises(PathNotWritableError) as caught,
        atomic_folder(tmp_path / "one", names=NAMES) as folder,
    ):
        raise PathNotWritableError(f"`{folder / 'a.txt'}` could not be written")
    assert str(caught.value) == f"`{tmp_path / 'one' / 'a.txt'}` could not be written"


def test_remove_folder_deletes_its_own_files(tmp_path: Path) -> None:
    """The folder is deleted too, and a missing one is not an error."""
    write(tmp_path / "one")
    remove_folder(tmp_path / "one", names=NAMES)
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {}


def test_remove_folder_leaves_other_files(tmp_path: Path) -> None:
    """They stay in the folder."""
    write(tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("keep")
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {"one": "/", "one/notes.txt": "keep"}


def test_remove_folder_does_not_follow_a_name_out_of_the_folder(tmp_path: Path) -> None:
    """A link among the files is deleted, but not its target."""
    (tmp_path / "secret").write_text("keep")
    write(tmp_path / "one")
    (tmp_path / "one" / "a.txt").unlink()
    (tmp_path / "one" / "a.txt").symlink_to(tmp_path / "secret")
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {"secret": "keep"}


def test_remove_folder_needs_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old folders can be deleted on a full disk."""
    write(tmp_path / "one")
    monkeypatch.setattr(os, "mkdir", disk_full)
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {}


def test_remove_folder_names_a_folder_that_it_cannot_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is unchanged."""
    write(tmp_path / "one")
    before = tree(tmp_path)
    monkeypatch.setattr(os, "rename", disk_full)
    with pytest.raises(PathNotWritableError, match="could not be deleted") as caught:
        remove_folder(tmp_path / "one", names=NAMES)
    assert f"`{tmp_path / 'one'}`" in str(caught.value)
    assert tree(tmp_path) == before


# After a crash


def left(tmp_path: Path, name: str) -> Path:
    """Write a folder with a name that only a crash leaves."""
    write(tmp_path / "made", "old")
    return (tmp_path / "made").rename(tmp_path / name)


def test_a_sweep_of_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    """Before the first folder is written, there is nothing to clean up."""
    sweep_unfinished(tmp_path / "missing", names=NAMES)
    assert tree(tmp_path) == {}


def test_a_sweep_deletes_unfinished_folders(tmp_path: Path) -> None:
    """Complete ones are kept."""
    write(tmp_path / "one")
    before = tree(tmp_path)
    left(tmp_path, ".one-0a1b2c3d.unfinished")
    left(tmp_path, ".two-0a1b2c3d.unfinished")
    sweep_unfinished(tmp_path, names=NAMES)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("clean", [sweep_unfinished, None])
def test_a_previous_folder_that_was_not_replaced_is_found(
    tmp_path: Path, clean: Callable[..., None] | None
) -> None:
    """After a crash between two renames, there is only the previous folder."""
    previous = left(tmp_path, ".one-0a1b2c3d.former")
    left(tmp_path, ".one-two-0a1b2c3d.former")  # Of another folder with the same prefix.
    assert previous_folder(tmp_path / "one") == previous
    if clean is not None:
        clean(tmp_path, names=NAMES)
        assert previous_folder(tmp_path / "one") is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-two"]


def test_a_previous_folder_that_was_replaced_is_deleted(tmp_path: Path) -> None:
    """A crash happened after the second rename."""
    left(tmp_path, ".one-0a1b2c3d.former")
    write(tmp_path / "other", "new")
    (tmp_path / "other").rename(tmp_path / "one")
    assert previous_folder(tmp_path / "one") is None
    sweep_unfinished(tmp_path, names=NAMES)
    assert tree(tmp_path) == {"one": "/", "one/a.txt": "new", "one/b.txt": "new"}


def test_the_next_write_deletes_a_previous_folder(tmp_path: Path) -> None:
    """Writing the same folder repeatedly leaves nothing behind."""
    left(tmp_path, ".one-0a1b2c3d.former")
    write(tmp_path / "one")
    assert tree(tmp_path) == {"one": "/", "one/a.txt": "new", "one/b.txt": "new"}
