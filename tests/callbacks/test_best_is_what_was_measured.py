"""The best weights are those that gave the best value, in this run and on its data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import EMA, EarlyStopping, ModelCheckpoint
from finetunelib.data._identity import DataIdentity
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.finetuning import load_weights
from finetunelib.training import Callback, TrainContext
from training.tiny import network, plain_network, points, quiet_trainer, same_bits, weights_of

TRAIN, VAL = points(), points(12, seed=1)


def train(*callbacks: Callback, epochs: int = 6, model: nn.Module | None = None) -> Trainer:
    """Train a small network quickly enough for its validation loss to rise again."""
    trainer = quiet_trainer(
        plain_network() if model is None else model, lr=0.5, callbacks=list(callbacks)
    )
    trainer.fit(TRAIN, VAL, epochs=epochs)
    return trainer


class Zeros(Callback):
    """Replaces the weights for validation by hand: in place, or as new tensors."""

    def __init__(self, how: str) -> None:
        self.how, self.kept = how, dict[str, torch.Tensor]()

    def on_validation_start(self, context: TrainContext) -> None:
        self.kept = weights_of(context.model)
        for parameter in context.model.parameters():
            if self.how == "in place":
                parameter.detach().mul_(0.5)
            else:
                parameter.data = parameter.detach() * 0.5

    def on_validation_end(self, context: TrainContext) -> None:
        context.model.load_state_dict(self.kept)


@pytest.mark.parametrize(
    "swap",
    [lambda: EMA(0.8), lambda: Zeros("in place"), lambda: Zeros("new tensors")],
    ids=["EMA", "in place", "new tensors"],
)
@pytest.mark.parametrize("first", [True, False])
def test_restored_weights_are_those_that_were_measured(swap: Any, first: bool) -> None:
    """The loss after `fit` is the best one in the history, in either order of the callbacks."""
    stopping = EarlyStopping(patience=50, restore_best=True)
    callbacks = [swap(), stopping] if first else [stopping, swap()]
    trainer = train(*callbacks, model=network())
    assert trainer.evaluate(VAL)["loss"] == min(trainer.history["val_loss"])
    assert stopping.best_epoch < 6  # the last epoch would be no test


def test_training_loss_was_measured_on_the_models_own_weights() -> None:
    """The averages are not restored for a column of training."""
    weights: list[Any] = []

    class Keep(Callback):
        """Stores the weights of the best epoch."""

        def on_epoch_end(self, context: TrainContext) -> None:
            losses = context.history["train_loss"]
            if losses[-1] == min(losses):
                weights.append(weights_of(context.model))

    stopping = EarlyStopping("train_loss", patience=50, restore_best=True)
    trainer = train(EMA(0.8), stopping, Keep())
    assert same_bits(weights_of(trainer.model), weights[-1])


def test_one_call_loads_the_weights_of_the_best_checkpoint(tmp_path: Path) -> None:
    """`load_weights(model, best_path)` gives the best value with and without averages."""
    for name, callbacks in (("averages", [EMA(0.8)]), ("plain", [])):
        checkpoint = ModelCheckpoint(tmp_path / name, monitor="val_loss")
        trainer = train(*callbacks, checkpoint, model=network())
        assert checkpoint.best_path is not None
        model = network()
        load_weights(model, checkpoint.best_path)
        best = quiet_trainer(model).evaluate(VAL)["loss"]
        assert best == min(trainer.history["val_loss"])


def test_best_checkpoint_resumes_from_the_training_weights(tmp_path: Path) -> None:
    """The run goes on bit for bit as if it had not been stopped at its best epoch."""

    def run(
        folder: Path, epochs: int, resume_from: Path | None = None
    ) -> tuple[Trainer, ModelCheckpoint]:
        checkpoint = ModelCheckpoint(folder, monitor="val_loss")
        trainer = quiet_trainer(network(), lr=0.05, callbacks=[EMA(0.8), checkpoint])
        trainer.fit(TRAIN, VAL, epochs=epochs, resume_from=resume_from)
        return trainer, checkpoint

    whole, _ = run(tmp_path / "whole", 4)
    _, checkpoint = run(tmp_path / "stopped", 2)
    assert checkpoint.best_path is not None
    resumed, _ = run(tmp_path / "stopped", 4, checkpoint.best_path)
    assert same_bits(weights_of(resumed.model), weights_of(whole.model))
    assert resumed.history["val_loss"] == whole.history["val_loss"]


def test_damaged_training_weights_are_refused_before_anything_changes(tmp_path: Path) -> None:
    """A checkpoint of a wider model, whose file of weights was exchanged, is refused."""
    checkpoint = ModelCheckpoint(tmp_path / "wide", monitor="val_loss")
    trainer = train(EMA(0.8), checkpoint, epochs=1, model=build_mlp(6, [9], 3, seed=0))
    assert checkpoint.best_path is not None
    other = quiet_trainer(
        plain_network(), callbacks=[EMA(0.8), ModelCheckpoint(tmp_path / "b", monitor="val_loss")]
    )
    before = weights_of(other.model)
    with pytest.raises(CheckpointError):
        other.load_checkpoint(checkpoint.best_path)
    assert same_bits(weights_of(other.model), before)
    assert trainer.state.epoch == 1


# A second training run


def test_callbacks_forget_another_run_of_the_same_model(tmp_path: Path) -> None:
    """The best of the second run is restored, although the first run had a better value."""
    stopping, ema = EarlyStopping(patience=50, restore_best=True), EMA(0.99)
    trainer = train(stopping, ema)
    first = stopping.best
    opposite = (VAL[0], (VAL[1] + 1) % 3)
    second = quiet_trainer(trainer.model, lr=1e-4, callbacks=[stopping, ema])
    losses = second.fit(TRAIN, opposite, epochs=2)["val_loss"]
    assert second.evaluate(opposite)["loss"] == min(losses) == stopping.best
    assert stopping.best > first


@pytest.mark.parametrize("same", [True, False], ids=["same data", "other data"])
def test_second_fit_compares_only_values_on_the_same_data(same: bool) -> None:
    """A worse value on other validation data is the best on these."""
    stopping = EarlyStopping(patience=50, restore_best=True)
    trainer = train(stopping)
    first = stopping.best
    opposite = (VAL[0], (VAL[1] + 1) % 3)
    trainer.fit(TRAIN, tuple(VAL) if same else opposite, epochs=1)
    assert (stopping.best == first) is same
    assert stopping.best_epoch == (stopping.best_epoch if same else 7)


def test_folder_of_another_run_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    """A new run that does not resume would delete the checkpoints of the first one."""
    train(ModelCheckpoint(tmp_path, monitor="val_loss"), epochs=3)
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("kept")
    again = quiet_trainer(plain_network(), callbacks=[ModelCheckpoint(tmp_path)])
    with pytest.raises(CheckpointError, match=r"resume_from=.*another folder"):
        again.fit(TRAIN, epochs=3)
    assert again.state.step == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "notes.txt"])


def test_folder_is_used_again_by_the_same_run(tmp_path: Path) -> None:
    """Resuming from it and a second `fit` of the same Trainer are no other run."""
    for epochs in (1, 2):
        trainer = quiet_trainer(plain_network(), callbacks=[ModelCheckpoint(tmp_path)])
        trainer.fit(TRAIN, epochs=epochs, resume_from=tmp_path)
    trainer.fit(TRAIN, epochs=1)
    assert len(trainer.history) == 3
    loaded = quiet_trainer(plain_network(), callbacks=[ModelCheckpoint(tmp_path)])
    loaded.load_checkpoint(tmp_path)
    loaded.fit(TRAIN, epochs=1)
    assert len(loaded.history) == 4


def test_best_epoch_whose_checkpoint_could_not_be_written_is_not_the_best_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next best epoch is compared with the best one that is on disk."""
    from finetunelib.errors import PathNotWritableError
    from finetunelib.training._checkpointing.run import TrainingRun

    save, values = TrainingRun.save, [3.0, 1.0, 2.0, 2.5]

    def fail_once(run: TrainingRun, path: Path, *arguments: Any) -> Path:
        if path.name.startswith("epoch-0002"):
            raise PathNotWritableError("The disk is full.")
        return save(run, path, *arguments)

    monkeypatch.setattr(TrainingRun, "save", fail_once)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_score", mode="min", on_error="warn")

    def score(outputs: Tensor, targets: Tensor) -> float:
        return values[trainer.state.epoch]

    trainer: Trainer = quiet_trainer(
        plain_network(), callbacks=[checkpoint], metrics={"score": score}
    )
    with pytest.warns(UserWarning, match="A checkpoint is missing"):
        trainer.fit(TRAIN, VAL, epochs=4)
    assert checkpoint.best_path is not None
    assert checkpoint.best_path.name.startswith("epoch-0003")
    assert checkpoint.best_path.exists()


def test_mode_without_monitor_is_an_error() -> None:
    """It would decide nothing."""
    with pytest.raises(InvalidArgumentError, match="`mode`"):
        ModelCheckpoint("anywhere", mode="min")
    assert not Path("anywhere").exists()


# The same data


def test_data_is_the_same_if_it_consists_of_the_same_objects() -> None:
    """New tuples and loaders of the same tensors are the same data; copies are not."""
    inputs, targets = TRAIN
    dataset = TensorDataset(inputs, targets)
    same = [(inputs, targets), [inputs, targets], dataset, DataLoader(dataset, batch_size=2)]
    for one in same:
        for other in same:
            assert DataIdentity(one).is_same(DataIdentity(other))
    for other in ((inputs, targets.clone()), (inputs,), None, "text", {"a": inputs, "b": 3}):
        assert not DataIdentity(same[0]).is_same(DataIdentity(other))
    assert not DataIdentity(None).is_same(DataIdentity(None))
    gone = DataIdentity((inputs.clone(), targets.clone()))
    assert not gone.is_same(gone)
    assert math.isfinite(len(same))
