"""Learning-rate schedules: PyTorch schedulers, advanced after steps or epochs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler

from finetunelib._typing import Mode
from finetunelib.training._optimization.horizon import Plan, check_length

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

    def check_monitor(self, measures: Sequence[str], directions: Mapping[str, Mode]) -> None:
        """Raise if a schedule that follows a measure cannot follow it in this `fit`.

        Args:
            measures: The columns of the history.
            directions: Which direction is better, for the columns for which it is known.

        Raises:
            InvalidArgumentError: If the column is not measured, or the scheduler's mode is not the
                direction that is better.
        """
        ...

    def check_length(self, plan: Plan) -> None:
        """Raise or warn if the schedule does not have the length of the run.

        Raises:
            InvalidArgumentError: If it would fail before the end.
        """
        ...

    def after_step(self) -> None:
        """Advance after an update."""
        ...

    def after_row(self, row: Mapping[str, float]) -> None:
        """Advance after a row of the history."""
        ...

    def after_epoch(self) -> None:
        """Advance after an epoch."""
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

    def check_monitor(self, measures: Sequence[str], directions: Mapping[str, Mode]) -> None: ...

    def check_length(self, plan: Plan) -> None: ...

    def after_step(self) -> None: ...

    def after_row(self, row: Mapping[str, float]) -> None: ...

    def after_epoch(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TorchSchedule:
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

    def check_monitor(self, measures: Sequence[str], directions: Mapping[str, Mode]) -> None: ...

    def check_length(self, plan: Plan) -> None: ...

    def after_step(self) -> None: ...

    def after_row(self, row: Mapping[str, float]) -> None: ...

    def after_epoch(self) -> None: ...

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


class StepSchedule(TorchSchedule):
    """Advances after every update."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        super().__init__(optimizer, scheduler)
        self._lr = super().lr

    @property
    def lr(self) -> float:
        """The learning rate of the last step, before the schedule changed it."""
        return self._lr

    def check_length(self, plan: Plan) -> None:
        """Compare the length of the schedule with the number of steps."""
        check_length(self._scheduler, "step", plan)

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


class EpochSchedule(TorchSchedule):
    """Advances after every epoch."""

    def check_length(self, plan: Plan) -> None:
        """Compare the length of the schedule with the number of epochs."""
        check_length(self._scheduler, "epoch", plan)

    def after_epoch(self) -> None:
        """Advance by one epoch."""
        self._advance()


def _first_lr(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
