"""Compares the length of a schedule with that of a training run, before it starts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from finetunelib.errors import InvalidArgumentError

#: A schedule of this length or less is not suspected to be counted in steps: it may be meant for
#: the epochs of several calls of `fit`.
_SHORT = 9


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left of a run, as far as it is known. A callback may end it earlier.

    Attributes:
        epochs: The number of epochs, or `None`.
        steps: The number of updates, or `None`.
        batches: The number of batches, or `None`.
        steps_per_epoch: The number of updates in an epoch, or `None`.
        batches_per_epoch: The number of batches in an epoch, or `None`.
    """

    epochs: int | None
    steps: int | None
    batches: int | None
    steps_per_epoch: int | None
    batches_per_epoch: int | None


@dataclass(frozen=True, slots=True)
class _End:
    """What happens when a schedule continues after its last step.

    Attributes:
        length: The number of steps of the schedule.
        argument: The argument that determines it.
        then: What the schedule does afterwards.
    """

    length: int
    argument: str
    then: Literal["raises", "rises", "is zero", "stays"]


def check_length(scheduler: LRScheduler, interval: Literal["step", "epoch"], plan: Plan) -> None:
    """Raise or warn if a schedule does not have the length of the run.

    Args:
        scheduler: The scheduler, at its position.
        interval: When it advances.
        plan: What is left of the run.

    Raises:
        InvalidArgumentError: If the scheduler fails after its last step, and the run is longer.
    """
    end = _end_of(scheduler)
    advances = plan.steps if interval == "step" else plan.epochs
    if end is None or advances is None:
        return
    name = f"{type(scheduler).__name__}, whose `{end.argument}` is {end.length},"
    last = _position(scheduler) + advances
    if end.then == "raises" and last > end.length:
        raise InvalidArgumentError(
            f"{name} cannot advance more than {end.length} times, but this `fit` would advance it "
            f"{advances} times, to {last} (after every {interval}). Build the schedule with "
            f"{end.argument}={last}, or train for less."
        )
    problem = _wrong_interval(end, interval, plan)
    if not problem and last - 1 > end.length and end.then in ("rises", "is zero"):
        effect = "lets the learning rate rise again" if end.then == "rises" else "trains with 0"
        problem = (
            f"{effect} after {end.length} of {last} {interval}s. Build it with "
            f"{end.argument}={last} for the whole run."
        )
    if problem:
        warnings.warn(f"{name} {problem}", stacklevel=4)


def _position(scheduler: LRScheduler) -> int:
    """Return how often a scheduler has advanced."""
    if isinstance(scheduler, ChainedScheduler):
        return _position(scheduler._schedulers[0])  # noqa: SLF001 - it has no position of its own
    return scheduler.last_epoch


def _wrong_interval(end: _End, interval: str, plan: Plan) -> str:
    """Return what is wrong if a schedule's length is that of the run in another unit."""
    per_epoch = (plan.steps_per_epoch, plan.batches_per_epoch)
    totals = (plan.steps, plan.batches)
    epochs = plan.epochs
    if interval == "epoch" and epochs is not None and end.length > max(epochs, _SHORT):
        for total, one in zip(totals, per_epoch, strict=True):
            if one is None or one == 1:
                continue
            # A number of batches that was rounded differently differs by one for each epoch.
            near = total is not None and abs(end.length - total) <= epochs
            if near or end.length == one:
                return (
                    f"has the length of the run in steps, but advances only {epochs} times, "
                    'after every epoch. Pass lr_scheduler_interval="step".'
                )
    if interval == "step" and plan.steps is not None:
        if end.length == plan.epochs and end.length < plan.steps and end.then != "stays":
            return (
                f"has the length of the run in epochs, but advances {plan.steps} times, after "
                'every step. Pass lr_scheduler_interval="epoch".'
            )
        if plan.batches is not None and end.length == plan.batches > plan.steps:
            return (
                f"counts the batches, but there are only {plan.steps} updates of several batches "
                f"each. Build it with {end.argument}={plan.steps}."
            )
    return ""


def _end_of(scheduler: LRScheduler) -> _End | None:  # noqa: PLR0911 - one return per kind
    """Return the end of a schedule, or `None` if it has none or it is not known."""
    match scheduler:
        case SequentialLR():
            last = _end_of(scheduler._schedulers[-1])  # noqa: SLF001 - there is no public name
            start = scheduler._milestones[-1]  # noqa: SLF001
            return None if last is None else _End(start + last.length, last.argument, last.then)
        case ChainedScheduler():
            ends = [end for part in scheduler._schedulers if (end := _end_of(part))]  # noqa: SLF001
            return min(ends, key=lambda end: (end.then == "stays", end.length), default=None)
        case OneCycleLR():
            return _End(scheduler.total_steps, "total_steps", "raises")
        case CosineAnnealingLR():
            return _End(scheduler.T_max, "T_max", "rises")
        case PolynomialLR():
            return _End(scheduler.total_iters, "total_iters", "is zero")
        case LinearLR():
            zero = scheduler.end_factor == 0
            return _End(scheduler.total_iters, "total_iters", "is zero" if zero else "stays")
        case ConstantLR():
            return _End(scheduler.total_iters, "total_iters", "stays")
        case MultiStepLR() if scheduler.milestones:
            return _End(max(scheduler.milestones), "milestones", "stays")
    return None
