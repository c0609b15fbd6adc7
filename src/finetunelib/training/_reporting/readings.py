"""The readings of a running loop."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._optimization.schedule import Schedule
from finetunelib.training._optimization.step import LastStep
from finetunelib.training._reporting.clock import Clock


@dataclass(frozen=True, slots=True)
class LoopReadings:
    """Reads the parts of a loop when a callback asks, and costs a step nothing.

    Attributes:
        last: The last step.
        sums: The loss and metrics, accumulated while training.
        schedule: The learning-rate schedule.
        clock: The speed of training.
        counts_tokens: Whether the task counts tokens.
    """

    last: LastStep
    sums: MetricAccumulator
    schedule: Schedule
    clock: Clock
    counts_tokens: bool

    @property
    def last_loss(self) -> float | None:
        """The loss of the last step, or `None` before the first one."""
        return self.last.read_loss()

    @property
    def grad_norm(self) -> float | None:
        """The norm of the gradients in the last step, or `None` if it was not computed."""
        return self.last.read_norm()

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.schedule.lr

    @property
    def samples_per_second(self) -> float | None:
        """The speed of training, or `None` before the first step."""
        return self.clock.samples_per_second or None

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of training in tokens, or `None` if the task does not count tokens."""
        if not self.counts_tokens:
            return None
        return self.sums.weight_added() / self.clock.training_seconds or None

    def running_means(self) -> dict[str, float]:
        """Return the loss and the metrics so far, or nothing if no loss was counted."""
        return self.sums.compute() if self.sums.weight() else {}
