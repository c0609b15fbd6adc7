"""The steps that a row of the history is about: those of an epoch, or n steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetunelib.training._callbacks.context import TrainContext


class Interval(Protocol):
    """The steps that a row of the history is about."""

    @property
    def every_n_steps(self) -> int | None:
        """The number of steps between two rows, or `None` if a row is about an epoch."""
        ...

    def is_open(self, context: TrainContext) -> bool:
        """Return whether there were steps since the last row."""
        ...


class EpochInterval:
    """A row is about an epoch."""

    every_n_steps: int | None = None

    def is_open(self, context: TrainContext) -> bool:
        """Return whether an epoch is unfinished."""
        return context.state.batch > 0


@dataclass(frozen=True, slots=True)
class StepInterval:
    """A row is about n steps: those up to a step that n divides.

    Attributes:
        every_n_steps: The number of steps.
        start: The step after which the first interval of this `fit` began.
    """

    every_n_steps: int
    start: int

    def is_open(self, context: TrainContext) -> bool:
        """Return whether there were steps since the last row."""
        rows = context.history.rows
        last = int(rows[-1]["step"]) if rows else 0
        return context.state.step > max(last, self.start)

    def is_complete(self, context: TrainContext) -> bool:
        """Return whether a row is due and not yet measured."""
        return context.state.step % self.every_n_steps == 0 and self.is_open(context)
