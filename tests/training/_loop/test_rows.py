"""Rows of the history after every n steps: `fit(validate_every_n_steps=n)`."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer
from finetunelib.callbacks import EMA, CSVLogger, EarlyStopping, ModelCheckpoint
from finetunelib.errors import (
    CheckpointError,
    DataError,
    InvalidArgumentError,
    InvalidTypeError,
    TrainingInterrupted,
)
from finetunelib.finetuning import load_weights
from finetunelib.training import Callback, History, TrainContext
from training._loop.stopping import StopAfter, Stopped
from training.tiny import (
    network,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    same_weights,
)

TIMINGS = ("seconds", "samples_per_second")
VAL = points(9, seed=1)


def shuffled(seed: int = 3) -> DataLoader[Any]:
    """Return validation data in an order that is drawn at each reading."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*VAL), batch_size=2, shuffle=True, generator=generator)


def made(*callbacks: Callback, **options: Any) -> Trainer:
    """Return a Trainer in which everything depends on random states: six steps make an epoch."""
    return quiet_trainer(
        network(), optimizer=torch.optim.AdamW, lr=0.01, callbacks=[EMA(0.9), *callbacks], **options
    )


def untimed(history: History) -> list[dict[str, float]]:
    """Return the rows without the columns that depend on the machine."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in history]


# When there is a row, and what is in it


class Losses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, context: TrainContext) -> None:
        assert context.last_loss is not None
        self.values.append(context.last_loss)


def test_there_is_a_row_after_every_n_steps_and_at_the_end() -> None:
    """A row has the epoch of its last step, and means over the steps since the row before."""
    losses = Losses()
    trainer = made(losses, batch_size=2)  # Eleven steps make an epoch.
    history = trainer.fit(points(), VAL, epochs=2, validate_every_n_steps=5)
    assert history["step"] == [5, 10, 15, 20, 22]
    assert history["epoch"] == [1, 1, 2, 2, 2]
    starts = [0, *history["step"]]
    for (start, end), row in zip(itertools.pairwise(map(int, starts)), history, strict=True):
        values = losses.values[start:end]
        assert row["train_loss"] == pytest.approx(sum(values) / len(values))
    assert {"val_loss", "val_accuracy", "train_accuracy", "lr", *TIMINGS} <= history.rows[0].keys()
    assert all(row["seconds"] > 0 and row["samples_per_second"] > 0 for row in history)


def test_a_row_at_the_last_step_is_not_repeated() -> None:
    """The interval and the training end with the same step."""
    assert made().fit(points(), VAL, epochs=1, validate_every_n_steps=3)["step"] == [3, 6]
    assert made().fit(points(), VAL, max_steps=4, validate_every_n_steps=4)["step"] == [4]
    assert made().fit(points(), VAL, max_steps=4, validate_every_n_steps=9)["step"] == [4]


def test_the_rows_of_a_second_fit_are_at_multiples_of_n_too() -> None:
    """The steps of all calls are counted; the first interval is shorter."""
    trainer = made()
    trainer.fit(points(), VAL, max_steps=4, validate_every_n_steps=3)
    assert trainer.fit(points(), VAL, max_steps=3, validate_every_n_steps=3)["step"] == [3, 4, 6, 7]
    assert trainer.fit(points(), VAL, epochs=1)["step"] == [3, 4, 6, 7, 13]
    assert trainer.history["epoch"] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("val", [VAL, None])
def test_validation_does_not_change_training(val: Any) -> None:
    """Weights are those of the run without it, although validation draws random numbers."""
    plain, often = made(), made()
    plain.fit(points(), epochs=2)
    loader = DataLoader(TensorDataset(*VAL), batch_size=2, shuffle=True) if val is None else val
    often.fit(points(), loader, epochs=2, validate_every_n_steps=1)
    assert len(often.history) == 12
    assert same_weights(plain.model, often.model)


def test_a_generator_that_two_loaders_share_is_left_alone() -> None:
    """Training draws from it in the middle of an epoch."""

    def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
        generator = torch.Generator().manual_seed(0)
        first, second = (
            DataLoader(TensorDataset(*data), batch_size=4, shuffle=True, generator=generator)
            for data in (points(), VAL)
        )
        return first, second

    plain, often = made(), made()
    train, val = loaders()
    plain.fit(train, epochs=2)
    train, val = loaders()
    often.fit(train, val, epochs=2, validate_every_n_steps=2)
    assert same_weights(plain.model, often.model)


def test_each_row_measures_the_model_after_its_step() -> None:
    """The columns of validation are what `evaluate` computes there."""
    model, seen = plain_network(), []
    judge = quiet_trainer(plain_network())

    class Judge(Callback):
        def on_row(self, context: TrainContext) -> None:
            judge.model.load_state_dict(context.model.state_dict())
            seen.append(judge.evaluate(VAL)["loss"])

    trainer = quiet_trainer(model, callbacks=[Judge()])
    history = trainer.fit(points(), VAL, epochs=1, validate_every_n_steps=2)
    assert history["val_loss"] == seen
    assert len(set(seen)) == 3


# The hooks


class Recorder(Callback):
    """Records the hooks, with the epochs, steps and rows so far."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, int]] = []

    def _at(self, hook: str, context: TrainContext) -> None:
        state = context.state
        self.calls.append((hook, state.epoch, state.step, len(context.history)))

    def on_step_end(self, context: TrainContext) -> None:
        self._at("step", context)

    def on_row(self, context: TrainContext) -> None:
        self._at("row", context)

    def on_epoch_end(self, context: TrainContext) -> None:
        self._at("epoch", context)


def test_the_hook_of_a_row_comes_after_each_validation() -> None:
    """The end of an epoch has its own hook, which needs no row."""
    recorder = Recorder()
    trainer = quiet_trainer(plain_network(), callbacks=[recorder], batch_size=11)
    trainer.fit(points(), VAL, max_steps=3, validate_every_n_steps=2)
    assert recorder.calls == [
        ("step", 0, 1, 0),
        ("step", 0, 2, 0),
        ("row", 0, 2, 1),
        ("epoch", 1, 2, 1),
        ("step", 1, 3, 1),
        ("epoch", 2, 3, 1),
        ("row", 2, 3, 2),
    ]


def test_without_the_argument_both_hooks_come_at_the_end_of_an_epoch() -> None:
    """One callback after the other: the second one sees what the first one wrote in a row."""

    class Adds(Callback):
        def on_epoch_end(self, context: TrainContext) -> None:
            context.history.rows[-1]["added"] = 7.0

    seen: list[Any] = []

    class Reads(Recorder):
        def on_row(self, context: TrainContext) -> None:
            super().on_row(context)
            seen.append(context.history.rows[-1].get("added"))

    recorder = Reads()
    quiet_trainer(plain_network(), callbacks=[Adds(), recorder]).fit(points(), epochs=1)
    assert recorder.calls[-2:] == [("row", 1, 6, 1), ("epoch", 1, 6, 1)]
    assert seen == [7.0]


# What follows the rows


def test_patience_counts_validations() -> None:
    """The reason says so; the best epoch is that of the best validation."""
    stop = EarlyStopping("val_loss", patience=2, min_delta=9.0)
    reasons: list[str | None] = []

    class Reason(Callback):
        def on_fit_end(self, context: TrainContext) -> None:
            reasons.append(context.stop_reason)

    trainer = made(stop, Reason(), batch_size=11)
    history = trainer.fit(points(), VAL, epochs=99, validate_every_n_steps=3)
    assert history["step"] == [3, 6, 9]
    assert stop.best_epoch == 2
    assert str(reasons[0]).endswith("for 2 validations")


def test_the_best_weights_are_those_of_the_best_validation() -> None:
    """They are restored, although training went on in the same epoch."""
    seen: dict[int, Any] = {}

    class Keep(Callback):
        def on_row(self, context: TrainContext) -> None:
            seen[context.state.step] = {n: t.clone() for n, t in context.model.state_dict().items()}
            worse = 0.0 if context.state.step == 2 else 1.0
            context.history.rows[-1]["val_loss"] = worse

    stop = EarlyStopping("val_loss", patience=9, restore_best=True)
    trainer = quiet_trainer(plain_network(), callbacks=[Keep(), stop])
    trainer.fit(points(), VAL, max_steps=5, validate_every_n_steps=1)
    assert all(t.equal(seen[2][n]) for n, t in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, [2, 4, 5]),
        ({"monitor": "val_loss"}, [2, 4, 5]),
        ({"monitor": "val_loss", "every_n_steps": 4}, [2, 4]),
        ({"monitor": "val_loss", "every_n_epochs": 1}, [2, 5]),
        ({"every_n_steps": 3}, [3]),
    ],
)
def test_checkpoints_are_written_after_rows(
    options: dict[str, Any], written: list[int], tmp_path: Path
) -> None:
    """A best one has the weights that were measured, and every one its row."""
    sizes: list[tuple[int, int]] = []

    class Rows(Callback):
        def on_row(self, context: TrainContext) -> None:
            context.history.rows[-1]["val_loss"] = float(context.state.step)

        def on_checkpoint(self, context: TrainContext) -> None:
            sizes.append((context.state.step, len(context.history)))

    saves = ModelCheckpoint(tmp_path, keep=9, **options)
    trainer = quiet_trainer(plain_network(), callbacks=[EMA(0.5), Rows(), saves])
    trainer.fit(points(), VAL, max_steps=5, validate_every_n_steps=2)
    assert [step for step, _ in sizes] == written
    assert dict(sizes).get(2, 1) == 1
    if "monitor" in options:
        assert saves.best_path is not None
        judge = quiet_trainer(plain_network())
        load_weights(judge.model, saves.best_path)
        repeated = quiet_trainer(plain_network(), callbacks=[EMA(0.5)])
        history = repeated.fit(points(), VAL, max_steps=2, validate_every_n_steps=2)
        assert judge.evaluate(VAL)["loss"] == history["val_loss"][0]


def test_reduce_lr_on_plateau_follows_validations() -> None:
    """Its patience counts them, in the middle of an epoch too."""
    options = {
        "lr": 0.8,
        "lr_scheduler": lambda optimizer: ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=9.0, threshold_mode="abs"
        ),
    }
    trainer = quiet_trainer(plain_network(), **options)
    history = trainer.fit(points(), VAL, max_steps=8, validate_every_n_steps=2)
    assert history["lr"] == [0.8, 0.8, 0.4, 0.2]


# Resuming


def whole() -> Trainer:
    """Return the Trainer of a run that was not stopped."""
    trainer = made()
    trainer.fit(points(), shuffled(), epochs=2, validate_every_n_steps=4)
    return trainer


def test_a_run_that_is_stopped_has_the_same_rows(tmp_path: Path) -> None:
    """Rows, weights and the sums inside an interval are those of the run that was not stopped.

    An update has two micro-batches, and one of two sets of validation data is shuffled.
    """

    def fit(*callbacks: Callback, path: Path | None = None) -> Trainer:
        trainer = made(*callbacks, batch_size=2, gradient_accumulation_steps=2)
        if path is not None:
            trainer.load_checkpoint(path)
            path = trainer.save_checkpoint(tmp_path / "again")  # It keeps the position.
        val = {"ordered": VAL, "shuffled": shuffled()}
        trainer.fit(points(), val, epochs=2, validate_every_n_steps=4, resume_from=path)
        return trainer

    expected = fit()
    assert expected.history["step"] == [4, 8, 12]
    for step in (1, 3, 4, 5, 6, 7, 9, 12):
        with pytest.raises(Stopped):
            fit(StopAfter(step, tmp_path / str(step)))
        resumed = fit(path=tmp_path / str(step))
        assert untimed(resumed.history) == untimed(expected.history), step
        assert same_weights(resumed.model, expected.model), step


class StopAt(Callback):
    """Writes a checkpoint in a hook and ends the process when it is written."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.hook, self.step, self.path = hook, step, path

    def _at(self, hook: str, context: TrainContext) -> None:
        if hook == self.hook and context.state.step == self.step:
            context.request_checkpoint(self.path)

    def on_row(self, context: TrainContext) -> None:
        self._at("row", context)

    def on_epoch_end(self, context: TrainContext) -> None:
        self._at("epoch", context)

    def on_checkpoint(self, context: TrainContext) -> None:
        raise Stopped


@pytest.mark.parametrize(
    ("hook", "step"), [("row", 4), ("epoch", 6), ("row", 8), ("epoch", 12), ("row", 13)]
)
def test_a_checkpoint_of_a_row_or_an_epoch_resumes(hook: str, step: int, tmp_path: Path) -> None:
    """Between two epochs, a checkpoint contains the sums of the interval, also of the last one."""
    limits: dict[str, Any] = {"max_steps": 13, "validate_every_n_steps": 4}
    expected = made()
    expected.fit(points(), shuffled(), **limits)
    assert expected.history["step"] == [4, 8, 12, 13]
    with pytest.raises(Stopped):
        made(StopAt(hook, step, tmp_path / "c")).fit(points(), shuffled(), **limits)
    resumed = made()
    resumed.fit(points(), shuffled(), resume_from=tmp_path / "c", **limits)
    assert untimed(resumed.history) == untimed(expected.history)
    assert same_weights(resumed.model, expected.model)


def test_ctrl_c_in_a_validation_continues_before_it(tmp_path: Path) -> None:
    """The validation in the middle of an epoch is repeated, and training draws the same numbers."""
    expected = whole()

    class Signal(Callback):
        def on_validation_start(self, context: TrainContext) -> None:
            if context.state.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    saves = ModelCheckpoint(tmp_path)
    with pytest.raises(TrainingInterrupted, match="after step 8, in epoch 2"):
        made(saves, Signal()).fit(points(), shuffled(), epochs=2, validate_every_n_steps=4)
    resumed = made(ModelCheckpoint(tmp_path))
    resumed.fit(points(), shuffled(), epochs=2, validate_every_n_steps=4, resume_from=tmp_path)
    assert untimed(resumed.history) == untimed(expected.history)
    assert same_weights(resumed.model, expected.model)


def test_early_stopping_in_a_row_of_a_resumed_run_stops_there(tmp_path: Path) -> None:
    """The row was due when the run was stopped; no step follows it."""

    def stopping() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=1, min_delta=9.0)

    expected = made(stopping())
    expected.fit(points(), VAL, epochs=9, validate_every_n_steps=4)
    assert expected.history["step"] == [4, 8]
    with pytest.raises(Stopped):
        made(stopping(), StopAfter(8, tmp_path / "c")).fit(
            points(), VAL, epochs=9, validate_every_n_steps=4
        )
    resumed = made(stopping())
    resumed.fit(points(), VAL, epochs=9, validate_every_n_steps=4, resume_from=tmp_path / "c")
    assert untimed(resumed.history) == untimed(expected.history)
    assert resumed.state == expected.state


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("step", [5, 6])
def test_another_interval_is_refused_inside_one(n: int | None, step: int, tmp_path: Path) -> None:
    """The sums of the checkpoint are those of the interval that it was written in."""
    hook = StopAt("epoch", 6, tmp_path / "c") if step == 6 else StopAfter(5, tmp_path / "c")
    with pytest.raises(Stopped):
        made(hook).fit(points(), VAL, epochs=2, validate_every_n_steps=4)
    with pytest.raises(CheckpointError, match="validate_every_n_steps 4"):
        made().fit(points(), VAL, epochs=2, validate_every_n_steps=n, resume_from=tmp_path / "c")


def test_a_finished_run_continues_with_another_interval(tmp_path: Path) -> None:
    """Its last row left nothing unfinished."""
    trainer = made()
    trainer.fit(points(), VAL, epochs=1, validate_every_n_steps=4)
    path = trainer.save_checkpoint(tmp_path / "c")
    resumed = made()
    resumed.fit(points(), VAL, epochs=2, resume_from=path)
    assert resumed.history["step"] == [4, 6, 12]
    again = made()
    again.fit(points(), VAL, max_steps=9, validate_every_n_steps=8, resume_from=path)
    assert again.history["step"] == [4, 6, 8, 9]


def test_a_metric_without_a_state_is_refused_between_epochs_too(tmp_path: Path) -> None:
    """An interval may go on there, and its sums would be lost."""

    class Stateless:
        def update(self, outputs: Tensor, targets: Tensor) -> None: ...

        def compute(self) -> float:
            return 0.0

        def reset(self) -> None: ...

    saves = ModelCheckpoint(tmp_path, every_n_epochs=1)
    trainer = made(saves, metrics={"none": Stateless()})
    with pytest.raises(CheckpointError, match="'none' has no `state_dict`"):
        trainer.fit(points(), VAL, epochs=1, validate_every_n_steps=4)
    trainer.fit(points(), VAL, epochs=1)


# Streams, and what is refused


class Stream:
    """Endless batches, the same ones from the start at each reading."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.cycle(ready_batches(points()))


def test_an_endless_stream_is_one_epoch_with_a_row_after_every_n_steps(tmp_path: Path) -> None:
    """It ends with the last step, and resumes in the middle."""

    def fit(*callbacks: Callback, **options: Any) -> Trainer:
        trainer = made(*callbacks)
        trainer.fit(Stream(), VAL, max_steps=10, validate_every_n_steps=4, **options)
        return trainer

    expected = fit()
    assert expected.history["step"] == [4, 8, 10]
    assert expected.history["epoch"] == [1, 1, 1]
    with pytest.raises(Stopped):
        fit(StopAfter(7, tmp_path / "c"))
    resumed = fit(resume_from=tmp_path / "c")
    assert untimed(resumed.history) == untimed(expected.history)
    assert same_weights(resumed.model, expected.model)


@pytest.mark.parametrize("kind", ["generator", "cycle", "repeat"])
def test_an_endless_iterator_is_read_up_to_the_last_step(kind: str) -> None:
    """It is read only once, so the number of steps is enough to know that it is not read again."""
    batches = ready_batches(points(8))
    streams = {
        "generator": (batch for _ in itertools.count() for batch in batches),
        "cycle": itertools.cycle(batches),
        "repeat": itertools.repeat(batches[0]),
    }
    history = made().fit(streams[kind], VAL, max_steps=5, validate_every_n_steps=2)
    assert history["step"] == [2, 4, 5]


def test_an_iterator_that_ends_before_the_last_step_is_an_error() -> None:
    """What was asked for cannot be done, and the message says what can."""
    with pytest.raises(DataError, match=r"`train` is an iterator that has ended.*epochs=1"):
        made().fit(iter(ready_batches(points(8))), max_steps=5)
    assert made().fit(iter(ready_batches(points(8))), epochs=1, max_steps=5)["step"] == [2]


@pytest.mark.parametrize(
    ("data", "options", "named"),
    [
        ({"val": None}, {"validate_every_n_steps": 2}, "`validate_every_n_steps` is 2, .*`val`"),
        ({}, {"validate_every_n_steps": 0}, "`validate_every_n_steps` must be .* at least 1, .*0"),
        ({}, {"validate_every_n_steps": 2.5}, "`validate_every_n_steps` must be .*2.5"),
        ({}, {"validate_every_n_steps": True}, "`validate_every_n_steps` must be .*True"),
        ({"val": iter([VAL])}, {"validate_every_n_steps": 2}, "`val` is an iterator"),
        (
            {"train": itertools.cycle([VAL])},
            {"epochs": 1},
            "`train` is an endless cycle.*max_steps",
        ),
        ({"train": itertools.repeat(VAL)}, {"epochs": 1}, "`train` is an endless repeat"),
        ({"val": itertools.cycle([VAL])}, {"epochs": 1}, "`val` is an endless cycle"),
        ({"train": iter([VAL])}, {"epochs": 2, "max_steps": 9}, "`train` is an iterator"),
    ],
)
def test_what_cannot_be_done_is_refused(
    data: dict[str, Any], options: dict[str, Any], named: str
) -> None:
    """Nothing is trained; the message names the argument."""
    chosen: dict[str, Any] = {"train": points(), "val": VAL, "epochs": 1, **data, **options}
    trainer = quiet_trainer(plain_network())
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=named):
        trainer.fit(**chosen)
    assert trainer.state.step == 0


def test_workers_that_stay_cannot_read_for_training_and_validation_at_once() -> None:
    """A second reading would restart that of training."""
    loader = DataLoader(TensorDataset(*VAL), num_workers=1, persistent_workers=True)
    with pytest.raises(InvalidArgumentError, match="the same DataLoader"):
        made().fit(loader, loader, epochs=1, validate_every_n_steps=2)


def test_the_line_of_a_row_names_its_step(capfd: pytest.CaptureFixture[str]) -> None:
    """The total is that of `max_steps`; an epoch without a row has no line."""
    trainer = made(batch_size=11, progress=True)
    trainer.fit(points(), VAL, max_steps=5, validate_every_n_steps=3)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "step 3/5 (epoch 2)",
        "step 5/5 (epoch 3)",
    ]


def test_the_file_of_a_logger_has_a_line_for_each_row(tmp_path: Path) -> None:
    """Several lines may have the same epoch."""
    log = CSVLogger(tmp_path / "log.csv")
    history = made(log).fit(points(), VAL, epochs=1, validate_every_n_steps=2)
    history.to_csv(tmp_path / "all.csv")
    assert log.path.read_bytes() == (tmp_path / "all.csv").read_bytes()
