"""Reports the progress of a run, and times its epochs or intervals."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._reporting.clock import Clock
from finetunelib.training._reporting.running import RunningValues
from finetunelib.training._state import TrainState

#: The columns that a report adds to the metrics of a row.
TIMING_COLUMNS = ("lr", "seconds", "samples_per_second")


class Report(ABC):
    """Shows a bar before a row of the history and a line after it, and adds timings to the row."""

    def __init__(self, progress: Progress, clock: Clock, running: RunningValues) -> None:
        """Create a report.

        Args:
            progress: Where to show the progress.
            clock: Measures the time.
            running: What the bar shows.
        """
        self._progress = progress
        self._clock = clock
        self._running = running

    def start_clock(self) -> None:
        """Start to time the first row, which includes the preparation of the data."""
        self._clock.start()

    @abstractmethod
    def start_epoch(self, state: TrainState) -> None:
        """Report that an epoch starts, or the rest of one."""

    def advance(self, window: Sequence[Batch]) -> None:
        """Count an update and its samples."""
        self._clock.count(window)
        self._progress.advance()

    def end_training(self) -> None:
        """Stop the clock of training; validation follows."""
        self._clock.stop_training()

    @contextlib.contextmanager
    def row(
        self, values: Mapping[str, float], context: TrainContext, lr: float
    ) -> Iterator[dict[str, float]]:
        """Yield a row, and show its line after the block.

        Args:
            values: The loss and metrics.
            context: The run after the last step of the row.
            lr: The learning rate of that step.
        """
        state = context.state
        row = {
            "epoch": state.epoch + (state.batch > 0),
            "step": state.step,
            **values,
            "lr": lr,
            "seconds": self._clock.seconds,
            "samples_per_second": self._clock.samples_per_second,
        }
        try:
            yield row
        finally:
            self._progress.finish(self._line(row, context.stop_reason))
            self._clock.start()

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Close a bar that is left after the block, or after an error in it."""
        try:
            yield
        finally:
            self._progress.abort()

    @abstractmethod
    def _title(self, row: Mapping[str, float]) -> str:
        """Return the beginning of the line of a row."""

    def _line(self, row: Mapping[str, float], stop_reason: str | None) -> str:
        hidden = ("epoch", "step", *TIMING_COLUMNS)
        values = ", ".join(f"{n} {value:.4f}" for n, value in row.items() if n not in hidden)
        line = f"{self._title(row)}: {values}, {row['seconds']:.1f} s"
        return line + (f"; stopped: {stop_reason}" if stop_reason else "")


class EpochReport(Report):
    """Shows a bar for each epoch."""

    def __init__(
        self,
        progress: Progress,
        clock: Clock,
        running: RunningValues,
        batches: int | None,
        accumulation_steps: int,
        *,
        last_epoch: float,
    ) -> None:
        """Create a report.

        Args:
            progress: Where to show the progress.
            clock: Measures the time.
            running: What the bar shows.
            batches: The number of batches in an epoch, or `None` if unknown.
            accumulation_steps: The number of batches in an update.
            last_epoch: The number of the last epoch, or infinity.
        """
        super().__init__(progress, clock, running)
        self._steps = None if batches is None else math.ceil(batches / accumulation_steps)
        self._accumulation_steps = accumulation_steps
        self._total = "" if math.isinf(last_epoch) else f"/{last_epoch:.0f}"

    def start_epoch(self, state: TrainState) -> None:
        """Open the bar of an epoch."""
        self._running.start()
        self._progress.start(
            f"epoch {state.epoch + 1}{self._total}",
            self._steps,
            done=math.ceil(state.batch / self._accumulation_steps),
            values=self._running.text,
        )

    def _title(self, row: Mapping[str, float]) -> str:
        return f"epoch {row['epoch']}{self._total}"


class StepReport(Report):
    """Shows a bar for each interval of n steps, whatever the epochs are."""

    def __init__(
        self,
        progress: Progress,
        clock: Clock,
        running: RunningValues,
        state: TrainState,
        *,
        n: int,
        last_step: float,
    ) -> None:
        """Create a report.

        Args:
            progress: Where to show the progress.
            clock: Measures the time.
            running: What the bar shows.
            state: The counters of the run.
            n: The number of steps in an interval.
            last_step: The number of the last step, or infinity.
        """
        super().__init__(progress, clock, running)
        self._state = state
        self._n = n
        self._last_step = last_step
        self._total = "" if math.isinf(last_step) else f"/{last_step:.0f}"
        self._open = False

    def start_epoch(self, state: TrainState) -> None:  # noqa: ARG002 - the base class's form
        """Start to measure the time of the steps. The first step opens the bar."""
        self._running.start()

    def advance(self, window: Sequence[Batch]) -> None:
        """Count an update and its samples. The first one of an interval opens the bar."""
        if not self._open:
            self._open_bar()
        super().advance(window)

    def _open_bar(self) -> None:
        first = self._state.step  # The step that has just been made.
        last = min(math.ceil(first / self._n) * self._n, self._last_step)
        title, steps = f"steps to {last:.0f}{self._total}", int(last) - first + 1
        self._progress.start(title, steps, values=self._running.text)
        self._open = True

    def _title(self, row: Mapping[str, float]) -> str:
        self._open = False
        return f"step {row['step']}{self._total} (epoch {row['epoch']})"
