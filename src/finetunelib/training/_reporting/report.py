"""Reports the progress of a run, and times its epochs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.training._callbacks.context import TrainContext
from finetunelib.training._reporting.clock import Clock
from finetunelib.training._state import TrainState

#: The columns that a report adds to the metrics of an epoch.
TIMING_COLUMNS = ("lr", "seconds", "samples_per_second")


class EpochReport:
    """Shows a bar during an epoch and a line after it, and adds timings to its row."""

    def __init__(
        self, progress: Progress, clock: Clock, *, steps: int | None, last_epoch: float
    ) -> None:
        """Create a report.

        Args:
            progress: Where to show the progress.
            clock: Measures the time.
            steps: The number of updates in an epoch, or `None` if unknown.
            last_epoch: The number of the last epoch, or infinity.
        """
        self._progress = progress
        self._clock = clock
        self._steps = steps
        self._total = "" if math.isinf(last_epoch) else f"/{last_epoch:.0f}"
        self._row: Mapping[str, float] | None = None

    def start_clock(self) -> None:
        """Start to time the first epoch, which includes the preparation of its data."""
        self._clock.start()

    @contextlib.contextmanager
    def epoch(self, context: TrainContext) -> Iterator[None]:
        """Show the bar during the block, and the line of the epoch after it."""
        self._row = None
        self._progress.start(f"epoch {context.state.epoch + 1}{self._total}", self._steps)
        try:
            yield
        finally:
            if self._row is None:
                self._progress.abort()
            else:
                self._progress.finish(self._line(self._row, context.stop_reason))
            self.start_clock()

    def advance(self, window: Sequence[Batch]) -> None:
        """Count an update and its samples."""
        self._clock.count(window)
        self._progress.advance()

    def end_training(self) -> None:
        """Stop the clock of training; validation follows."""
        self._clock.stop_training()

    def row(self, values: Mapping[str, float], state: TrainState, lr: float) -> dict[str, float]:
        """Return the row of the epoch.

        Args:
            values: The loss and metrics.
            state: The counters after the epoch.
            lr: The learning rate of the last step.
        """
        row = {
            "epoch": state.epoch,
            "step": state.step,
            **values,
            "lr": lr,
            "seconds": self._clock.seconds,
            "samples_per_second": self._clock.samples_per_second,
        }
        self._row = row
        return row

    def _line(self, row: Mapping[str, float], stop_reason: str | None) -> str:
        hidden = ("epoch", "step", *TIMING_COLUMNS)
        values = ", ".join(f"{n} {value:.4f}" for n, value in row.items() if n not in hidden)
        line = f"epoch {row['epoch']}{self._total}: {values}, {row['seconds']:.1f} s"
        return line + (f"; stopped: {stop_reason}" if stop_reason else "")
