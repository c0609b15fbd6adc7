"""A damaged checkpoint is never loaded, and the damaged file is named."""

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


@pytest.fixture(params=["blocking", "background"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return an intact checkpoint in its own folder."""
    return write(tmp_path / "run" / "one", blocking=request.param == "blocking")


def truncations(content: bytes) -> Iterator[bytes]:
    """Yield the first bytes of a file, cut at 20 offsets."""
    for part in range(20):
        yield content[: part * len(content) // 20]


def flips(content: bytes) -> Iterator[bytes]:
    """Yield a file 50 times, each time with a different bit flipped."""
    for bit in random.Random(0).sample(range(8 * len(content)), 50):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        yield bytes(changed)


def assert_refused(checkpoint: Path, name: str) -> None:
    """Check that the checkpoint is refused from its folder and the parent, with a reason."""
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
    """One flipped bit at any of 50 positions in each file makes it unusable."""
    for changed in flips((checkpoint / name).read_bytes()):
        (checkpoint / name).write_bytes(changed)
        assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_grew_is_named(checkpoint: Path, name: str) -> None:
    """Extra bytes at the end of a file are damage too."""
    with (checkpoint / name).open("ab") as file:
        file.write(b"{}")
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    """A checkpoint that lacks any of its files is not used."""
    (checkpoint / name).unlink()
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_named(checkpoint: Path, name: str) -> None:
    """Only regular files are read."""
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
    """A manifest describes the files of its own folder only."""
    other = write(checkpoint.parent / "two", step=2)
    shutil.copy(other / MANIFEST, checkpoint / MANIFEST)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: Path, name: str) -> None:
    """The newest intact one is used, and the warning names the damage in the newer one."""
    whole, damaged = write(tmp_path / "whole"), write(tmp_path / "damaged", step=2)
    (damaged / name).write_bytes((damaged / name).read_bytes()[:-9])
    with pytest.warns(UserWarning, match="skipped") as caught:
        checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == whole
    assert str(damaged) in str(caught[0].message)
    assert name in str(caught[0].message)


def test_an_older_damaged_one_is_not_read(tmp_path: Path) -> None:
    """If the newest one is intact, the others are not read."""
    damaged, whole = write(tmp_path / "damaged"), write(tmp_path / "whole", step=2)
    (damaged / STATE).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == whole


def test_every_checkpoint_is_listed_if_none_is_intact(tmp_path: Path) -> None:
    """The error names every checkpoint and its damaged file."""
    for step, name in enumerate((WEIGHTS, STATE, HISTORY)):
        (write(tmp_path / f"n{step}", step) / name).write_bytes(b"?")
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(tmp_path)
    for step, name in enumerate((WEIGHTS, STATE, HISTORY)):
        assert str(tmp_path / f"n{step}" / name) in str(caught.value)


def test_a_run_resumes_from_the_newest_intact_one(tmp_path: Path) -> None:
    """A fit that finds a damaged checkpoint warns, and ends with the bits of the intact one."""
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
    """The Trainer that was to load it is unchanged."""
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


def test_a_missing_folder_and_an_empty_one_contain_no_checkpoint(tmp_path: Path) -> None:
    """Both mean starting from scratch; only loading one checkpoint is an error."""
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None
    with pytest.raises(FileMissingError, match="missing"):
        open_checkpoint(tmp_path / "missing")


def test_a_file_in_place_of_a_checkpoint_is_an_error(checkpoint: Path) -> None:
    """If a file of the checkpoint is passed, the message names the folder to pass."""
    with pytest.raises(CheckpointError, match="is a file") as caught:
        newest_checkpoint(checkpoint / STATE)
    assert f"`{checkpoint}`" in str(caught.value)


def test_files_of_the_user_next_to_checkpoints_are_not_damage(checkpoint: Path) -> None:
    """Weights and a history in the same folder do not hide the checkpoints."""
    run = checkpoint.parent
    for folder in (run, run / "exported"):
        folder.mkdir(exist_ok=True)
        shutil.copy(checkpoint / WEIGHTS, folder / WEIGHTS)
        shutil.copy(checkpoint / HISTORY, folder / HISTORY)
    found = newest_checkpoint(run)
    assert found is not None
    assert found.path == checkpoint
    assert newest_checkpoint(run / "exported") is None
