"""Checkpoints are written atomically, whatever the disk does meanwhile."""

from __future__ import annotations

import dataclasses
import enum
import gc
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import warnings
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetunelib import Trainer
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.errors import (
    CheckpointError,
    FileMissingError,
    PathNotWritableError,
)
from finetunelib.training import Callback, History, TrainContext
from finetunelib.training._checkpointing.folder import (
    Checkpoint,
    checkpoints_in,
    newest_checkpoint,
    open_checkpoint,
    remove_checkpoint,
    sweep,
)
from finetunelib.training._checkpointing.manifest import FILES, HISTORY, MANIFEST, STATE, WEIGHTS
from support_disk import files_limited_to
from training._checkpointing.checkpoint_files import (
    COMBINATIONS,
    DATA,
    IN_THE_BACKGROUND,
    Combination,
    Crash,
    bits,
    calls_of,
    disk_full,
    failing_disk,
    hidden,
    trainer,
    write,
)

# What is in a checkpoint


def test_a_checkpoint_has_these_files_and_no_others(tmp_path: Path) -> None:
    """One folder with weights, state, history and manifest, and nothing next to it."""
    path = write(tmp_path / "one")
    assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_the_manifest_contains_what_the_bits_depend_on(tmp_path: Path) -> None:
    """Versions, threads and device, the counters, and the size and digest of each file."""
    trained = trainer(seed=3)
    trained.fit(DATA, epochs=2)
    path = trained.save_checkpoint(tmp_path / "one")
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["format"] == 1
    assert manifest["torch"] == torch.__version__
    assert {"finetunelib", "python", "digest", "created_ns"} <= manifest.keys()
    assert manifest["threads"] == torch.get_num_threads()
    assert (manifest["device"], manifest["seed"]) == ("cpu", 3)
    assert (manifest["epoch"], manifest["step"], manifest["batch"]) == (2, 8, 0)
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    assert sizes == {name: (path / name).stat().st_size for name in (WEIGHTS, STATE, HISTORY)}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """State and history have the same values."""
    numbers = {"a": [1, 2.5, None, True, "x", b"y"], 3: (torch.arange(3), torch.Size([2]))}
    checkpoint = open_checkpoint(write(tmp_path / "one", step=4, numbers=numbers))
    assert checkpoint.state["numbers"]["a"] == numbers["a"]
    assert checkpoint.state["numbers"][3][0].equal(torch.arange(3))
    assert checkpoint.state["numbers"][3][1] == torch.Size([2])
    assert checkpoint.history["step"] == [4]


def test_the_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    """Other users may read a checkpoint if the umask allows it."""
    before = os.umask(0o022)
    try:
        path = write(tmp_path / "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE((path / name).stat().st_mode) for name in FILES} == {0o644}


Point = namedtuple("Point", "x y")  # noqa: PYI024 - what users have


class Color(enum.IntEnum):
    """A number that `torch.save` writes as an object."""

    RED = 1


class Table(dict[str, int]):
    """A subclass of dict."""


@pytest.mark.parametrize(
    "value",
    [object(), np.zeros(2), Color.RED, Point(1, 2), Table(a=1), defaultdict(int), {1}],
    ids=lambda value: type(value).__name__,
)
def test_an_object_that_could_not_be_read_back_is_refused(tmp_path: Path, value: object) -> None:
    """Writing the checkpoint fails, with the object's position in the state and its type."""
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "one", mine={"deep": [0, value]})
    assert "state['mine']['deep'][1]" in str(caught.value)
    assert type(value).__name__ in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (np.float64(0.1), 0.1),
        (OrderedDict(a=1), OrderedDict(a=1)),
        (Counter([1, 1]), Counter([1, 1])),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (nn.Parameter(torch.ones(2)), torch.ones(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_in_schedulers_and_optimizers_are_kept(
    tmp_path: Path, value: object, back: object
) -> None:
    """Numpy numbers and common types of dicts are read back with the same values."""
    state = open_checkpoint(write(tmp_path / "one", value=value)).state["value"]
    if isinstance(back, torch.Tensor):
        assert torch.equal(state, back)
    else:
        assert state == back
        assert type(state) is type(back)


def test_a_learning_rate_of_numpy_can_be_resumed(tmp_path: Path) -> None:
    """`linspace` returns numpy numbers, which PyTorch would not read back."""
    trained = trainer(lr=np.linspace(0.1, 0.2, 3)[1])
    trained.fit(DATA, epochs=1)
    path = trained.save_checkpoint(tmp_path / "one")
    resumed = trainer(lr=0.15)
    resumed.fit(DATA, epochs=2, resume_from=path)
    trained.fit(DATA, epochs=1)
    assert bits(resumed) == bits(trained)


# Which checkpoint is the newest


def test_the_newest_is_the_last_one_written(tmp_path: Path) -> None:
    """Names, steps and file times do not matter."""
    for name, step in (("b", 3), ("c", 1), ("a", 2)):
        write(tmp_path / name, step)
    os.utime(tmp_path / "b")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.path == tmp_path / "a"
    assert [path.name for path in checkpoints_in(tmp_path)] == ["b", "c", "a"]


def test_a_clock_that_was_set_back_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is newer than those that existed when it was written."""
    write(tmp_path / "one")
    monkeypatch.setattr("time.time_ns", lambda: 5)
    write(tmp_path / "two")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.path.name == "two"


def test_an_existing_checkpoint_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    """The folder has the second state, and nothing of the first is left."""
    write(tmp_path / "one", step=1)
    write(tmp_path / "one", step=2)
    assert open_checkpoint(tmp_path / "one").state == {"step": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


# Files of the user


def test_a_folder_with_files_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    """A checkpoint does not overwrite notes, or weights that are not part of a checkpoint."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("train")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / WEIGHTS).write_bytes(b"of the user")
    for name in ("notes", "weights"):
        with pytest.raises(PathNotWritableError, match="lost") as caught:
            write(tmp_path / name)
        assert f"`{tmp_path / name}`" in str(caught.value)
    assert (tmp_path / "notes" / "todo.txt").read_text() == "train"
    assert (tmp_path / "weights" / WEIGHTS).read_bytes() == b"of the user"


def test_a_file_of_the_user_in_a_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    """Only the files of the checkpoint are deleted."""
    path = write(tmp_path / "one")
    (path / "notes.txt").write_text("keep")
    remove_checkpoint(path)
    assert [entry.name for entry in path.iterdir()] == ["notes.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_a_sweep_deletes_unfinished_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    """Only the known files of unfinished folders are deleted."""
    whole = write(tmp_path / "one")
    unfinished = shutil.copytree(whole, tmp_path / ".two-0a1b2c3d.unfinished")
    (unfinished / MANIFEST).unlink()
    mixed = shutil.copytree(unfinished, tmp_path / ".three-0a1b2c3d.unfinished")
    (mixed / "notes.txt").write_text("keep")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / STATE).write_text("keep")
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        ".hidden",
        ".three-0a1b2c3d.unfinished",
        "one",
    ]
    assert [entry.name for entry in mixed.iterdir()] == ["notes.txt"]
    assert open_checkpoint(whole).state == {"step": 1}


def test_an_unfinished_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    """It is not used, even with all of its files."""
    shutil.copytree(write(tmp_path / "a" / "one"), tmp_path / ".one-0a1b2c3d.unfinished")
    assert newest_checkpoint(tmp_path) is None


# Disk errors


def newest_in(folder: Path) -> Checkpoint:
    """Return the newest checkpoint, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = newest_checkpoint(folder)
    assert newest is not None
    return newest


def calls_of_second_write(tmp_path: Path, name: str, *, blocking: bool = True) -> list[str]:
    """Return the names of the calls of writing a second checkpoint."""
    write(tmp_path / "count" / "one")
    calls = calls_of(lambda: write(tmp_path / "count" / name, step=2, blocking=blocking))
    shutil.rmtree(tmp_path / "count")
    return calls


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("name", ["two", "one"])
def test_a_failing_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, name: str, blocking: bool
) -> None:
    """An error at any write, fsync or rename is reported, and nothing is left over."""
    calls = calls_of_second_write(tmp_path, name, blocking=blocking)
    assert {"fsync", "rename", "mkdir", "save", "save_file", "write_text"} <= {*calls}
    for position, call in enumerate(calls):
        run = tmp_path / str(position)
        write(run / "one")
        error = None
        try:
            with failing_disk(position, disk_full):
                write(run / name, step=2, blocking=blocking)
        except PathNotWritableError as caught:
            error = str(caught)
        step = 2 if error is None else 1
        assert newest_in(run).state == {"step": step}, (position, call)
        assert newest_in(run / name if step == 2 else run / "one").state == {"step": step}
        if error is not None:
            assert f"`{run / name}" in error, (position, call)
            assert "No space left" in error, (position, call)
            assert ".unfinished" not in error, (position, call)
        # Folders that cannot be deleted are left for the next sweep.
        if call in ("unlink", "rmdir"):
            sweep(run)
        assert hidden(run) == [], (position, call)


def test_only_the_deleting_of_leftovers_may_fail_unnoticed(tmp_path: Path) -> None:
    """A disk error before the new checkpoint is complete is never ignored."""
    calls = calls_of_second_write(tmp_path, "two")
    last = len(calls) - 1 - calls[::-1].index("rename")
    for position in range(last + 1):
        run = tmp_path / str(position)
        # These may fail silently: some systems cannot flush a folder, and a sweep deletes again.
        if calls[position] in ("fsync", "unlink", "rmdir"):
            continue
        with pytest.raises(PathNotWritableError), failing_disk(position, disk_full):
            write(run / "two", step=2)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("name", ["two", "one"])
def test_a_crash_at_any_call_leaves_an_intact_checkpoint(
    tmp_path: Path, name: str, blocking: bool
) -> None:
    """After a crash at any call, an intact one is found, from both paths."""
    for position in range(len(calls_of_second_write(tmp_path, name, blocking=blocking))):
        run = tmp_path / str(position)
        write(run / "one")
        with pytest.raises(Crash), failing_disk(position, Crash):
            write(run / name, step=2, blocking=blocking)
        assert newest_in(run).state["step"] in (1, 2)
        assert newest_in(run / "one").state["step"] in (1, 2)
        sweep(run)
        assert hidden(run) == []
        assert newest_in(run / "one").state["step"] in (1, 2)
        write(run / name, step=3)
        assert newest_in(run).state == {"step": 3}


def test_a_crash_in_a_deletion_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that was to be deleted is either complete or gone."""
    counted = write(tmp_path / "count" / "one")
    for position in range(len(calls_of(lambda: remove_checkpoint(counted)))):
        run = tmp_path / str(position)
        old, new = write(run / "one"), write(run / "two", step=2)
        with pytest.raises(Crash), failing_disk(position, Crash):
            remove_checkpoint(old)
        assert all(open_checkpoint(path) for path in checkpoints_in(run))
        assert newest_in(run).path == new
        sweep(run)
        assert hidden(run) == []


def test_a_checkpoint_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    """The error has its path."""
    path = write(tmp_path / "one")
    with (
        pytest.raises(PathNotWritableError, match="could not be deleted") as caught,
        failing_disk(0, disk_full),
    ):
        remove_checkpoint(path)
    assert f"`{path}`" in str(caught.value)
    assert open_checkpoint(path).state == {"step": 1}


def large_files(path: Path, name: str, step: int) -> None:
    """Write a checkpoint in which one file has more than 64 KiB."""
    from finetunelib.training._checkpointing.content import Content
    from finetunelib.training._checkpointing.folder import write_checkpoint

    rows = 3000 if name == HISTORY else 1
    history = History([{"epoch": float(row), "step": float(step)} for row in range(rows)])
    layer = nn.Linear(200, 100) if name == WEIGHTS else nn.Linear(1, 1)
    state = {"step": step, "large": torch.zeros(20_000 if name == STATE else 1)}
    words = "x" * (70_000 if name == MANIFEST else 1)
    about = {"epoch": 1, "step": step, "batch": 0, "words": words}
    write_checkpoint(path, Content.of(layer, state, history, about))


@pytest.mark.parametrize("limit", [0, 1, 4096, 50_000])
@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_leaves_the_previous_checkpoint(
    tmp_path: Path, name: str, limit: int
) -> None:
    """Whichever file does not fit, the error is clear, and nothing is left over."""
    large_files(tmp_path / "one", name, 1)
    for target in ("two", "one"):
        with (
            pytest.raises(PathNotWritableError, match="could not be written"),
            files_limited_to(limit),
        ):
            large_files(tmp_path / target, name, 2)
        assert newest_in(tmp_path).path == tmp_path / "one"
        assert newest_in(tmp_path).state["step"] == 1
        assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_training_on_a_full_disk_ends_with_a_clear_error(tmp_path: Path) -> None:
    """The error names the checkpoint, and the previous one can be resumed from."""
    whole = trainer()
    whole.fit(DATA, epochs=3)
    stopped = trainer(callbacks=[ModelCheckpoint(tmp_path)])
    stopped.fit(DATA, epochs=1)
    with files_limited_to(100), pytest.raises(PathNotWritableError, match="epoch-0002"):
        stopped.fit(DATA, epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001-step-00000004"]
    resumed = trainer(callbacks=[ModelCheckpoint(tmp_path)])
    resumed.fit(DATA, epochs=3, resume_from=tmp_path)
    assert bits(resumed) == bits(whole)


def test_state_that_does_not_fit_says_why(tmp_path: Path) -> None:
    """The message contains the error of the system, and not the assertion in `torch.save`."""
    with files_limited_to(50_000), pytest.raises(PathNotWritableError) as caught:
        large_files(tmp_path / "one", STATE, 1)
    assert "File too large" in str(caught.value)
    assert "enforce" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800"], ids=["long", "NUL", "surrogate"])
def test_path_that_no_folder_can_have_is_rejected(tmp_path: Path, name: str) -> None:
    """Saving to, loading and resuming from such a path raise errors of the library."""
    there = trainer()
    with pytest.raises(PathNotWritableError):
        there.save_checkpoint(tmp_path / name)
    with pytest.raises((CheckpointError, FileMissingError)):
        there.load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError):
        there.fit(DATA, epochs=1, resume_from=tmp_path / name)


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are saved to and loaded from a path that starts with `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    there = trainer()
    there.fit(DATA, epochs=1)
    assert there.save_checkpoint("~/one") == tmp_path / "one"
    trainer().load_checkpoint("~/one")


# Folders that change meanwhile


def refuse(folder: Path) -> Callable[[Any, int], bool]:
    """Return an `os.access` that reports one folder as read-only."""

    def may(path: Any, mode: int) -> bool:
        return Path(path) != folder

    return may


def test_a_read_only_folder_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder."""
    trained = trainer()
    trained.fit(DATA, epochs=1)
    # Not with chmod: root may write to read-only folders.
    monkeypatch.setattr(os, "access", refuse(tmp_path))
    with pytest.raises(PathNotWritableError, match="read-only") as caught:
        trained.save_checkpoint(tmp_path / "one")
    assert f"`{tmp_path}`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_read_only_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` raises the error, and the previous checkpoint is kept."""

    class Lock(Callback):
        def on_checkpoint(self, context: TrainContext) -> None:
            monkeypatch.setattr(os, "access", refuse(tmp_path))

    with pytest.raises(PathNotWritableError, match="read-only"):
        trainer(callbacks=[ModelCheckpoint(tmp_path), Lock()]).fit(DATA, epochs=2)
    assert newest_in(tmp_path).history["epoch"] == [1]
    assert hidden(tmp_path) == []


def test_a_folder_that_was_deleted_is_created_again(tmp_path: Path) -> None:
    """If the folder is deleted between two checkpoints, the next one is still written."""

    class Delete(Callback):
        def on_epoch_start(self, context: TrainContext) -> None:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    trainer(callbacks=[ModelCheckpoint(tmp_path / "run"), Delete()]).fit(DATA, epochs=2)
    assert newest_in(tmp_path / "run").history["epoch"] == [1, 2]


def test_a_folder_that_is_deleted_during_a_write_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the path of the checkpoint."""
    real = torch.save

    def save(state: object, file: Path) -> None:
        real(state, file)
        shutil.rmtree(tmp_path / "run")

    trained = trainer()
    trained.fit(DATA, epochs=1)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(PathNotWritableError) as caught:
        trained.save_checkpoint(tmp_path / "run" / "one")
    assert str(tmp_path / "run" / "one") in str(caught.value)
    assert hidden(tmp_path) == []


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    """Nothing is written, and the file is kept."""
    (tmp_path / "run").write_text("a file")
    with pytest.raises(PathNotWritableError, match="is a file"):
        write(tmp_path / "run")
    with pytest.raises(PathNotWritableError, match="is a file"):
        ModelCheckpoint(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "a file"


# Runs whose process ends at a write


@pytest.mark.slow
@pytest.mark.parametrize("combination", [*COMBINATIONS, *IN_THE_BACKGROUND], ids=str)
def test_a_run_that_crashes_at_any_call_resumes_bit_for_bit(
    tmp_path: Path, combination: Combination
) -> None:
    """After a crash at any call of a run, it resumes and ends with the same bits."""
    combination = dataclasses.replace(combination, samples=4)
    combination.train(tmp_path / "first")  # Late imports write their bytecode now.
    whole: list[Trainer] = []
    calls = calls_of(lambda: whole.append(combination.train(tmp_path / "whole")))
    expected = bits(whole[0])
    # With workers, which take seconds to end after a crash, test only some of the calls.
    for position in range(0, len(calls), 64 if combination.workers else 1):
        run = tmp_path / str(position)
        with pytest.raises(Crash), failing_disk(position, Crash):
            combination.train(run)
        if combination.workers:
            gc.collect()  # Ends those of the crashed one, which the next one would inherit.
        found = newest_checkpoint(run)
        done = found is not None and found.manifest["epoch"] == combination.epochs
        resumed = combination.train(run, resume_from=run)
        assert bits(resumed) == expected, (position, calls[position])
        # A finished run starts nothing, so it does not sweep.
        assert hidden(run) == [] or done
        shutil.rmtree(run)


@pytest.mark.slow
def test_a_checkpoint_is_read_in_a_fresh_process(tmp_path: Path) -> None:
    """Another process loads it without a warning."""
    trained = trainer()
    trained.fit(DATA, epochs=1)
    path = trained.save_checkpoint(tmp_path / "one")
    script = f"""
        import torch
        torch.set_num_threads(1)
        from finetunelib import Trainer
        trainer = Trainer(torch.nn.Linear(4, 3), device="cpu", progress=False)
        trainer.load_checkpoint({str(path)!r})
        print(trainer.model.weight.tolist())
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout) == trained.model.state_dict()["weight"].tolist()
