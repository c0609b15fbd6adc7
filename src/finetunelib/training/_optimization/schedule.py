"""Learning-rate schedules: PyTorch schedulers, advanced after steps or epochs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from finetunelib.errors import InvalidArgumentError, InvalidTypeError

#: A function that builds a PyTorch scheduler for an optimizer.
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]
Interval: TypeAlias = Literal["step", "epoch"]


class Schedule(Protocol):
    """Changes the learning rate during a run."""

    @property
    def lr(self) -> float:
        """The learning rate of the last step, of the first parameter group."""
        ...

    @property
    def signature(self) -> str:
        """The name of the schedule, which must match when a run resumes."""
        ...

    def after_step(self) -> None:
        """Advance after an update."""
        ...

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Advance after an epoch with this row of the history."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the schedule."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class NoSchedule:
    """Keeps the learning rate constant."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group."""
        return _first_lr(self._optimizer)

    @property
    def signature(self) -> str:
        """The name of the schedule, which must match when a run resumes."""
        return type(self).__name__

    def after_step(self) -> None: ...

    def after_epoch(self, row: Mapping[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _TorchSchedule:
    """What the schedules that use a PyTorch scheduler have in common."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        self._optimizer = optimizer
        self._scheduler: Any = scheduler  # Any: the arguments of their `step` differ.

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group."""
        return _first_lr(self._optimizer)

    @property
    def signature(self) -> str:
        """The name of the schedule, which must match when a run resumes."""
        return f"{type(self).__name__} of {type(self._scheduler).__name__}"

    def after_step(self) -> None: ...

    def after_epoch(self, row: Mapping[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler."""
        return {"scheduler": dict(self._scheduler.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._scheduler.load_state_dict(state["scheduler"])

    def _advance(self) -> None:
        with warnings.catch_warnings():
            # PyTorch warns if it saw no update before. With float16 an update is skipped when a
            # gradient overflows, and the updates of a resumed run were made in another process.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._scheduler.step()


class StepSchedule(_TorchSchedule):
    """Advances after every update."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        super().__init__(optimizer, scheduler)
        self._lr = super().lr

    @property
    def lr(self) -> float:
        """The learning rate of the last step, before the schedule changed it."""
        return self._lr

    def after_step(self) -> None:
        """Advance by one step."""
        self._lr = super().lr
        self._advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler and the learning rate of the last step."""
        return super().state_dict() | {"lr": self._lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._lr = state["lr"]


class EpochSchedule(_TorchSchedule):
    """Advances after every epoch."""

    def after_epoch(self, row: Mapping[str, float]) -> None:  # noqa: ARG002 - the protocol's form
        """Advance by one epoch."""
        self._advance()


class PlateauSchedule(_TorchSchedule):
    """Lowers the learning rate when the validation loss (or the training loss) stagnates."""

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Pass the loss of the epoch to the scheduler."""
        self._scheduler.step(row.get("val_loss", row["train_loss"]))


def check_scheduler(scheduler: object, interval: str, optimizer: object) -> None:
    """Raise if these options cannot be combined, before anything is built.

    Args:
        scheduler: The argument `lr_scheduler`.
        interval: The argument `lr_scheduler_interval`.
        optimizer: The argument `optimizer`.

    Raises:
        InvalidArgumentError: If the interval is unknown, or the scheduler belongs to another
            optimizer.
        InvalidTypeError: If `scheduler` is neither a scheduler nor callable.
    """
    if interval not in ("step", "epoch"):
        raise InvalidArgumentError(
            f'`lr_scheduler_interval` must be "step" or "epoch", got {interval!r}.'
        )
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
) -> Schedule:
    """Return the schedule for an optimizer.

    Raises:
        InvalidTypeError: If the function did not return a scheduler.
        InvalidArgumentError: If ReduceLROnPlateau, which needs the loss of an epoch, is to advance
            after every step.
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
        return PlateauSchedule(optimizer, built)
    if not isinstance(built, LRScheduler):
        raise InvalidTypeError(
            "`lr_scheduler` must return a PyTorch scheduler, got "
            f"{built!r} ({type(built).__name__})."
        )
    kind = StepSchedule if interval == "step" else EpochSchedule
    return kind(optimizer, built)


def _first_lr(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
