"""The speed of training."""

from __future__ import annotations

import time
from collections.abc import Sequence

from finetunelib._typing import Batch
from finetunelib.data._batch import length_of


class Clock:
    """Measures the time since a row of the history, and the speed of training in it.

    The speed is that of training alone: the clock of training is stopped for a validation.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._stopped: float | None = None
        self._samples = 0

    def start(self) -> None:
        """Start again, with no samples."""
        self._started, self._stopped, self._samples = time.perf_counter(), None, 0

    def count(self, window: Sequence[Batch]) -> None:
        """Count the samples of an update."""
        for micro_batch in window:
            self._samples += length_of(micro_batch)

    def stop_training(self) -> None:
        """Stop the clock of training; validation follows."""
        self._stopped = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The seconds since the start, including validation."""
        return time.perf_counter() - self._started

    @property
    def training_seconds(self) -> float:
        """The seconds of training since the start."""
        return (time.perf_counter() if self._stopped is None else self._stopped) - self._started

    @property
    def samples_per_second(self) -> float:
        """The samples that were trained on since the start, per second of training."""
        return self._samples / self.training_seconds
