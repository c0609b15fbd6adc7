"""The one place that decides whether a measurement has improved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from finetunelib.errors import CheckpointError, InvalidArgumentError

Mode: TypeAlias = Literal["min", "max"]


class Improvement:
    """The best value of a measurement so far.

    A value that is not finite is never an improvement.

    Args:
        monitor: The name of the measurement.
        mode: Whether less or more is better; `None` takes less for names that end in `loss`.
        min_delta: By how much a value has to be better to count, at least 0.

    Raises:
        InvalidArgumentError: `mode` is unknown, or `min_delta` negative.
    """

    def __init__(self, monitor: str, mode: Mode | None, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", None):
            raise InvalidArgumentError(f'`mode` must be "min" or "max", but is {mode!r}.')
        if not min_delta >= 0.0:
            raise InvalidArgumentError(f"`min_delta` must be at least 0, but is {min_delta}.")
        self.monitor = monitor
        self.best: float = math.nan
        self._smaller = monitor.endswith("loss") if mode is None else mode == "min"
        self._min_delta = min_delta

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and what it is a value of."""
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the best value that `state_dict` returned.

        Raises:
            CheckpointError: It is a value of something else.
        """
        if state["monitor"] != self.monitor:
            raise CheckpointError(
                f"The checkpoint knows the best {state['monitor']}, but `monitor` is "
                f"{self.monitor!r}, whose values cannot be compared with it. Pass the same."
            )
        self.best = state["best"]

    def check_measured(self, measures: Sequence[str]) -> None:
        """Raise when a training does not measure this.

        Raises:
            InvalidArgumentError: It does not; the message lists what it measures.
        """
        if self.monitor not in measures:
            hint = " Pass validation data to `fit`." if self.monitor.startswith("val_") else ""
            raise InvalidArgumentError(
                f"`monitor` is {self.monitor!r}, but this training measures "
                f"{', '.join(measures)}.{hint}"
            )

    def update(self, value: float) -> bool:
        """Take in a new value, and return whether it is the best so far."""
        if not math.isfinite(value):
            return False
        gain = self.best - value if self._smaller else value - self.best
        better = math.isnan(self.best) or gain > self._min_delta
        if better:
            self.best = value
        return better
