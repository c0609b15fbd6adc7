"""A checkpoint of a different run is refused with both values named, and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR, StepLR

from finetunelib import Trainer
from finetunelib.callbacks import EMA, EarlyStopping
from finetunelib.data._batches import Data
from finetunelib.errors import CheckpointError, FileMissingError
from finetunelib.training import Callback
from training._checkpointing.checkpoint_files import DATA, INPUTS, bits, forge, model, trainer
from training._loop.stopping import SaveAt


def saved(folder: Path, data: Data = DATA, **options: Any) -> Path:
    """Return a checkpoint of the second step of the first epoch."""
    path = folder / "checkpoint"
    callbacks = [*options.pop("callbacks", ()), SaveAt(2, path)]
    trainer(callbacks=callbacks, **options).fit(data, epochs=1)
    return path


def refused(path: Path, other: Trainer, *, data: Data = DATA) -> str:
    """Check that a fit refuses a checkpoint and changes nothing, and return the message."""
    other.fit(DATA, epochs=1)
    before = bits(other)
    with pytest.raises(CheckpointError) as caught:
        other.fit(data, epochs=5, resume_from=path)
    assert bits(other) == before
    return str(caught.value)


def test_another_shape_is_named_on_both_sides(tmp_path: Path) -> None:
    """For a head of another size, the message has the key and both shapes."""
    message = refused(saved(tmp_path), trainer(model=model(5)))
    assert "weight" in message
    assert "[3, 4]" in message
    assert "[5, 4]" in message


def test_other_keys_are_named_on_both_sides(tmp_path: Path) -> None:
    """For a model with other names, the message has the missing and the unexpected keys."""
    message = refused(saved(tmp_path), trainer(model=nn.Sequential(model())))
    assert "weight" in message
    assert "0.weight" in message


def test_another_optimizer_is_named_on_both_sides(tmp_path: Path) -> None:
    """SGD does not load the state of AdamW."""
    path = saved(tmp_path, optimizer=torch.optim.AdamW)
    message = refused(path, trainer(optimizer=torch.optim.SGD))
    assert "AdamW" in message
    assert "SGD" in message


def test_other_parameter_groups_are_named_on_both_sides(tmp_path: Path) -> None:
    """One group of two parameters is not two groups of one."""

    def two_groups(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
        groups = [{"params": [p]} for group in parameters for p in group["params"]]
        return torch.optim.SGD(groups, lr=lr)

    message = refused(saved(tmp_path, optimizer=torch.optim.SGD), trainer(optimizer=two_groups))
    assert "[2]" in message
    assert "[1, 1]" in message


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (None, partial(LinearLR, total_iters=4)),
        (partial(LinearLR, total_iters=4), None),
        (partial(LinearLR, total_iters=4), partial(StepLR, step_size=1)),
    ],
)
def test_another_schedule_is_named_on_both_sides(
    tmp_path: Path, there: Callable[..., Any] | None, here: Callable[..., Any] | None
) -> None:
    """A schedule of another class, or none, does not load the saved position."""
    message = refused(saved(tmp_path, lr_scheduler=there), trainer(lr_scheduler=here))
    for schedule in (there, here):
        assert schedule is None or schedule.func.__name__ in message  # type: ignore[attr-defined]


def test_a_schedule_of_epochs_is_not_one_of_steps(tmp_path: Path) -> None:
    """The same class with another interval counts differently."""
    schedule = partial(LinearLR, total_iters=4)
    path = saved(tmp_path, lr_scheduler=schedule, lr_scheduler_interval="step")
    message = refused(path, trainer(lr_scheduler=schedule))
    assert "StepSchedule" in message
    assert "EpochSchedule" in message


def test_another_precision_is_named_on_both_sides(tmp_path: Path) -> None:
    """Mixed precision does not resume a run in full precision."""
    message = refused(saved(tmp_path), trainer(precision="bf16-mixed"))
    assert "MixedPrecision" in message
    assert "FullPrecision" in message


@pytest.mark.parametrize(
    ("there", "here", "named"),
    [([EMA], [], "EMA"), ([], [EMA], "EMA"), ([EMA], [EMA, EMA], "EMA.2")],
)
def test_other_callbacks_are_named(
    tmp_path: Path,
    there: list[type[Callback]],
    here: list[type[Callback]],
    named: str,
) -> None:
    """A state without its callback, or a callback without its state, is an error."""
    path = saved(tmp_path, callbacks=[kind() for kind in there])
    assert named in refused(path, trainer(callbacks=[kind() for kind in here]))


@pytest.mark.parametrize("kind", [EMA, EarlyStopping])
def test_the_same_callbacks_resume(tmp_path: Path, kind: Callable[[], Callback]) -> None:
    """Callbacks with the same names match, even if others come before them."""
    quiet = {"monitor": "train_loss"} if kind is EarlyStopping else {}
    path = saved(tmp_path, callbacks=[kind(**quiet)])
    resumed = trainer(callbacks=[Callback(), kind(**quiet)])
    resumed.fit(DATA, epochs=2, resume_from=path)
    assert resumed.state.epoch == 2


@pytest.mark.parametrize(
    ("data", "options", "numbers"),
    [
        (DATA, {"batch_size": 4}, ("batch_size 2", "batch_size 4")),
        ((INPUTS[:6], DATA[1][:6]), {}, ("samples 8", "samples 6")),
        (DATA, {"gradient_accumulation_steps": 2}, ("steps 1", "steps 2")),
    ],
)
def test_other_data_inside_an_epoch_is_named_on_both_sides(
    tmp_path: Path, data: Data, options: dict[str, Any], numbers: tuple[str, str]
) -> None:
    """An epoch does not resume with different batches, and nothing is loaded."""
    message = refused(saved(tmp_path), trainer(**options), data=data)
    assert all(number in message for number in numbers)


def test_other_data_after_an_epoch_is_accepted(tmp_path: Path) -> None:
    """Between epochs, a run may resume with other data in other batches."""
    trained = trainer()
    trained.fit(DATA, epochs=1)
    path = trained.save_checkpoint(tmp_path / "one")
    resumed = trainer(batch_size=3)
    resumed.fit((INPUTS[:6], DATA[1][:6]), epochs=2, resume_from=path)
    assert resumed.history["step"] == [4, 6]


def test_another_seed_is_reported_and_training_continues(tmp_path: Path) -> None:
    """The warning has both seeds, because the bits will differ."""
    path = saved(tmp_path)
    resumed = trainer(seed=7)
    with pytest.warns(UserWarning, match="seed 0 -> 7"):
        resumed.fit(DATA, epochs=2, resume_from=path)
    assert resumed.state.epoch == 2


def test_another_number_of_threads_is_reported_and_training_continues(tmp_path: Path) -> None:
    """The warning has both numbers."""
    path = saved(tmp_path)
    torch.set_num_threads(2)
    resumed = trainer()
    with pytest.warns(UserWarning, match="threads 1 -> 2"):
        resumed.fit(DATA, epochs=2, resume_from=path)
    assert resumed.state.epoch == 2


@pytest.mark.parametrize("name", ["torch", "python", "finetunelib", "device"])
def test_another_version_or_device_is_reported(tmp_path: Path, name: str) -> None:
    """The warning has the saved value and the current one."""
    path = saved(tmp_path)
    forge(path, **{name: "other"})
    with pytest.warns(UserWarning, match=f"{name} other -> "):
        trainer().fit(DATA, epochs=2, resume_from=path)


def test_the_same_environment_gives_no_warning(tmp_path: Path) -> None:
    """There is no warning if nothing differs."""
    path = saved(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer().fit(DATA, epochs=2, resume_from=path)


def test_load_checkpoint_raises_if_there_is_none(tmp_path: Path) -> None:
    """Unlike `fit`, which starts from scratch."""
    with pytest.raises(FileMissingError, match="missing"):
        trainer().load_checkpoint(tmp_path / "missing")


@pytest.mark.parametrize("name", ["optimizer", "schedule", "callbacks", "frozen", "inside"])
def test_a_state_that_lacks_a_part_is_refused(tmp_path: Path, name: str) -> None:
    """The message names the file and the missing part."""
    path = saved(tmp_path)
    state = torch.load(path / "state.pt", weights_only=True)
    del state[name]
    torch.save(state, path / "state.pt")
    forge(path)
    message = refused(path, trainer())
    assert str(path / "state.pt") in message
    assert name in message
