"""Learning-rate schedules: torch's own, stepped at the right moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from finetunelib.errors import InvalidArgumentError, InvalidTypeError

#: A function from the optimizer to a scheduler of torch.
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]
Interval: TypeAlias = Literal["step", "epoch"]


class NoSchedule:
    """Keeps the learning rate as it is."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def lr(self) -> float:
        """The learning rate of the last step (of the first parameter group)."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def kind(self) -> str:
        """What moves the learning rate, for a comparison."""
        return type(self).__name__

    def after_step(self) -> None: ...

    def after_epoch(self, row: Mapping[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Return how far the schedule is."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _TorchSchedule(NoSchedule):
    """Moves the learning rate by a scheduler of torch."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        super().__init__(optimizer)
        self._scheduler: Any = scheduler  # Any: what their `step` takes differs.

    def _move(self) -> None:
        with warnings.catch_warnings():
            # torch misses an update in this process: in float16 one is left out where a gradient
            # overflowed, and a resumed training may have done them all before it was stopped.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._scheduler.step()

    @property
    def kind(self) -> str:
        """What moves the learning rate, for a comparison."""
        return f"{super().kind} of {type(self._scheduler).__name__}"

    def state_dict(self) -> dict[str, Any]:
        """Return how far the schedule is."""
        return {"scheduler": dict(self._scheduler.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._scheduler.load_state_dict(state["scheduler"])


class StepSchedule(_TorchSchedule):
    """Moves the learning rate after every update."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        super().__init__(optimizer, scheduler)
        self._lr = super().lr

    @property
    def lr(self) -> float:
        """The learning rate of the last step, from before the schedule moved it."""
        return self._lr

    def after_step(self) -> None:
        """Move on by one step."""
        self._lr = super().lr
        self._move()

    def state_dict(self) -> dict[str, Any]:
        """Return how far the schedule is, and the last step's learning rate."""
        return super().state_dict() | {"lr": self._lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state)
        self._lr = state["lr"]


class EpochSchedule(_TorchSchedule):
    """Moves the learning rate after every epoch."""

    def after_epoch(self, row: Mapping[str, float]) -> None:  # noqa: ARG002 - what others look at
        """Move on by one epoch."""
        self._move()


class PlateauSchedule(_TorchSchedule):
    """Lowers the learning rate when the validation loss (else the training loss) stagnates."""

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Show the schedule how the epoch went."""
        self._scheduler.step(row.get("val_loss", row["train_loss"]))


def check_scheduler(scheduler: object, interval: str, optimizer: object) -> None:
    """Raise when these make no sense together, before anything is built of them.

    Args:
        scheduler: What the user passed as `lr_scheduler`.
        interval: What the user passed as `lr_scheduler_interval`.
        optimizer: What the user passed as `optimizer`.

    Raises:
        InvalidArgumentError: The interval is unknown, or the schedule is of another optimizer.
        InvalidTypeError: The schedule is no function of an optimizer.
    """
    if interval not in ("step", "epoch"):
        raise InvalidArgumentError(
            f'`lr_scheduler_interval` must be "step" or "epoch", but is {interval!r}.'
        )
    if isinstance(scheduler, LRScheduler):
        if scheduler.optimizer is not optimizer:
            raise InvalidArgumentError(
                f"`lr_scheduler` is a {type(scheduler).__name__} of another optimizer, whose "
                "learning rate it would move without any effect here. Pass a function: "
                f"`lr_scheduler=lambda optimizer: {type(scheduler).__name__}(optimizer, ...)`."
            )
    elif scheduler is not None and not callable(scheduler):
        raise InvalidTypeError(
            "`lr_scheduler` must be a function from an optimizer to a scheduler of torch, but is "
            f"{scheduler!r} ({type(scheduler).__name__})."
        )


def build_schedule(
    scheduler: SchedulerFactory | LRScheduler | None,
    interval: Interval,
    optimizer: torch.optim.Optimizer,
) -> NoSchedule:
    """Return the schedule for an optimizer.

    Raises:
        InvalidTypeError: The function returned something else than a schedule.
        InvalidArgumentError: A schedule that needs an epoch's loss is to be stepped per update.
    """
    if scheduler is None:
        return NoSchedule(optimizer)
    made = scheduler if isinstance(scheduler, LRScheduler) else scheduler(optimizer)
    if isinstance(made, ReduceLROnPlateau):
        if interval == "step":
            raise InvalidArgumentError(
                "ReduceLROnPlateau looks at the loss of an epoch, but `lr_scheduler_interval` is "
                '"step". Pass "epoch".'
            )
        return PlateauSchedule(optimizer, made)
    if not isinstance(made, LRScheduler):
        raise InvalidTypeError(
            "`lr_scheduler` must return a scheduler of torch, but returned "
            f"{made!r} ({type(made).__name__})."
        )
    kind = StepSchedule if interval == "step" else EpochSchedule
    return kind(optimizer, made)
