"""Callbacks that write the history for other programs."""

from __future__ import annotations

import csv
import errno
import importlib
import math
import os
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetunelib._files.append import append
from finetunelib.callbacks import CSVLogger, EarlyStopping, TensorBoardLogger
from finetunelib.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    PathNotWritableError,
)
from finetunelib.training import Callback, TrainContext
from training._loop.stopping import Stopped
from training.tiny import network, plain_network, points, quiet_trainer, same_weights

# CSV


def test_csv_log_is_the_history_as_csv(tmp_path: Path) -> None:
    """The file equals what `History.to_csv` writes, byte for byte."""
    log = CSVLogger(tmp_path / "log.csv")
    trainer = quiet_trainer(plain_network(), callbacks=[log])
    history = trainer.fit(points(), points(8), epochs=3)
    assert log.path.read_bytes() == history.to_csv(tmp_path / "history.csv").read_bytes()


def test_csv_log_is_complete_after_each_epoch(tmp_path: Path) -> None:
    """During a run the file contains all finished epochs and no partial line."""
    lines: list[int] = []

    class Look(Callback):
        """Counts the lines of the file."""

        def on_epoch_end(self, context: TrainContext) -> None:
            lines.append(len((tmp_path / "log.csv").read_text().splitlines()))

    quiet_trainer(plain_network(), callbacks=[CSVLogger(tmp_path / "log.csv"), Look()]).fit(
        points(8), epochs=3
    )
    assert lines == [2, 3, 4]


def test_csv_log_appends_one_line_after_each_epoch(tmp_path: Path) -> None:
    """The file of the first epoch is kept, and the earlier rows are not written again."""
    path, files = tmp_path / "log.csv", []

    class Look(Callback):
        """Remembers which file is there and how it begins."""

        def on_epoch_end(self, context: TrainContext) -> None:
            files.append((path.stat().st_ino, path.read_bytes()))

    log = CSVLogger(path)
    trainer = quiet_trainer(plain_network(), callbacks=[log, Look()])
    trainer.fit(points(8), epochs=3)
    assert len({number for number, _ in files}) == 1
    assert all(after.startswith(before) for (_, before), (_, after) in pairwise(files))
    trainer.fit(points(8), epochs=2)
    assert path.read_bytes() == trainer.history.to_csv(tmp_path / "history.csv").read_bytes()


@pytest.mark.parametrize("change", ["another column", "changed by somebody", "deleted", "missing"])
def test_csv_log_is_written_again_if_a_line_is_not_enough(tmp_path: Path, change: str) -> None:
    """Nothing is appended to a file that is not the one of the epoch before."""
    path = tmp_path / "log.csv"

    class Change(Callback):
        """Changes the file or the row in the second epoch."""

        def on_epoch_end(self, context: TrainContext) -> None:
            if context.state.epoch != 2:
                return
            if change == "another column":
                context.history.rows[-1]["new"] = 1.0
            elif change == "changed by somebody":
                path.write_text("other")
            elif change == "deleted":
                path.unlink()
            else:
                del context.history.rows[-1]["lr"]

    trainer = quiet_trainer(plain_network(), callbacks=[Change(), CSVLogger(path)])
    trainer.fit(points(8), epochs=3)
    assert path.read_bytes() == trainer.history.to_csv(tmp_path / "history.csv").read_bytes()


def test_csv_log_on_a_full_disk_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of a line is left, and the error names the file."""
    real = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[: len(content) // 2])

    path = tmp_path / "log.csv"
    log = CSVLogger(path)
    trainer = quiet_trainer(plain_network(), callbacks=[log])
    trainer.fit(points(8), epochs=1)
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(PathNotWritableError, match="disk is full"):
        append(path, b"x" * 100, size=len(before))
    assert path.read_bytes() == before


def test_csv_log_replaces_an_existing_file_after_the_first_epoch(tmp_path: Path) -> None:
    """Creating the callback writes nothing, so a run that never starts overwrites nothing."""
    path = tmp_path / "log.csv"
    path.write_text("of yesterday")
    log = CSVLogger(path)
    assert path.read_text() == "of yesterday"
    quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert path.read_text().startswith("epoch,step,")


def test_csv_log_creates_its_folder(tmp_path: Path) -> None:
    """A folder that does not exist is created."""
    log = CSVLogger(str(tmp_path / "runs" / "one" / "log.csv"))
    quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert log.path == tmp_path / "runs" / "one" / "log.csv"
    assert log.path.is_file()


def test_csv_log_leaves_no_other_file(tmp_path: Path) -> None:
    """No temporary files are left after the run."""
    quiet_trainer(plain_network(), callbacks=[CSVLogger(tmp_path / "log.csv")]).fit(
        points(8), epochs=2
    )
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_csv_log_at_a_folder_is_an_error_when_it_is_created(tmp_path: Path) -> None:
    """The error comes before any training."""
    with pytest.raises(PathNotWritableError) as caught:
        CSVLogger(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_csv_log_that_can_no_longer_be_written_names_the_callback(tmp_path: Path) -> None:
    """A later failure is raised unchanged, with a note."""
    path = tmp_path / "log.csv"
    log = CSVLogger(path)
    path.mkdir()
    with pytest.raises(PathNotWritableError, match="CSVLogger"):
        quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)


# CSV, with lines for steps


def lines_of(path: Path) -> list[dict[str, str]]:
    """Return the lines of a file without the columns that depend on the machine."""
    with path.open(newline="") as file:
        return [
            {k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")}
            for line in csv.DictReader(file)
        ]


class LastLosses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float | None] = []

    def on_step_end(self, context: TrainContext) -> None:
        self.values.append(context.last_loss)


def test_steps_have_lines_between_those_of_the_epochs(tmp_path: Path) -> None:
    """The header has all columns from the start. A step has its own loss, an epoch the mean."""
    path, losses, headers = tmp_path / "log.csv", LastLosses(), set()

    class Header(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            if context.state.step >= 4:
                headers.add(path.read_text().splitlines()[0])

    log = CSVLogger(path, every_n_steps=4)
    trainer = quiet_trainer(plain_network(), callbacks=[losses, log, Header()])
    history = trainer.fit(points(), points(8), epochs=2)
    lines = lines_of(path)
    assert headers == {",".join(history.names)}
    assert [int(line["step"]) for line in lines] == [4, 6, 8, 12, 12]
    assert [int(line["epoch"]) for line in lines] == [1, 1, 2, 2, 2]
    steps, rows = [lines[n] for n in (0, 2, 3)], [lines[n] for n in (1, 4)]
    expected = [losses.values[step - 1] for step in (4, 8, 12)]
    assert [float(line["train_loss"]) for line in steps] == expected
    assert [float(line["train_loss"]) for line in rows] == history["train_loss"]
    assert {line["val_loss"] for line in steps} == {""}
    assert {line["lr"] for line in lines} == {"0.01"}
    with path.open(newline="") as file:
        timed = list(csv.DictReader(file))
    assert [line["seconds"] == "" for line in timed] == [True, False, True, True, False]
    assert all(float(line["samples_per_second"]) > 0 for line in timed)


class Dies(Callback):
    """Writes a checkpoint after a step, and ends the process after a later one."""

    def __init__(self, path: Path, saved: int, dies: int) -> None:
        self.path, self.saved, self.dies = path, saved, dies

    def on_step_end(self, context: TrainContext) -> None:
        if context.state.step == self.saved:
            context.request_checkpoint(self.path)
        if context.state.step == self.dies:
            raise Stopped


@pytest.mark.parametrize(("saved", "dies"), [(1, 3), (2, 9), (6, 7), (6, 12), (7, 11), (8, 9)])
@pytest.mark.parametrize("validate", [None, 4])
def test_a_killed_run_has_the_same_lines_as_one_that_was_not(
    tmp_path: Path, saved: int, dies: int, validate: int | None
) -> None:
    """Lines after the checkpoint are dropped when it resumes, and none is missing."""

    def fit(log: CSVLogger, *others: Callback, **options: Any) -> None:
        trainer = quiet_trainer(plain_network(), callbacks=[*others, log])
        trainer.fit(points(), points(8), epochs=2, validate_every_n_steps=validate, **options)

    fit(CSVLogger(tmp_path / "whole.csv", every_n_steps=2))
    with pytest.raises(Stopped):
        fit(
            CSVLogger(tmp_path / "killed.csv", every_n_steps=2),
            Dies(tmp_path / "checkpoint", saved, dies),
        )
    before = (tmp_path / "killed.csv").read_text()
    log = CSVLogger(tmp_path / "killed.csv", every_n_steps=2)
    fit(log, resume_from=tmp_path / "checkpoint")
    assert lines_of(log.path) == lines_of(tmp_path / "whole.csv")
    kept = [line for line in before.splitlines()[1:] if int(line.split(",")[1]) < saved]
    assert set(kept) <= set(log.path.read_text().splitlines())  # Timings too.


def test_a_second_fit_continues_the_lines_of_the_first(tmp_path: Path) -> None:
    """Another run starts the file again."""
    log = CSVLogger(tmp_path / "log.csv", every_n_steps=2)
    trainer = quiet_trainer(plain_network(), callbacks=[log])
    trainer.fit(points(8), epochs=1)
    trainer.fit(points(8), epochs=1)
    assert [line["step"] for line in lines_of(log.path)] == ["2", "2", "4", "4"]
    quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert [line["step"] for line in lines_of(log.path)] == ["2", "2"]


@pytest.mark.parametrize("content", [None, "other,columns\n1,2\n", "epoch,step,seconds\n1,x,2\n"])
def test_a_resumed_run_without_its_file_says_so(tmp_path: Path, content: str | None) -> None:
    """The rows of the checkpoint are written again; the lines of its steps cannot be."""
    path = tmp_path / "log.csv"
    trainer = quiet_trainer(plain_network(), callbacks=[CSVLogger(path, every_n_steps=1)])
    trainer.fit(points(8), epochs=1)
    saved = trainer.save_checkpoint(tmp_path / "saved")
    path.unlink() if content is None else path.write_text(content)
    resumed = quiet_trainer(plain_network(), callbacks=[CSVLogger(path, every_n_steps=1)])
    with pytest.warns(UserWarning, match="no lines of the steps before the checkpoint"):
        resumed.fit(points(8), epochs=2, resume_from=saved)
    assert [line["step"] for line in lines_of(path)] == ["2", "3", "4", "4"]


@pytest.mark.parametrize("change", ["another column", "one more line", "deleted"])
def test_lines_of_steps_survive_a_change_of_the_file(tmp_path: Path, change: str) -> None:
    """A new column is added to the header; a file that is gone is started again."""
    path = tmp_path / "log.csv"

    class Change(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            if context.state.epoch != 1:
                return
            if change == "another column":
                context.history.rows[-1]["new"] = 7.0
            elif change == "deleted":
                path.unlink()
            else:
                path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")

    log = CSVLogger(path, every_n_steps=2)
    quiet_trainer(plain_network(), callbacks=[Change(), log]).fit(points(8), epochs=2)
    lines = lines_of(path)
    expected = {"deleted": ["2", "4", "4"], "one more line": ["2", "2", "2", "4", "4"]}
    assert [line["step"] for line in lines] == expected.get(change, ["2", "2", "4", "4"])
    if change == "another column":
        assert [line["new"] for line in lines] == ["", "7.0", "", ""]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_the_number_of_steps_between_lines_is_checked(kind: type[Any], tmp_path: Path) -> None:
    """The error comes when the callback is created."""
    with pytest.raises(InvalidArgumentError, match="`every_n_steps` must be at least 1, got 0"):
        kind(tmp_path / "log", every_n_steps=0)
    with pytest.raises(InvalidTypeError, match="`every_n_steps`"):
        kind(tmp_path / "log", every_n_steps=1.5)


# TensorBoard


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard reads in a folder: (step, value) by name."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    module: Any = pytest.importorskip(name)
    events = module.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_every_column_over_the_steps(tmp_path: Path) -> None:
    """Each column of the history except the two counters is a curve."""
    logger = TensorBoardLogger(tmp_path)
    history = quiet_trainer(plain_network(), callbacks=[logger]).fit(points(), points(8), epochs=2)
    scalars = scalars_of(tmp_path)
    assert set(scalars) == set(history.names) - {"epoch", "step"}
    for name, curve in scalars.items():
        assert [step for step, _ in curve] == [6, 12]
        # TensorBoard stores float32.
        assert [value for _, value in curve] == pytest.approx(history[name], rel=1e-6)


def test_tensorboard_reads_the_values_of_steps(tmp_path: Path) -> None:
    """They have names of their own, since an epoch has the mean of its losses."""
    losses = LastLosses()
    logger = TensorBoardLogger(tmp_path, every_n_steps=4)
    trainer = quiet_trainer(plain_network(), callbacks=[losses, logger])
    trainer.fit(points(), epochs=2)
    scalars = scalars_of(tmp_path)
    assert [step for step, _ in scalars["steps/train_loss"]] == [4, 8, 12]
    read = [value for _, value in scalars["steps/train_loss"]]
    assert read == pytest.approx([losses.values[n - 1] for n in (4, 8, 12)], rel=1e-6)
    assert {"steps/lr", "steps/samples_per_second"} <= scalars.keys()
    assert [step for step, _ in scalars["train_loss"]] == [6, 12]


def test_tensorboard_hides_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    """The resumed run writes these steps again."""

    def fit(*others: Callback, **options: Any) -> None:
        logger = TensorBoardLogger(tmp_path / "runs", every_n_steps=2)
        quiet_trainer(plain_network(), callbacks=[*others, logger]).fit(
            points(), epochs=2, **options
        )

    with pytest.raises(Stopped):
        fit(Dies(tmp_path / "saved", 6, 9))
    fit(resume_from=tmp_path / "saved")
    steps = [step for step, _ in scalars_of(tmp_path / "runs")["steps/train_loss"]]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_tensorboard_reads_values_that_are_not_finite(tmp_path: Path) -> None:
    """A value of nan is a point of the curve."""
    trainer = quiet_trainer(
        plain_network(),
        callbacks=[TensorBoardLogger(tmp_path)],
        metrics={"bad": lambda outputs, targets: math.nan},
    )
    trainer.fit(points(8), epochs=1)
    ((step, value),) = scalars_of(tmp_path)["train_bad"]
    assert step == 2
    assert math.isnan(value)


def test_tensorboard_shows_two_fits_as_one_curve(tmp_path: Path) -> None:
    """A second `fit` continues the curves of the first."""
    trainer = quiet_trainer(plain_network(), callbacks=[TensorBoardLogger(tmp_path)])
    trainer.fit(points(8), epochs=1)
    trainer.fit(points(8), epochs=1)
    assert [step for step, _ in scalars_of(tmp_path)["train_loss"]] == [2, 4]


def test_tensorboard_has_the_epochs_before_an_error(tmp_path: Path) -> None:
    """After an error the file is closed and contains the epochs before it."""

    class Fails(Callback):
        """Fails in the second epoch."""

        def on_epoch_start(self, context: TrainContext) -> None:
            if context.state.epoch == 1:
                raise KeyError("second")

    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(KeyError, match="Fails"):
        quiet_trainer(plain_network(), callbacks=[logger, Fails()]).fit(points(8), epochs=3)
    assert [step for step, _ in scalars_of(tmp_path)["train_loss"]] == [2]


def test_tensorboard_that_was_never_opened_does_not_hide_an_error(tmp_path: Path) -> None:
    """An error of an earlier callback in `on_fit_start` is raised unchanged."""
    callbacks = [EarlyStopping("val_f1"), TensorBoardLogger(tmp_path)]
    with pytest.raises(InvalidArgumentError, match="'val_f1'"):
        quiet_trainer(plain_network(), callbacks=callbacks).fit(points(8), epochs=1)


def test_tensorboard_does_not_change_the_weights(tmp_path: Path) -> None:
    """Writing has no numeric effect."""
    logged, alone = network(), network()
    quiet_trainer(logged, callbacks=[TensorBoardLogger(tmp_path)]).fit(points(), epochs=2)
    quiet_trainer(alone).fit(points(), epochs=2)
    assert same_weights(logged, alone)


def test_tensorboard_writes_nothing_before_fit(tmp_path: Path) -> None:
    """Creating the callback creates no folder."""
    logger = TensorBoardLogger(tmp_path / "runs")
    assert logger.folder == tmp_path / "runs"
    assert not logger.folder.exists()


def test_missing_tensorboard_is_an_error_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error is raised when the callback is created."""
    real = importlib.import_module

    def without_tensorboard(name: str, package: str | None = None) -> ModuleType:
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_tensorboard)
    with pytest.raises(MissingDependencyError) as caught:
        TensorBoardLogger(tmp_path)
    assert "`tensorboard`" in str(caught.value)
    assert 'pip install "finetunelib[tensorboard]"' in str(caught.value)
