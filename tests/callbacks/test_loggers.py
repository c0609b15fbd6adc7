"""Callbacks that write measurements where other programs read them."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetunelib.callbacks import CSVLogger, EarlyStopping, TensorBoardLogger
from finetunelib.errors import CallbackError, MissingDependencyError, PathNotWritableError
from finetunelib.training import Callback, TrainContext
from training.tiny import network, plain_network, points, quiet_trainer, same_weights

# CSV


def test_csv_log_is_the_history_as_csv(tmp_path: Path) -> None:
    """The file equals what `History.to_csv` writes, byte for byte."""
    log = CSVLogger(tmp_path / "log.csv")
    trainer = quiet_trainer(plain_network(), callbacks=[log])
    history = trainer.fit(points(), points(8), epochs=3)
    assert log.path.read_bytes() == history.to_csv(tmp_path / "history.csv").read_bytes()


def test_csv_log_is_complete_after_each_epoch(tmp_path: Path) -> None:
    """Whoever looks during a training sees every epoch that has ended, and no half line."""
    lines: list[int] = []

    class Look(Callback):
        """Counts the lines of the file."""

        def on_epoch_end(self, context: TrainContext) -> None:
            lines.append(len((tmp_path / "log.csv").read_text().splitlines()))

    quiet_trainer(plain_network(), callbacks=[CSVLogger(tmp_path / "log.csv"), Look()]).fit(
        points(8), epochs=3
    )
    assert lines == [2, 3, 4]


def test_csv_log_replaces_a_former_file_at_the_first_epochs_end(tmp_path: Path) -> None:
    """Making the callback writes nothing, so that a training that never starts loses nothing."""
    path = tmp_path / "log.csv"
    path.write_text("of yesterday")
    log = CSVLogger(path)
    assert path.read_text() == "of yesterday"
    quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert path.read_text().startswith("epoch,step,")


def test_csv_log_makes_its_folder(tmp_path: Path) -> None:
    """A path in a folder that is not there yet is no obstacle."""
    log = CSVLogger(str(tmp_path / "runs" / "one" / "log.csv"))
    quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert log.path == tmp_path / "runs" / "one" / "log.csv"
    assert log.path.is_file()


def test_csv_log_leaves_no_other_file(tmp_path: Path) -> None:
    """Temporary files are gone when the training is."""
    quiet_trainer(plain_network(), callbacks=[CSVLogger(tmp_path / "log.csv")]).fit(
        points(8), epochs=2
    )
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_csv_log_at_a_folder_is_an_error_when_it_is_made(tmp_path: Path) -> None:
    """Nobody trains for an hour to hear of it."""
    with pytest.raises(PathNotWritableError) as caught:
        CSVLogger(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_csv_log_that_can_no_longer_be_written_names_the_callback(tmp_path: Path) -> None:
    """What comes in between is an error of the callback, with its cause."""
    path = tmp_path / "log.csv"
    log = CSVLogger(path)
    path.mkdir()
    with pytest.raises(CallbackError, match="CSVLogger") as caught:
        quiet_trainer(plain_network(), callbacks=[log]).fit(points(8), epochs=1)
    assert isinstance(caught.value.__cause__, PathNotWritableError)


# TensorBoard


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard itself reads in a folder: (step, value) by name."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    module: Any = pytest.importorskip(name)
    events = module.EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_every_measurement_over_the_steps(tmp_path: Path) -> None:
    """Each column of the history is a curve, but for the two that count."""
    logger = TensorBoardLogger(tmp_path)
    history = quiet_trainer(plain_network(), callbacks=[logger]).fit(points(), points(8), epochs=2)
    scalars = scalars_of(tmp_path)
    assert set(scalars) == set(history.names) - {"epoch", "step"}
    for name, curve in scalars.items():
        assert [step for step, _ in curve] == [6, 12]
        # TensorBoard stores float32.
        assert [value for _, value in curve] == pytest.approx(history[name], rel=1e-6)


def test_tensorboard_reads_what_is_not_finite(tmp_path: Path) -> None:
    """A measurement of nan is a point of the curve."""
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
    """A second `fit` goes on where the first one ended."""
    trainer = quiet_trainer(plain_network(), callbacks=[TensorBoardLogger(tmp_path)])
    trainer.fit(points(8), epochs=1)
    trainer.fit(points(8), epochs=1)
    assert [step for step, _ in scalars_of(tmp_path)["train_loss"]] == [2, 4]


def test_tensorboard_has_what_was_measured_before_an_error(tmp_path: Path) -> None:
    """The file is closed when a training fails, and holds the epochs until then."""

    class Fails(Callback):
        """Fails in the second epoch."""

        def on_epoch_start(self, context: TrainContext) -> None:
            if context.state.epoch == 1:
                raise KeyError("second")

    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(CallbackError, match="Fails"):
        quiet_trainer(plain_network(), callbacks=[logger, Fails()]).fit(points(8), epochs=3)
    assert [step for step, _ in scalars_of(tmp_path)["train_loss"]] == [2]


def test_tensorboard_that_was_never_opened_hides_no_error(tmp_path: Path) -> None:
    """When an earlier callback refuses the training, its reason comes out."""
    callbacks = [EarlyStopping("val_f1"), TensorBoardLogger(tmp_path)]
    with pytest.raises(CallbackError, match="'val_f1'"):
        quiet_trainer(plain_network(), callbacks=callbacks).fit(points(8), epochs=1)


def test_tensorboard_changes_nothing_of_the_weights(tmp_path: Path) -> None:
    """Writing has no numeric effect."""
    logged, alone = network(), network()
    quiet_trainer(logged, callbacks=[TensorBoardLogger(tmp_path)]).fit(points(), epochs=2)
    quiet_trainer(alone).fit(points(), epochs=2)
    assert same_weights(logged, alone)


def test_tensorboard_writes_nothing_before_a_training(tmp_path: Path) -> None:
    """Making the callback makes no folder."""
    logger = TensorBoardLogger(tmp_path / "runs")
    assert logger.folder == tmp_path / "runs"
    assert not logger.folder.exists()


def test_missing_tensorboard_is_an_error_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is told when the callback is made, and not after the first epoch."""
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
