"""What the bar shows while an epoch runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from finetunelib._escapes import one_line
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._reporting.clock import Clock
from finetunelib.training._state import TrainState

#: The most metrics that are shown next to the loss, and the most characters of their names.
_MOST_METRICS, _LONGEST_NAME = 2, 20


class RunningValues:
    """The time left for the whole `fit`, the running loss and metrics, and the speed.

    A step costs nothing: everything is read from the parts of the loop when the bar is drawn.
    """

    def __init__(
        self,
        state: TrainState,
        sums: MetricAccumulator,
        clock: Clock,
        steps_left: Callable[[TrainState], int | None],
    ) -> None:
        """Create the values of a `fit`.

        Args:
            state: The counters of the run.
            sums: The loss and metrics since the last row of the history.
            clock: The speed of training.
            steps_left: Returns how many steps are left in the `fit`, or `None` if it is unknown.
        """
        self._state = state
        self._sums = sums
        self._clock = clock
        self._steps_left = steps_left
        self._first_step = -1
        self._started = 0.0

    def start(self) -> None:
        """Note the time and the number of steps at the start of the first epoch."""
        if self._first_step < 0:
            self._first_step, self._started = self._state.step, time.perf_counter()

    def text(self) -> str:
        """Return the values as a short text, empty before the first step."""
        steps = self._state.step - self._first_step
        if not steps:
            return ""
        parts = []
        left = self._steps_left(self._state)
        if left is not None:
            # Of this `fit` so far, with its validations.
            per_step = (time.perf_counter() - self._started) / steps
            parts.append(f"fit <{_duration(left * per_step)}")  # tqdm's form of the time left
        parts += [
            f"{one_line(name, _LONGEST_NAME)} {value:.4f}"
            for name, value in list(self._sums.compute_running().items())[: 1 + _MOST_METRICS]
        ]
        speed = self._clock.samples_per_second
        if speed:
            parts.append(f"{speed:,.0f} samples/s")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
