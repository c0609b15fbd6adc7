"""Learning-rate schedules are PyTorch schedulers, advanced at the right time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    Untouched,
    batches_of,
    plain_network,
    points,
    quiet_trainer,
    same_weights,
)

STEPS = 6  # of an epoch: 22 samples in batches of 4
Make = Callable[[torch.optim.Optimizer], LRScheduler]


def warm_up_and_cosine(optimizer: torch.optim.Optimizer) -> SequentialLR:
    """Return three steps of linear warm-up, then a cosine to zero."""
    return SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 3 * STEPS - 3)],
        milestones=[3],
    )


SCHEDULES: dict[str, Make] = {
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.7),
    "every second": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "warm-up and cosine": warm_up_and_cosine,
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=3 * STEPS + 1),
}


def train_by_hand(model: nn.Module, make: Make, interval: str, epochs: int) -> list[list[float]]:
    """Train with a hand-written loop; return the learning rates of each step, per epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for epoch in range(epochs):
        rates.append(list[float]())
        for inputs, targets in batches_of(points(), epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if interval == "step":
                scheduler.step()
        if interval == "epoch":
            scheduler.step()
    return rates


class Rates(Callback):
    """Records the learning rate at the start of every epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_epoch_start(self, context: TrainContext) -> None:
        self.seen.append(context.optimizer.param_groups[0]["lr"])


@pytest.mark.filterwarnings("ignore:.*has the length of the run")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_is_the_hand_written_loop_bit_for_bit(schedule: str, interval: Any) -> None:
    """Per step or per epoch, it gives the same weights, without a warning."""
    make = SCHEDULES[schedule]
    model, expected, constant = plain_network(), plain_network(), plain_network()
    train_by_hand(expected, make, interval, 3)
    quiet_trainer(model, lr=0.1, lr_scheduler=make, lr_scheduler_interval=interval).fit(
        points(), epochs=3
    )
    quiet_trainer(constant, lr=0.1).fit(points(), epochs=3)
    assert same_weights(model, expected)
    assert not same_weights(model, constant)


def test_schedule_advances_after_epochs_by_default() -> None:
    """The default interval is the epoch."""
    rates = Rates()
    quiet_trainer(
        plain_network(), lr=0.1, lr_scheduler=SCHEDULES["exponential"], callbacks=[rates]
    ).fit(points(), epochs=3)
    assert rates.seen == pytest.approx([0.1, 0.07, 0.049], rel=1e-12)  # products of doubles


@pytest.mark.filterwarnings("ignore:.*has the length of the run")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_recorded_lr_is_that_of_the_last_step(schedule: str, interval: Any) -> None:
    """The column `lr` has the learning rate of the last update of the epoch."""
    make = SCHEDULES[schedule]
    rates = train_by_hand(plain_network(), make, interval, 3)
    history = quiet_trainer(
        plain_network(), lr=0.1, lr_scheduler=make, lr_scheduler_interval=interval
    ).fit(points(), epochs=3)
    assert history["lr"] == [epoch[-1] for epoch in rates]


def test_recorded_lr_is_constant_without_a_schedule() -> None:
    """The column exists without a schedule too."""
    assert quiet_trainer(plain_network(), lr=0.1).fit(points(), epochs=2)["lr"] == [0.1, 0.1]


def test_schedule_per_step_advances_once_per_window() -> None:
    """With accumulation, the schedule counts updates, not micro-batches."""
    rates = Rates()
    quiet_trainer(
        plain_network(),
        lr=1.0,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
        lr_scheduler_interval="step",
        gradient_accumulation_steps=2,
        callbacks=[rates],
    ).fit(points(), epochs=2)
    assert rates.seen == [1.0, 0.125]


def test_schedule_continues_in_a_second_fit() -> None:
    """The schedule is built once, and a second `fit` starts where the first one ended."""
    rates = Rates()
    trainer = quiet_trainer(
        plain_network(),
        lr=1.0,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch),
        callbacks=[rates],
    )
    trainer.fit(points(), epochs=2)
    trainer.fit(points(), epochs=2)
    assert rates.seen == [1.0, 0.5, 0.25, 0.125]


def test_schedule_changes_every_group() -> None:
    """Groups with different learning rates are scheduled together."""
    model = plain_network()
    groups: list[dict[str, Any]] = [
        {"params": model.head.parameters(), "lr": 0.2},
        {"params": model.backbone.parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    quiet_trainer(
        model, optimizer=optimizer, lr_scheduler=lambda given: ExponentialLR(given, 0.5)
    ).fit(points(), epochs=1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_scheduler_object_of_the_optimizer_object_is_used() -> None:
    """A scheduler that was built for the optimizer that is passed is accepted."""
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, 0.5)
    quiet_trainer(model, optimizer=optimizer, lr_scheduler=scheduler).fit(points(), epochs=2)
    assert optimizer.param_groups[0]["lr"] == 0.025


# ReduceLROnPlateau


def plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return a schedule that halves the learning rate unless the loss falls by 0.1 in an epoch."""
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.1, threshold_mode="abs")


def expected_rates(losses: Sequence[float]) -> list[float]:
    """Return the learning rates of epochs with these losses, from PyTorch's scheduler."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = plateau(optimizer)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return rates


def test_plateau_uses_the_validation_loss() -> None:
    """With validation data, its loss is used."""
    rates = Rates()
    inputs, targets = points()
    opposite = (inputs, (targets + 1) % 3)  # Its loss increases while the training loss decreases.
    history = quiet_trainer(plain_network(), lr=0.1, lr_scheduler=plateau, callbacks=[rates]).fit(
        (inputs, targets), opposite, epochs=6
    )
    assert rates.seen == expected_rates(history["val_loss"])
    assert rates.seen != expected_rates(history["train_loss"])


def test_plateau_uses_the_training_loss_without_validation() -> None:
    """Without validation data, the training loss is used."""
    rates = Rates()
    history = quiet_trainer(plain_network(), lr=0.1, lr_scheduler=plateau, callbacks=[rates]).fit(
        points(), epochs=8
    )
    assert rates.seen == expected_rates(history["train_loss"])
    assert len(set(rates.seen)) > 1


# Errors


def refused(error: type[Exception], *values: str, **options: Any) -> None:
    """Assert that a Trainer with these options cannot train, and leaves the model unchanged."""
    model = plain_network()
    untouched = Untouched(model)
    with pytest.raises(error) as caught:
        quiet_trainer(model, **options).fit(points(), epochs=1)
    for value in values:
        assert value in str(caught.value)
    untouched.check()


def test_schedule_of_another_optimizer_is_an_error_that_names_it() -> None:
    """It would change a learning rate that is not used."""
    other = torch.optim.SGD(plain_network().parameters(), lr=0.1)
    refused(InvalidArgumentError, "ExponentialLR", lr_scheduler=ExponentialLR(other, 0.5))


def test_schedule_of_another_optimizer_object_is_an_error() -> None:
    """Two optimizers of one model are different optimizers."""
    model = plain_network()
    one, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(InvalidArgumentError, match="`lr_scheduler`"):
        quiet_trainer(model, optimizer=one, lr_scheduler=ExponentialLR(other, 0.5))


@pytest.mark.parametrize("scheduler", [0.1, "cosine", {}], ids=repr)
def test_schedule_that_cannot_be_called_is_an_error_that_shows_it(scheduler: Any) -> None:
    """A number or a name is not a schedule."""
    refused(InvalidTypeError, "`lr_scheduler`", repr(scheduler), lr_scheduler=scheduler)


@pytest.mark.parametrize("made", [None, 0.1], ids=repr)
def test_schedule_factory_that_returns_no_schedule_is_an_error_that_shows_it(made: Any) -> None:
    """A missing `return` is found before the first step."""
    refused(InvalidTypeError, "`lr_scheduler`", repr(made), lr_scheduler=lambda optimizer: made)


def test_schedule_class_that_needs_more_arguments_fails_before_the_first_step() -> None:
    """A class is called with the optimizer alone, and its own error is raised."""
    model = plain_network()
    untouched = Untouched(model)
    with pytest.raises(TypeError, match="gamma"):
        quiet_trainer(model, lr_scheduler=ExponentialLR).fit(points(), epochs=1)
    untouched.check()


def test_plateau_per_step_is_an_error_that_names_the_interval() -> None:
    """There is no loss of an epoch after a step."""
    refused(
        InvalidArgumentError,
        "`lr_scheduler_interval`",
        "ReduceLROnPlateau",
        lr_scheduler=plateau,
        lr_scheduler_interval="step",
    )


@pytest.mark.parametrize("interval", ["batch", "steps", 1, None], ids=repr)
def test_unknown_interval_is_an_error_that_shows_it(interval: Any) -> None:
    """A misspelled interval is refused."""
    refused(
        InvalidArgumentError,
        "`lr_scheduler_interval`",
        repr(interval),
        lr_scheduler_interval=interval,
    )


# What ReduceLROnPlateau monitors


def flat(mode: str) -> Any:
    """Return a factory of schedulers that halve the rate after each epoch without improvement."""
    return lambda optimizer: ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=0)  # type: ignore[arg-type]


def rising(outputs: Tensor, targets: Tensor) -> float:
    """A score that rises from epoch to epoch."""
    rising.calls += 1  # type: ignore[attr-defined]
    return float(rising.calls)  # type: ignore[attr-defined]


def rates(mode: str, **options: Any) -> list[float]:
    """Return the learning rates of three epochs in which the score rises."""
    rising.calls = 0  # type: ignore[attr-defined]
    trainer = quiet_trainer(
        plain_network(), lr=0.4, lr_scheduler=flat(mode), metrics={"score": rising}, **options
    )
    return list(trainer.fit(points(8), points(8), epochs=3)["lr"])


def test_plateau_follows_the_column_that_is_monitored() -> None:
    """A score that rises keeps the rate with "max"; with "min" each epoch would halve it."""
    options = {"lr_scheduler_monitor": "val_score"}
    assert rates("max", lr_scheduler_mode="max", **options) == [0.4, 0.4, 0.4]
    assert rates("min", lr_scheduler_mode="min", **options) == [0.4, 0.4, 0.2]


@pytest.mark.parametrize(
    ("mode", "options", "word"),
    [
        ("max", {}, "'train_loss'|'val_loss'"),
        ("min", {"lr_scheduler_monitor": "val_score"}, "lr_scheduler_mode"),
        ("min", {"lr_scheduler_monitor": "val_score", "lr_scheduler_mode": "max"}, "mode='max'"),
        ("min", {"lr_scheduler_monitor": "val_scor", "lr_scheduler_mode": "min"}, "'val_score'"),
        ("min", {"lr_scheduler_mode": "lower"}, "lower"),
    ],
    ids=["loss", "unknown direction", "contradiction", "misspelled", "mode"],
)
def test_plateau_in_the_wrong_direction_is_an_error_before_training(
    mode: str, options: dict[str, Any], word: str
) -> None:
    """The rate would be lowered while the value improves."""
    with pytest.raises(InvalidArgumentError, match=word):
        rates(mode, **options)


def test_direction_of_accuracy_is_known_to_a_plateau() -> None:
    """With `lr_scheduler_monitor="val_accuracy"` the scheduler needs its own mode only."""
    trainer = quiet_trainer(
        plain_network(), lr_scheduler=flat("max"), lr_scheduler_monitor="val_accuracy"
    )
    assert len(trainer.fit(points(8), points(8), epochs=1)) == 1
    with pytest.raises(InvalidArgumentError, match="mode='max'"):
        quiet_trainer(
            plain_network(), lr_scheduler=flat("min"), lr_scheduler_monitor="val_accuracy"
        ).fit(points(8), points(8), epochs=1)


@pytest.mark.parametrize("scheduler", [None, lambda o: StepLR(o, 3)], ids=["none", "StepLR"])
@pytest.mark.parametrize("option", ["lr_scheduler_monitor", "lr_scheduler_mode"])
def test_monitor_without_a_plateau_is_an_error(scheduler: Any, option: str) -> None:
    """It would be ignored."""
    value = "val_loss" if option == "lr_scheduler_monitor" else "min"
    with pytest.raises(InvalidArgumentError, match=f"`{option}`"):
        quiet_trainer(plain_network(), lr_scheduler=scheduler, **{option: value}).fit(
            points(8), points(8), epochs=1
        )
