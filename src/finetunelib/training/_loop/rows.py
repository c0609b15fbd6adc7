"""When the rows of the history are measured: after each epoch, or after every n steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._loop.moments import Moment, Moments
from finetunelib.training._loop.validation import Validation
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._optimization.schedule import Schedule
from finetunelib.training._reporting.interval import StepInterval
from finetunelib.training._reporting.report import Report


@dataclass(frozen=True, slots=True)
class RowWriter:
    """Measures a row of the history and appends it.

    Attributes:
        context: The run as callbacks see it.
        train_metrics: The loss and metrics, accumulated while training.
        validation: What is measured on validation data.
        schedule: The learning-rate schedule, which may follow the rows.
        moments: What else happens, in order.
        report: The progress bar and the timings.
    """

    context: TrainContext
    train_metrics: MetricAccumulator
    validation: Validation
    schedule: Schedule
    moments: Moments
    report: Report

    def measure(self) -> dict[str, float]:
        """Return the loss and metrics since the last row, and those of the validation."""
        self.moments.training_end(self.context)
        self.report.end_training()
        return self.train_metrics.compute() | self.validation.run(self.context)

    def append(self, values: dict[str, float], then: Moment) -> None:
        """Append a row with these values, and call hooks that see it."""
        with self.report.row(values, self.context, self.schedule.lr) as row:
            self.context.history.append(row)
            self.schedule.after_row(row)
            then(self.context)

    def count_epoch(self) -> None:
        """Count an epoch whose data was read."""
        state = self.context.state
        state.epoch, state.batch = state.epoch + 1, 0


class Rows(Protocol):
    """Decides when a row of the history is measured."""

    def start_epoch(self) -> None:
        """Prepare for a new epoch, or for the rest of an unfinished one."""
        ...

    def after_step(self) -> None:
        """Measure a row, if one is due after a step."""
        ...

    def end_epoch(self) -> None:
        """Count an epoch whose data was read, with a row if one is due."""
        ...

    def end_training(self) -> None:
        """Measure a last row, if there were steps since the one before."""
        ...


@dataclass(frozen=True, slots=True)
class EpochRows:
    """Measures a row at the end of each epoch."""

    writer: RowWriter

    def start_epoch(self) -> None:
        """Start new sums, unless an unfinished epoch continues."""
        if self.writer.context.state.batch == 0:
            self.writer.train_metrics.reset()

    def after_step(self) -> None: ...

    def end_epoch(self) -> None:
        """Measure the row of the epoch."""
        writer = self.writer
        values = writer.measure()
        writer.count_epoch()
        writer.append(values, writer.moments.epoch_end)

    def end_training(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StepRows:
    """Measures a row after every n steps, and at the end of training.

    Attributes:
        writer: Measures a row.
        interval: The steps of a row.
    """

    writer: RowWriter
    interval: StepInterval

    def start_epoch(self) -> None:
        """Measure a row that was due when the run was stopped."""
        self.after_step()

    def after_step(self) -> None:
        """Measure a row, if the interval is complete."""
        if self.interval.is_complete(self.writer.context):
            self._measure()

    def end_epoch(self) -> None:
        """Count the epoch. It has no row of its own."""
        self.writer.count_epoch()
        self.writer.moments.epoch_end(self.writer.context)

    def end_training(self) -> None:
        """Measure a row over the rest of an interval."""
        if self.interval.is_open(self.writer.context):
            self._measure()

    def _measure(self) -> None:
        values = self.writer.measure()
        self.writer.train_metrics.reset()
        self.writer.append(values, self.writer.moments.row)
