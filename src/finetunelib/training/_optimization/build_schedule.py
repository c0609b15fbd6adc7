"""Checks the `lr_scheduler` arguments, and builds the schedule."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._optimization.plateau import Monitored, PlateauSchedule
from finetunelib.training._optimization.schedule import (
    EpochSchedule,
    Interval,
    NoSchedule,
    Schedule,
    SchedulerFactory,
    StepSchedule,
)


def check_scheduler(
    scheduler: object, interval: str, optimizer: object, monitored: Monitored
) -> None:
    """Raise if these options cannot be combined, before anything is built.

    Args:
        scheduler: The argument `lr_scheduler`.
        interval: The argument `lr_scheduler_interval`.
        optimizer: The argument `optimizer`.
        monitored: The arguments `lr_scheduler_monitor` and `lr_scheduler_mode`.

    Raises:
        InvalidArgumentError: If the interval or the mode is unknown, the scheduler belongs to
            another optimizer, or there is no scheduler for what is to be monitored.
        InvalidTypeError: If `scheduler` is neither a scheduler nor callable.
    """
    if interval not in ("step", "epoch"):
        raise InvalidArgumentError(
            f'`lr_scheduler_interval` must be "step" or "epoch", got {interval!r}.'
        )
    if monitored.mode not in ("min", "max", None):
        raise InvalidArgumentError(
            f'`lr_scheduler_mode` must be "min" or "max", got {monitored.mode!r}.'
        )
    if scheduler is None and not monitored.is_default:
        raise InvalidArgumentError(_nothing_to_monitor(monitored, "there is no `lr_scheduler`"))
    if isinstance(scheduler, LRScheduler):
        if scheduler.optimizer is not optimizer:
            raise InvalidArgumentError(
                f"`lr_scheduler` is a {type(scheduler).__name__} of a different optimizer, so it "
                "would have no effect. Pass a function: "
                f"`lr_scheduler=lambda optimizer: {type(scheduler).__name__}(optimizer, ...)`."
            )
    elif scheduler is not None and not callable(scheduler):
        raise InvalidTypeError(
            "`lr_scheduler` must be a function from an optimizer to a PyTorch scheduler, got "
            f"{scheduler!r} ({type(scheduler).__name__})."
        )


def build_schedule(
    scheduler: SchedulerFactory | LRScheduler | None,
    interval: Interval,
    optimizer: torch.optim.Optimizer,
    monitored: Monitored,
) -> Schedule:
    """Return the schedule for an optimizer.

    Raises:
        InvalidTypeError: If the function did not return a scheduler.
        InvalidArgumentError: If ReduceLROnPlateau, which needs the loss of an epoch, is to advance
            after every step, or another scheduler is to monitor a column.
    """
    if scheduler is None:
        return NoSchedule(optimizer)
    built = scheduler if isinstance(scheduler, LRScheduler) else scheduler(optimizer)
    if isinstance(built, ReduceLROnPlateau):
        if interval == "step":
            raise InvalidArgumentError(
                "ReduceLROnPlateau needs the loss of an epoch, got `lr_scheduler_interval` "
                '"step". Pass "epoch".'
            )
        return PlateauSchedule(optimizer, built, monitored)
    if not isinstance(built, LRScheduler):
        raise InvalidTypeError(
            "`lr_scheduler` must return a PyTorch scheduler, got "
            f"{built!r} ({type(built).__name__})."
        )
    if not monitored.is_default:
        raise InvalidArgumentError(
            _nothing_to_monitor(monitored, f"`lr_scheduler` is a {type(built).__name__}")
        )
    kind = StepSchedule if interval == "step" else EpochSchedule
    return kind(optimizer, built)


def _nothing_to_monitor(monitored: Monitored, reason: str) -> str:
    name = "lr_scheduler_mode" if monitored.column is None else "lr_scheduler_monitor"
    value = monitored.column or monitored.mode
    return (
        f"`{name}` is {value!r}, but {reason}, which monitors nothing. Pass ReduceLROnPlateau, or "
        f"omit `{name}`."
    )
