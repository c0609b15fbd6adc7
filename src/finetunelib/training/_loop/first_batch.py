"""The check of the first batch before training starts."""

from __future__ import annotations

from dataclasses import dataclass

from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._measuring.accumulator import MetricAccumulator, task_needs_equal_sizes
from finetunelib.training._measuring.evaluator import Evaluator
from finetunelib.training._tasks.measured import UNKNOWN


@dataclass(frozen=True, slots=True)
class FirstBatchCheck:
    """Checks that the model, the loss and the metrics accept a batch, without changing them.

    Attributes:
        evaluator: The model with its task.
        accumulation_steps: The number of micro-batches in an update.
    """

    evaluator: Evaluator
    accumulation_steps: int

    def train(self, first: Batch, batches: Batches, metrics: MetricAccumulator) -> None:
        """Raise if the first batch of the training data cannot be used."""
        self.evaluator.check(first, batches, metrics, "train", training=True)
        task = self.evaluator.task
        if self.accumulation_steps > 1 and task_needs_equal_sizes(task):
            raise InvalidArgumentError(
                f"`gradient_accumulation_steps` is {self.accumulation_steps}, but {UNKNOWN}."
            )

    def val(self, first: Batch, batches: Batches, metrics: MetricAccumulator, name: str) -> None:
        """Raise if the first batch of validation data cannot be used."""
        self.evaluator.check(first, batches, metrics, name)
