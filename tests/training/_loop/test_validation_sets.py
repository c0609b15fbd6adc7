"""Several sets of validation data by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from finetunelib.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.training import Callback, TrainContext
from training.tiny import network, points, quiet_trainer, same_weights

TRAIN, CLEAN, NOISY = points(22), points(9, seed=1), points(7, seed=2)
SETS: dict[str, Any] = {"clean": CLEAN, "noisy": TensorDataset(*NOISY)}


class Hooks(Callback):
    """Counts the validations, and notes which columns can be compared."""

    def __init__(self) -> None:
        self.validations = 0
        self.comparable: dict[str, bool] = {}

    def on_fit_start(self, context: TrainContext) -> None:
        """Note what is comparable."""
        columns = ("train_loss", "val_loss", "val_clean_loss", "val_noisy_loss")
        self.comparable = {name: context.is_comparable(name) for name in columns}

    def on_validation_end(self, context: TrainContext) -> None:
        """Count."""
        self.validations += 1


def test_each_set_has_its_columns() -> None:
    """They are those of evaluating the set by itself; the weights are those of no validation."""
    hooks = Hooks()
    used, plain = quiet_trainer(network(), callbacks=[hooks]), quiet_trainer(network())
    history = used.fit(TRAIN, SETS, epochs=2)
    plain.fit(TRAIN, CLEAN, epochs=2)
    assert [name for name in history.names if name.startswith("val_")] == [
        "val_clean_loss",
        "val_clean_accuracy",
        "val_noisy_loss",
        "val_noisy_accuracy",
    ]
    assert history["val_clean_loss"] == plain.history["val_loss"]
    assert history["val_noisy_accuracy"][-1] == used.evaluate(NOISY)["accuracy"]
    assert same_weights(used.model, plain.model)
    assert hooks.validations == 2


def test_sets_are_evaluated_after_every_n_steps() -> None:
    """Each row has the columns of all sets, and training has the bits of the run without rows."""
    used, plain = quiet_trainer(network()), quiet_trainer(network())
    history = used.fit(TRAIN, SETS, epochs=1, validate_every_n_steps=2)
    plain.fit(TRAIN, epochs=1)
    assert history["step"] == [2, 4, 6]
    assert history["val_clean_loss"][-1] == plain.evaluate(CLEAN)["loss"]
    assert same_weights(used.model, plain.model)


def test_callbacks_monitor_a_set(tmp_path: Path) -> None:
    """Directions are known, and the best epoch is that of the set."""
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="val_noisy_accuracy")
    stopping = EarlyStopping("val_clean_loss", patience=1, min_delta=10.0)
    logger = CSVLogger(tmp_path / "log.csv")
    used = quiet_trainer(network(), callbacks=[checkpoint, stopping, logger])
    used.fit(TRAIN, SETS, epochs=5)
    assert len(used.history) == 2
    assert "val_noisy_accuracy" in (tmp_path / "log.csv").read_text()
    assert any((tmp_path / "best").iterdir())


def test_a_set_is_compared_with_the_same_set_of_the_fit_before() -> None:
    """A set with other data, or another name, is not."""
    hooks = Hooks()
    used = quiet_trainer(network(), callbacks=[hooks])
    used.fit(TRAIN, SETS, epochs=1)
    used.fit(TRAIN, {"clean": tuple(CLEAN), "noisy": points(7, seed=3)}, epochs=1)
    expected = {"train_loss": True, "val_loss": False, "val_clean_loss": True}
    assert hooks.comparable == {**expected, "val_noisy_loss": False}
    used.fit(TRAIN, CLEAN, epochs=1)
    assert hooks.comparable == {
        "train_loss": True,
        "val_loss": False,
        "val_clean_loss": False,
        "val_noisy_loss": False,
    }


def loader(seed: int) -> DataLoader[Any]:
    """Return a loader with a generator of its own, whose state a checkpoint contains."""
    data = TensorDataset(*CLEAN)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, 4, sampler=RandomSampler(data, generator=generator))


def test_a_run_with_sets_resumes_exactly(tmp_path: Path) -> None:
    """The generators of all sets are restored."""

    def sets() -> dict[str, Any]:
        return {"one": loader(1), "two": CLEAN, "three": loader(3)}

    whole = quiet_trainer(network())
    whole.fit(TRAIN, sets(), epochs=3)
    first = quiet_trainer(network())
    first.fit(TRAIN, sets(), epochs=1)
    first.save_checkpoint(tmp_path / "one")
    resumed = quiet_trainer(network())
    data = sets()
    resumed.fit(TRAIN, data, epochs=3, resume_from=tmp_path / "one")
    assert same_weights(resumed.model, whole.model)
    measures = [name for name in whole.history.names if name.startswith(("train", "val"))]
    assert all(resumed.history[name] == whole.history[name] for name in measures)
    with pytest.warns(UserWarning, match="other validation data"):
        quiet_trainer(network()).fit(
            TRAIN, {"one": loader(1)}, epochs=2, resume_from=tmp_path / "one"
        )


def plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return a schedule that follows a column."""
    return ReduceLROnPlateau(optimizer)


def test_a_plateau_needs_the_name_of_a_set() -> None:
    """It does not follow the training loss instead."""
    with pytest.raises(InvalidArgumentError, match="'val_clean_loss'"):
        quiet_trainer(network(), lr_scheduler=plateau).fit(TRAIN, SETS, epochs=1)
    used = quiet_trainer(network(), lr_scheduler=plateau, lr_scheduler_monitor="val_noisy_loss")
    assert len(used.fit(TRAIN, SETS, epochs=1)) == 1


def test_the_default_monitor_names_a_column_that_exists() -> None:
    """There is no `val_loss` of several sets."""
    with pytest.raises(InvalidArgumentError, match="val_clean_loss"):
        quiet_trainer(network(), callbacks=[EarlyStopping()]).fit(TRAIN, SETS, epochs=1)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "tensors": ({"left": CLEAN[0], "right": CLEAN[0]}, InvalidTypeError, "(inputs, targets)"),
    "empty": ({}, EmptyDataError, "by name"),
    "a number": ({1: CLEAN}, InvalidTypeError, "strings"),
    "a space": ({"a set": CLEAN}, InvalidArgumentError, "'a set'"),
    "loss": ({"loss": CLEAN}, InvalidArgumentError, "'loss'"),
    "a prefix": ({"a": CLEAN, "a_b": NOISY}, InvalidArgumentError, "'a_b'"),
    "no data": ({"clean": None}, InvalidTypeError, "val['clean']"),
    "no targets": ({"clean": {"x": CLEAN[0]}}, InvalidTypeError, "val['clean']"),
    "endless": ({"clean": itertools.cycle([CLEAN])}, InvalidArgumentError, "endless cycle"),
    "lengths": ({"clean": (CLEAN[0], NOISY[1])}, DataError, "rows"),
    "targets": ({"ok": CLEAN, "clean": (CLEAN[0], CLEAN[1] + 9)}, DataError, "val['clean']"),
    "inputs": ({"ok": CLEAN, "clean": (CLEAN[0][:, :2], CLEAN[1])}, DataError, "val['clean']"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sets_that_do_not_fit_are_refused_before_training(case: str) -> None:
    """The message names the set."""
    sets, kind, words = REFUSED[case]
    used = quiet_trainer(network())
    with pytest.raises(kind) as caught:
        used.fit(TRAIN, sets, epochs=1)
    assert words in str(caught.value)
    assert used.state.step == 0
