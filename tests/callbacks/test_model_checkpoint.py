"""Checkpoints written during a run: when, how many, and which one is the best."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import Trainer
from finetunelib._files.locks import FolderLock
from finetunelib.callbacks import EMA, ModelCheckpoint
from finetunelib.errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
)
from finetunelib.training import Callback, TrainContext
from finetunelib.training._checkpointing.folder import open_checkpoint
from training._checkpointing.checkpoint_files import forge

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
DATA = (INPUTS, torch.tensor([0, 1, 2, 0, 1, 2]))


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """Return a silent Trainer of a layer with known weights; an epoch has three steps."""
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, 0.5)
    nn.init.constant_(model.bias, 0.0)
    quiet: dict[str, Any] = {"batch_size": 2, "device": "cpu", "progress": False}
    return Trainer(model, callbacks=callbacks, **(quiet | options))


def names(folder: Path) -> list[str]:
    """Return the names of all files in a folder, including hidden ones."""
    return sorted(path.name for path in folder.iterdir())


def named(*places: tuple[int, int]) -> list[str]:
    """Return the names of the checkpoints of these epochs and steps."""
    return [f"epoch-{epoch:04d}-step-{step:08d}" for epoch, step in places]


class Measure(Callback):
    """Replaces the losses in the history by given values."""

    def __init__(self, values: Iterable[float]) -> None:
        self.values = list(values)

    def on_epoch_end(self, context: TrainContext) -> None:
        context.history.rows[-1]["train_loss"] = self.values[context.state.epoch - 1]


def test_a_checkpoint_is_written_after_every_epoch_by_default(tmp_path: Path) -> None:
    """By default the newest two are kept."""
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=3)
    assert names(tmp_path) == named((2, 6), (3, 9))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_steps": 1}, [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]),
        ({"every_n_steps": 2}, [(0, 2), (1, 4), (1, 6)]),
        ({"every_n_steps": 4}, [(1, 4)]),
        ({"every_n_steps": 7}, []),
        ({"every_n_epochs": 1}, [(1, 3), (2, 6)]),
        ({"every_n_epochs": 2}, [(2, 6)]),
        ({"every_n_steps": 3, "every_n_epochs": 2}, [(0, 3), (1, 6), (2, 6)]),
        ({"every_n_steps": 4, "monitor": "train_loss"}, [(1, 3), (1, 4), (2, 6)]),
    ],
)
def test_checkpoints_are_written_when_they_are_due(
    tmp_path: Path, options: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    """Steps and epochs are counted over the whole run."""
    trainer(ModelCheckpoint(tmp_path, keep=99, **options)).fit(DATA, epochs=2)
    assert names(tmp_path) == named(*expected)


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_requested_number_is_kept(tmp_path: Path, keep: int) -> None:
    """Older checkpoints are deleted completely."""
    trainer(ModelCheckpoint(tmp_path, every_n_steps=1, keep=keep)).fit(DATA, epochs=2)
    assert names(tmp_path) == named((0, 2), (0, 3), (1, 4), (1, 5), (1, 6))[-keep:]


def test_there_are_never_fewer_complete_ones_than_kept(tmp_path: Path) -> None:
    """An older checkpoint is deleted only after the newer one is on disk."""
    counts: list[int] = []

    class Look(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            counts.append(len([open_checkpoint(path) for path in tmp_path.iterdir()]))

    trainer(ModelCheckpoint(tmp_path, every_n_steps=1), Look()).fit(DATA, epochs=2)
    assert counts == [0, 1, 2, 2, 2, 2]


def test_a_checkpoint_contains_the_states_of_all_callbacks(tmp_path: Path) -> None:
    """It also contains the state of callbacks that come later in the list."""
    ema = EMA(0.5)
    trained = trainer(ModelCheckpoint(tmp_path, every_n_steps=3), ema)
    trained.fit(DATA, epochs=1)
    state = open_checkpoint(tmp_path / named((0, 3))[0]).state
    averages = state["callbacks"]["EMA"]["averages"]
    assert all(averages[n].equal(t) for n, t in ema.state_dict()["averages"].items())


# The best checkpoint


def test_the_best_one_is_kept_with_the_newest(tmp_path: Path) -> None:
    """The checkpoint of the epoch with the lowest loss is kept, however old it is."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer(Measure([3.0, 1.0, 2.0, 2.0, 1.5]), callback).fit(DATA, epochs=5)
    assert callback.best_path == tmp_path / named((2, 6))[0]
    assert names(tmp_path) == named((2, 6), (4, 12), (5, 15))


def test_a_previous_best_one_is_deleted(tmp_path: Path) -> None:
    """After a better epoch, the previous best checkpoint is treated like any other."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer(Measure([2.0, 3.0, 3.0, 3.0, 1.0, 3.0]), callback).fit(DATA, epochs=6)
    assert callback.best_path == tmp_path / named((5, 15))[0]
    assert names(tmp_path) == named((5, 15), (6, 18))


def test_a_loss_that_is_not_finite_is_not_the_best(tmp_path: Path) -> None:
    """Neither nan nor minus infinity counts."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer(Measure([math.nan, 5.0, -math.inf]), callback).fit(DATA, epochs=3)
    assert callback.best_path == tmp_path / named((2, 6))[0]


def test_higher_is_better_for_accuracy(tmp_path: Path) -> None:
    """The highest accuracy is the best, also on validation data."""
    callback = ModelCheckpoint(tmp_path, monitor="val_accuracy", keep=9)
    trained = trainer(callback, lr=0.5)
    history = trained.fit(DATA, DATA, epochs=4)
    values = history["val_accuracy"]
    best = values.index(max(values)) + 1
    assert callback.best_path == tmp_path / named((best, 3 * best))[0]


def test_only_epochs_with_a_checkpoint_can_be_the_best(tmp_path: Path) -> None:
    """An epoch without a checkpoint is not compared."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss", every_n_epochs=2)
    trainer(Measure([1.0, 4.0, 0.5, 3.0]), callback).fit(DATA, epochs=4)
    assert callback.best_path == tmp_path / named((4, 12))[0]


def test_without_a_monitor_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    """Nothing is compared."""
    callback = ModelCheckpoint(tmp_path)
    trainer(callback).fit(DATA, epochs=2)
    assert callback.best_path is None


def test_the_best_one_is_known_after_a_restart(tmp_path: Path) -> None:
    """A new process keeps the best checkpoint and compares with its value."""
    first = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer(Measure([3.0, 1.0, 2.0]), first).fit(DATA, epochs=3)
    second = ModelCheckpoint(tmp_path, monitor="train_loss")
    resumed = trainer(Measure([0.0, 0.0, 0.0, 2.0, 1.5]), second)
    resumed.fit(DATA, epochs=5, resume_from=tmp_path)
    assert second.best_path == first.best_path == tmp_path / named((2, 6))[0]
    assert names(tmp_path) == named((2, 6), (4, 12), (5, 15))


def test_the_state_survives_save_and_load(tmp_path: Path) -> None:
    """Another callback restores the best checkpoint and its value."""
    callback = ModelCheckpoint(tmp_path, monitor="train_loss")
    trainer(Measure([3.0, 1.0]), callback).fit(DATA, epochs=2)
    other = ModelCheckpoint(tmp_path, monitor="train_loss")
    other.load_state_dict(callback.state_dict())
    assert other.best_path == callback.best_path
    assert other.state_dict() == callback.state_dict()


# Resuming


def test_a_resumed_run_continues_the_numbers(tmp_path: Path) -> None:
    """The names count the epochs and steps of the whole run."""
    trainer(ModelCheckpoint(tmp_path, keep=9)).fit(DATA, epochs=2)
    trainer(ModelCheckpoint(tmp_path, keep=9)).fit(DATA, epochs=3, resume_from=tmp_path)
    assert names(tmp_path) == named((1, 3), (2, 6), (3, 9))


def test_a_second_fit_continues_the_numbers(tmp_path: Path) -> None:
    """Two calls of `fit` count as one run."""
    trained = trainer(ModelCheckpoint(tmp_path, keep=9))
    trained.fit(DATA, epochs=1)
    trained.fit(DATA, epochs=1)
    assert names(tmp_path) == named((1, 3), (2, 6))


def test_a_folder_with_checkpoints_of_another_run_is_refused(tmp_path: Path) -> None:
    """A new run does not delete them, and the error says how to continue."""
    first = trainer(ModelCheckpoint(tmp_path))
    first.fit(DATA, epochs=3)
    with pytest.raises(CheckpointError, match="resume_from") as caught:
        trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=5)
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == named((2, 6), (3, 9))
    again = trainer(ModelCheckpoint(tmp_path))
    assert len(again.fit(DATA, epochs=4, resume_from=tmp_path)) == 4
    first.fit(DATA, epochs=1)  # It is the same run, which may continue.
    assert names(tmp_path) == named((3, 9), (4, 12))


def test_checkpoints_of_another_run_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """A run that finds some during training keeps them."""

    class Other(Callback):
        def on_epoch_start(self, context: TrainContext) -> None:
            if context.state.epoch == 1:
                trainer(ModelCheckpoint(tmp_path / "other")).fit(DATA, epochs=1)
                (tmp_path / "other" / named((1, 3))[0]).rename(tmp_path / "run" / named((9, 9))[0])

    trainer(ModelCheckpoint(tmp_path / "run"), Other()).fit(DATA, epochs=4)
    assert names(tmp_path / "run") == named((3, 9), (4, 12), (9, 9))


def test_checkpoints_of_an_early_version_belong_to_the_run_that_resumes(tmp_path: Path) -> None:
    """They have no id, and a run that does not resume from them is refused."""
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1)
    path = tmp_path / named((1, 3))[0]
    forge(path, run=None)
    with pytest.raises(CheckpointError, match="another run"):
        trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1)
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=3, resume_from=tmp_path)
    assert names(tmp_path) == named((2, 6), (3, 9))


def test_two_runs_at_once_cannot_use_one_folder(tmp_path: Path) -> None:
    """The second run is refused, and the first one continues."""
    refused: list[str] = []

    class Second(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            with pytest.raises(CheckpointError) as caught:
                trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1, resume_from=tmp_path)
            refused.append(str(caught.value))

    trainer(ModelCheckpoint(tmp_path), Second()).fit(DATA, epochs=2)
    assert len(refused) == 2
    assert all("another process" in message and str(tmp_path) in message for message in refused)
    assert names(tmp_path) == named((1, 3), (2, 6))
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=3, resume_from=tmp_path)


def test_a_run_that_failed_leaves_the_folder_to_others(tmp_path: Path) -> None:
    """After an error of a callback, the folder is no longer locked."""

    class Fails(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            raise KeyError("step")

    with pytest.raises(KeyError):
        trainer(ModelCheckpoint(tmp_path), Fails()).fit(DATA, epochs=1)
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1)
    assert names(tmp_path) == named((1, 3))


def test_leftovers_of_a_killed_process_are_deleted_at_the_start(tmp_path: Path) -> None:
    """Unfinished folders are deleted before the first step, except those of living processes."""
    trainer(ModelCheckpoint(tmp_path)).fit(DATA, epochs=1)
    whole = tmp_path / named((1, 3))[0]
    shutil.copytree(whole, tmp_path / ".epoch-0002-step-00000006-0a1b2c3d.unfinished")
    living = shutil.copytree(whole, tmp_path / ".epoch-0009-step-00000009-0a1b2c3d.unfinished")
    lock = FolderLock(living)
    other = trainer(ModelCheckpoint(tmp_path, every_n_epochs=9))
    other.fit(DATA, epochs=2, resume_from=tmp_path)
    lock.release()
    assert names(tmp_path) == [living.name, *named((1, 3))]


def test_a_missing_folder_is_created(tmp_path: Path) -> None:
    """It is created with its parents, but only with the first checkpoint."""
    folder = tmp_path / "runs" / "one"
    callback = ModelCheckpoint(folder)
    assert not folder.exists()
    trainer(callback).fit(DATA, epochs=1)
    assert names(folder) == named((1, 3))


# Other files in the folder


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    """Other files, exported weights and checkpoints with other names are not deleted."""
    first = trainer(ModelCheckpoint(tmp_path))
    first.fit(DATA, epochs=1)
    first.save_checkpoint(tmp_path / "mine")
    (tmp_path / "exported").mkdir()
    for folder in (tmp_path, tmp_path / "exported"):
        shutil.copy(tmp_path / "mine" / "model.safetensors", folder)
        shutil.copy(tmp_path / "mine" / "history.json", folder)
    before = {path: path.read_bytes() for path in tmp_path.glob("[!e]*/*")}
    before |= {path: path.read_bytes() for path in tmp_path.glob("exported/*")}
    before |= {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    resumed = trainer(ModelCheckpoint(tmp_path))
    resumed.fit(DATA, epochs=5, resume_from=tmp_path / named((1, 3))[0])
    assert {path: path.read_bytes() for path in before} == before
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == named((4, 12), (5, 15))


def test_two_callbacks_with_two_folders_are_independent(tmp_path: Path) -> None:
    """Each callback keeps its own number of checkpoints."""
    steps = ModelCheckpoint(tmp_path / "steps", every_n_steps=2)
    epochs = ModelCheckpoint(tmp_path / "epochs", keep=3)
    trainer(steps, epochs).fit(DATA, epochs=4)
    assert names(tmp_path / "steps") == named((3, 10), (3, 12))
    assert names(tmp_path / "epochs") == named((2, 6), (3, 9), (4, 12))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1}, "`keep` must be at least 2, .*1"),
        ({"keep": 0}, "`keep` must be at least 2, .*0"),
        ({"every_n_steps": 0}, "`every_n_steps` must be at least 1, .*0"),
        ({"every_n_epochs": -1}, "`every_n_epochs` must be at least 1, .*-1"),
    ],
)
def test_invalid_arguments_are_an_error_that_names_them(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """The message contains the argument and its value, and nothing is written."""
    with pytest.raises(InvalidArgumentError, match=message):
        ModelCheckpoint(tmp_path / "run", **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["every_n_steps", "every_n_epochs", "keep"])
@pytest.mark.parametrize("value", [2.5, "3", True], ids=repr)
def test_numbers_that_are_not_integers_are_an_error(tmp_path: Path, name: str, value: Any) -> None:
    """The error names the argument and its value."""
    with pytest.raises(InvalidTypeError, match=f"`{name}`.*{value!r}"):
        ModelCheckpoint(tmp_path, **{name: value})


def test_a_monitor_that_is_not_measured_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    """The message lists what the run measures."""
    trained = trainer(ModelCheckpoint(tmp_path, monitor="val_loss"))
    with pytest.raises(Exception, match=r"val_loss.*train_loss"):
        trained.fit(DATA, epochs=1)
    assert trained.state.step == 0


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    """The error is raised when the callback is created."""
    (tmp_path / "file").write_text("a file")
    with pytest.raises(PathNotWritableError, match="is a file"):
        ModelCheckpoint(tmp_path / "file" / "run")


def test_checkpoints_at_steps_need_data_that_can_be_read_again(tmp_path: Path) -> None:
    """Data that cannot be read again allows checkpoints at the ends of epochs only."""
    batches = iter([DATA])
    trained = trainer(ModelCheckpoint(tmp_path, every_n_steps=1))
    with pytest.raises(Exception, match="iterator") as caught:
        trained.fit(batches, epochs=1)
    assert isinstance(caught.value.__cause__ or caught.value, CheckpointError)
    assert trained.state.step == 0
    assert names(tmp_path) == []


def test_a_failed_write_can_be_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `on_error="warn"` the run continues without the checkpoint."""
    folder = tmp_path / "run"
    saving = ModelCheckpoint(folder, on_error="warn")

    class Breaks(Callback):
        def on_epoch_start(self, context: TrainContext) -> None:
            if context.state.epoch == 1:
                shutil.rmtree(folder)
                folder.write_text("a file in its place")

    made = trainer(saving, Breaks())
    with pytest.warns(UserWarning, match="A checkpoint is missing"):
        made.fit(DATA, epochs=2)
    assert made.state.epoch == 2


def test_an_unknown_on_error_is_an_error(tmp_path: Path) -> None:
    """The message names the two valid values."""
    wrong: Any = "ignore"
    with pytest.raises(InvalidArgumentError, match='"raise" or "warn"'):
        ModelCheckpoint(tmp_path, on_error=wrong)
