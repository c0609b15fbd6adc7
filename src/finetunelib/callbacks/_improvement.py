"""Whether a monitored value has improved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from finetunelib.errors import CheckpointError, InvalidArgumentError

Mode: TypeAlias = Literal["min", "max"]


class Improvement:
    """The best value so far of a column of the history.

    Values that are not finite never count as an improvement.

    Args:
        monitor: The name of the column.
        mode: Whether a lower (`"min"`) or higher (`"max"`) value is better. `None` means
            `"min"` for names that end in `loss`, and `"max"` for all others.
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
        self._lower_is_better = monitor.endswith("loss") if mode is None else mode == "min"
        self._min_delta = min_delta

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

    def check_measured(self, measures: Sequence[str]) -> None:
        """Check that the training run measures `monitor`.

        Raises:
            InvalidArgumentError: If it does not. The message lists what it measures.
        """
        if self.monitor not in measures:
            hint = " Pass validation data to `fit`." if self.monitor.startswith("val_") else ""
            raise InvalidArgumentError(
                f"`monitor` is {self.monitor!r}, but this run only measures "
                f"{', '.join(measures)}.{hint}"
            )

    def update(self, value: float) -> bool:
        """Return whether a new value is the best so far, and remember it if it is."""
        if not math.isfinite(value):
            return False
        gain = self.best - value if self._lower_is_better else value - self.best
        better = math.isnan(self.best) or gain > self._min_delta
        if better:
            self.best = value
        return better
