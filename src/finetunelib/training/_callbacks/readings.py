"""What callbacks can read about the steps so far, beyond the rows of the history."""

from __future__ import annotations

import math
from typing import Protocol


class Readings(Protocol):
    """Values that are computed only when they are read."""

    @property
    def last_loss(self) -> float | None:
        """The loss of the last step, or `None` before the first one."""
        ...

    @property
    def grad_norm(self) -> float | None:
        """The norm of the gradients in the last step, or `None` if it was not computed."""
        ...

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        ...

    @property
    def samples_per_second(self) -> float | None:
        """The speed of training, or `None` before the first step."""
        ...

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of training in tokens, or `None` if the task does not count tokens."""
        ...

    def running_means(self) -> dict[str, float]:
        """Return the loss and the metrics so far, by the names of their columns."""
        ...


class NoReadings:
    """The readings of a context outside of a `fit`."""

    last_loss: float | None = None
    grad_norm: float | None = None
    lr: float = math.nan
    samples_per_second: float | None = None
    tokens_per_second: float | None = None

    def running_means(self) -> dict[str, float]:
        """Return no values."""
        return {}
