"""Whether a monitored value has improved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetunelib._typing import Mode
from finetunelib.errors import CheckpointError, InvalidArgumentError
from finetunelib.training import History, TrainContext
from finetunelib.training._optimization.monitor import check_measured


class Improvement:
    """The best value so far of a column of the history.

    Values that are not finite never count as an improvement.

    Args:
        monitor: The name of the column.
        mode: Whether a lower (`"min"`) or higher (`"max"`) value is better. `None` means the
            direction that is known for the loss, for `Accuracy`, and for metrics with
            `higher_is_better`.
        min_delta: The smallest change that counts as an improvement, at least 0.

    Raises:
        InvalidArgumentError: If `mode` is unknown or `min_delta` is negative.
    """

    def __init__(self, monitor: str, mode: Mode | None, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", None):
            raise InvalidArgumentError(f'`mode` must be "min" or "max", got {mode!r}.')
        if not min_delta >= 0.0:
            raise InvalidArgumentError(f"`min_delta` must be at least 0, got {min_delta}.")
        self.monitor = monitor
        self.best: float = math.nan
        self._mode = mode
        self._lower_is_better = mode == "min"
        self._min_delta = min_delta
        self._history: History | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the name of its column."""
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the best value that `state_dict` returned.

        Raises:
            CheckpointError: If it is a value of another column.
        """
        if state["monitor"] != self.monitor:
            raise CheckpointError(
                f"The checkpoint contains the best value of {state['monitor']!r}, but `monitor` "
                f"is {self.monitor!r}. Pass monitor={state['monitor']!r} to resume from it."
            )
        self.best = state["best"]

    def start(self, context: TrainContext) -> bool:
        """Prepare for a `fit`, and return whether the best value so far still counts.

        It does not count in another training run, or if the data that it was measured on changed.

        Raises:
            InvalidArgumentError: If the run does not measure `monitor`, or it is not known whether
                a lower or a higher value is better.
        """
        check_measured("monitor", self.monitor, context.measures)
        mode = self._mode or context.direction_of(self.monitor)
        if mode is None:
            raise InvalidArgumentError(
                f"It is not known whether a lower or a higher {self.monitor!r} is better. Pass "
                'mode="min" or mode="max".'
            )
        self._lower_is_better = mode == "min"
        same_run = self._history is context.history
        self._history = context.history
        counts = context.resumed or (same_run and context.is_comparable(self.monitor))
        if not counts:
            self.best = math.nan
        return counts

    def update(self, value: float) -> bool:
        """Return whether a new value is the best so far, and remember it if it is."""
        if not math.isfinite(value):
            return False
        gain = self.best - value if self._lower_is_better else value - self.best
        better = math.isnan(self.best) or gain > self._min_delta
        if better:
            self.best = value
        return better
