"""A damaged checkpoint is never taken for a whole one, and the file at fault is named."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetunelib.errors import CheckpointError, FileMissingError
from finetunelib.training._checkpointing.folder import newest_checkpoint, open_checkpoint
from finetunelib.training._checkpointing.manifest import FILES, HISTORY, MANIFEST, STATE, WEIGHTS
from training._checkpointing.checkpoint_files import DATA, trainer, write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a whole checkpoint in a folder of its own."""
    return write(tmp_path / "run" / "one")


def truncations(content: bytes) -> Iterator[bytes]:
    """Yield the first bytes of a file, cut at 20 places from its start to before its end."""
    for part in range(20):
        yield content[: part * len(content) // 20]


def flips(content: bytes) -> Iterator[bytes]:
    """Yield a file 50 times, with another bit turned over each time."""
    for bit in random.Random(0).sample(range(8 * len(content)), 50):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        yield bytes(changed)


def assert_refused(checkpoint: Path, name: str) -> None:
    """Check that neither the folder nor its parent gives the checkpoint, and why is said."""
    for path in (checkpoint, checkpoint.parent):
        with pytest.raises(CheckpointError) as caught:
            newest_checkpoint(path)
        assert name in str(caught.value)
        assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(checkpoint: Path, name: str) -> None:
    """Cut at any of 20 offsets, each file makes the checkpoint unusable."""
    content = (checkpoint / name).read_bytes()
    for part in truncations(content):
        (checkpoint / name).write_bytes(part)
        assert_refused(checkpoint, name)
    (checkpoint / name).write_bytes(content)
    assert newest_checkpoint(checkpoint) is not None


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_its_file_named(checkpoint: Path, name: str) -> None:
    """One bit turned over at any of 50 places, in each file, makes it unusable."""
    for changed in flips((checkpoint / name).read_bytes()):
        (checkpoint / name).write_bytes(changed)
        assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_grew_is_named(checkpoint: Path, name: str) -> None:
    """Bytes after a file's end are damage too."""
    with (checkpoint / name).open("ab") as file:
        file.write(b"{}")
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    """Without any one of its files a checkpoint is not used."""
    (checkpoint / name).unlink()
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(checkpoint: Path, name: str) -> None:
    """What is no ordinary file is not read."""
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", [WEIGHTS, STATE, HISTORY])
def test_a_file_of_another_checkpoint_is_named(checkpoint: Path, name: str) -> None:
    """Two checkpoints whose files were swapped are both refused."""
    other = write(checkpoint.parent / "two", step=2)
    before = (checkpoint / name).read_bytes()
    shutil.copy(other / name, checkpoint / name)
    (other / name).write_bytes(before)
    for path in (checkpoint, other):
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(path)


def test_a_manifest_of_another_checkpoint_is_refused(checkpoint: Path) -> None:
    """A manifest describes the files beside it, so another one does not fit."""
    other = write(checkpoint.parent / "two", step=2)
    shutil.copy(other / MANIFEST, checkpoint / MANIFEST)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, name: str) -> None:
    """The newest whole one is used, and what is wrong with the newer one is said."""
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged", step=2)
    (damaged / name).write_bytes((damaged / name).read_bytes()[:-9])
    with pytest.warns(UserWarning, match="skipped") as caught:
        checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == whole
    assert str(damaged) in str(caught[0].message)
    assert name in str(caught[0].message)


def test_an_older_damaged_one_is_not_looked_at(tmp_path: Path) -> None:
    """Where the newest one is whole, nobody reads the bytes of the others."""
    damaged, whole = write(tmp_path / "damaged"), write(tmp_path / "whole", step=2)
    (damaged / STATE).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == whole


def test_what_was_found_is_listed_where_none_is_whole(tmp_path: Path) -> None:
    """The error names every checkpoint and its damaged file."""
    for step, name in enumerate((WEIGHTS, STATE, HISTORY)):
        (write(tmp_path / f"n{step}", step) / name).write_bytes(b"?")
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path)
    for step, name in enumerate((WEIGHTS, STATE, HISTORY)):
        assert str(tmp_path / f"n{step}" / name) in str(caught.value)


def test_a_training_goes_on_from_the_newest_whole_one(tmp_path: Path) -> None:
    """A fit that meets a damaged checkpoint warns, and ends where the whole one leads to."""
    first = trainer()
    first.fit(DATA, epochs=1)
    first.save_checkpoint(tmp_path / "one")
    first.fit(DATA, epochs=1)
    damaged = first.save_checkpoint(tmp_path / "two")
    (damaged / WEIGHTS).write_bytes(b"")
    resumed = trainer()
    with pytest.warns(UserWarning, match="skipped"):
        resumed.fit(DATA, epochs=2, resume_from=tmp_path)
    assert resumed.state == first.state
    assert resumed.model.state_dict()["weight"].equal(first.model.state_dict()["weight"])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path, name: str) -> None:
    """The Trainer that was to take it up is as before."""
    first = trainer()
    first.fit(DATA, epochs=1)
    path = first.save_checkpoint(tmp_path / "one")
    (path / name).write_bytes((path / name).read_bytes()[:-3])
    other = trainer()
    before = {n: t.clone() for n, t in other.model.state_dict().items()}
    for action in (
        lambda: other.load_checkpoint(path),
        lambda: other.fit(DATA, epochs=2, resume_from=path),
    ):
        with pytest.raises(CheckpointError, match=name):
            action()
    assert all(before[n].equal(t) for n, t in other.model.state_dict().items())
    assert len(other.history) == 0
    assert other.state.step == 0


def test_a_missing_folder_and_an_empty_one_hold_no_checkpoint(tmp_path: Path) -> None:
    """Both mean a beginning, and only who asks for one checkpoint hears of an error."""
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None
    with pytest.raises(FileMissingError, match="missing"):
        open_checkpoint(tmp_path / "missing")


def test_a_file_in_place_of_a_checkpoint_is_an_error(checkpoint: Path) -> None:
    """Who names a file of the checkpoint does not start anew, but is told of the folder."""
    with pytest.raises(CheckpointError, match="is a file") as caught:
        newest_checkpoint(checkpoint / STATE)
    assert f"`{checkpoint}`" in str(caught.value)


def test_files_of_the_users_beside_checkpoints_are_no_damage(checkpoint: Path) -> None:
    """Weights and a history that a user keeps in the same folder do not hide the checkpoints."""
    run = checkpoint.parent
    for folder in (run, run / "exported"):
        folder.mkdir(exist_ok=True)
        shutil.copy(checkpoint / WEIGHTS, folder / WEIGHTS)
        shutil.copy(checkpoint / HISTORY, folder / HISTORY)
    found = newest_checkpoint(run)
    assert found is not None
    assert found.path == checkpoint
    assert newest_checkpoint(run / "exported") is None
