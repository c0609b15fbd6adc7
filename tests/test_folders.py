"""Folders written whole or not at all, deleted whole, and swept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetunelib._files import former_folder, remove_folder, sweep_unfinished, whole_folder
from finetunelib.errors import PathNotWritableError

NAMES = ("a.txt", "b.txt")


def write(path: Path, text: str = "new") -> None:
    """Write a folder with both files."""
    with whole_folder(path, names=NAMES) as folder:
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
    """Missing parents are made, and nothing is left beside the folder."""
    write(tmp_path / "deep" / "one")
    assert tree(tmp_path) == {
        "deep": "/",
        "deep/one": "/",
        "deep/one/a.txt": "new",
        "deep/one/b.txt": "new",
    }


def test_a_folder_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    """While it is written, nothing has its name."""
    with whole_folder(tmp_path / "one", names=NAMES) as folder:
        assert folder.parent == tmp_path
        assert not (tmp_path / "one").exists()
        for name in NAMES:
            (folder / name).write_text("new")
    assert (tmp_path / "one").is_dir()


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_former_folder(
    tmp_path: Path, failure: BaseException
) -> None:
    """What it raised comes out, and the files that it wrote are gone."""
    write(tmp_path / "one", "old")
    before = tree(tmp_path)

    def fail() -> None:
        with whole_folder(tmp_path / "one", names=NAMES) as folder:
            (folder / "a.txt").write_text("half")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert tree(tmp_path) == before


def test_a_block_that_writes_too_little_is_an_error(tmp_path: Path) -> None:
    """A folder without one of its files is not whole."""
    with (
        pytest.raises(PathNotWritableError, match="one"),
        whole_folder(tmp_path / "one", names=NAMES) as folder,
    ):
        (folder / "a.txt").write_text("new")
    assert tree(tmp_path) == {}


def test_every_file_reaches_the_disk_before_the_folder_has_its_name(
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
        pytest.skip("the system does not tell what a descriptor is")
    *files, folder, renaming, parent = events
    assert files == list(NAMES)
    assert folder.endswith(".unfinished")
    assert (renaming, parent) == ("rename", tmp_path.name)


def test_a_former_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rename fails, and the former folder has its name and files again."""
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
    """The error names what would be lost."""
    write(tmp_path / "one", "old")
    (tmp_path / "one" / "notes.txt").write_text("keep")
    before = tree(tmp_path)
    with pytest.raises(PathNotWritableError, match=r"notes\.txt"):
        write(tmp_path / "one")
    assert tree(tmp_path) == before


def test_a_message_about_a_file_names_the_folder_that_the_user_asked_for(tmp_path: Path) -> None:
    """The name of the moment is nobody's business."""
    with (
        pytest.raises(PathNotWritableError) as caught,
        whole_folder(tmp_path / "one", names=NAMES) as folder,
    ):
        raise PathNotWritableError(f"`{folder / 'a.txt'}` could not be written")
    assert str(caught.value) == f"`{tmp_path / 'one' / 'a.txt'}` could not be written"


def test_remove_folder_deletes_its_own_files(tmp_path: Path) -> None:
    """The folder goes with them, and a missing one is no error."""
    write(tmp_path / "one")
    remove_folder(tmp_path / "one", names=NAMES)
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {}


def test_remove_folder_leaves_the_files_of_others(tmp_path: Path) -> None:
    """They keep their place."""
    write(tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("keep")
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {"one": "/", "one/notes.txt": "keep"}


def test_remove_folder_does_not_follow_a_name_out_of_the_folder(tmp_path: Path) -> None:
    """A link among the files is deleted, and what it leads to is not."""
    (tmp_path / "secret").write_text("keep")
    write(tmp_path / "one")
    (tmp_path / "one" / "a.txt").unlink()
    (tmp_path / "one" / "a.txt").symlink_to(tmp_path / "secret")
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {"secret": "keep"}


def test_remove_folder_needs_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk nothing new can be made, and old folders have to be deleted all the same."""
    write(tmp_path / "one")
    monkeypatch.setattr(os, "mkdir", disk_full)
    remove_folder(tmp_path / "one", names=NAMES)
    assert tree(tmp_path) == {}


def test_remove_folder_names_what_it_cannot_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is whole as before."""
    write(tmp_path / "one")
    before = tree(tmp_path)
    monkeypatch.setattr(os, "rename", disk_full)
    with pytest.raises(PathNotWritableError, match="could not be deleted") as caught:
        remove_folder(tmp_path / "one", names=NAMES)
    assert f"`{tmp_path / 'one'}`" in str(caught.value)
    assert tree(tmp_path) == before


# What a crash leaves


def left(tmp_path: Path, name: str) -> Path:
    """Write a folder under a name that only a crash leaves."""
    write(tmp_path / "made", "old")
    return (tmp_path / "made").rename(tmp_path / name)


def test_a_sweep_of_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    """Before the first folder is written, there is nothing to clean up."""
    sweep_unfinished(tmp_path / "missing", names=NAMES)
    assert tree(tmp_path) == {}


def test_a_sweep_deletes_unfinished_folders(tmp_path: Path) -> None:
    """Whole ones stay."""
    write(tmp_path / "one")
    before = tree(tmp_path)
    left(tmp_path, ".one-0a1b2c3d.unfinished")
    left(tmp_path, ".two-0a1b2c3d.unfinished")
    sweep_unfinished(tmp_path, names=NAMES)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("clean", [sweep_unfinished, None])
def test_a_former_folder_that_nothing_replaced_is_found(
    tmp_path: Path, clean: Callable[..., None] | None
) -> None:
    """A crash between two renames left nothing under the name: the former one is still there."""
    former = left(tmp_path, ".one-0a1b2c3d.former")
    left(tmp_path, ".one-two-0a1b2c3d.former")  # Of a folder whose name begins alike.
    assert former_folder(tmp_path / "one") == former
    if clean is not None:
        clean(tmp_path, names=NAMES)
        assert former_folder(tmp_path / "one") is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-two"]


def test_a_former_folder_that_was_replaced_is_deleted(tmp_path: Path) -> None:
    """A crash before its deletion left it beside the new one."""
    left(tmp_path, ".one-0a1b2c3d.former")
    write(tmp_path / "other", "new")
    (tmp_path / "other").rename(tmp_path / "one")
    assert former_folder(tmp_path / "one") is None
    sweep_unfinished(tmp_path, names=NAMES)
    assert tree(tmp_path) == {"one": "/", "one/a.txt": "new", "one/b.txt": "new"}


def test_the_next_write_deletes_a_former_folder(tmp_path: Path) -> None:
    """Who writes the same folder again and again leaves nothing behind after all."""
    left(tmp_path, ".one-0a1b2c3d.former")
    write(tmp_path / "one")
    assert tree(tmp_path) == {"one": "/", "one/a.txt": "new", "one/b.txt": "new"}
