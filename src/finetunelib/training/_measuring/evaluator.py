"""Evaluation and prediction: passes over data that leave the model unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from finetunelib._preserve import evaluating
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, length_of, to_device
from finetunelib.errors import DataError
from finetunelib.training._measuring.accumulator import MetricAccumulator
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._tasks.task import Task, validate_output


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A model and what it takes to apply it; the model is in eval mode meanwhile.

    Attributes:
        model: The user's model, whose modes are set and restored.
        runner: The form of it that is called: itself, or a compiled one.
    """

    model: nn.Module
    runner: nn.Module
    task: Task
    precision: Precision
    device: torch.device

    def evaluate(
        self, batches: Iterator[Batch], measurement: MetricAccumulator, name: str
    ) -> dict[str, float]:
        """Return the loss and metrics over batches.

        Raises:
            EmptyDataError: There is no batch; the message calls the data by `name`.
        """
        measurement.reset()
        first = first_of(batches, name)
        with evaluating(self.model), self.precision.autocast():
            for batch in chain([first], batches):
                output = self.task.step(self.runner, to_device(batch, self.device))
                measurement.update(validate_output(output, self.task))
        return measurement.compute()

    def predict(self, batches: Iterator[Batch], samples: int | None) -> Tensor:
        """Return the outputs over all batches on the CPU, in the order of the data.

        Args:
            batches: The batches.
            samples: How many samples they hold in all, where that is known; then the result is
                written in place, and memory holds it once.

        Raises:
            DataError: A batch has more or fewer outputs than samples.
        """
        parts = self._outputs(batches)
        if samples is None:
            return torch.cat(list(parts))
        first = next(parts)
        result = first.new_empty((samples, *first.shape[1:]))
        filled = 0
        for part in chain([first], parts):
            result[filled : filled + len(part)] = part
            filled += len(part)
        return result

    def _outputs(self, batches: Iterator[Batch]) -> Iterator[Tensor]:
        with evaluating(self.model), self.precision.autocast():
            for batch in batches:
                # Each leaves the device at once, so that the device holds one batch's outputs.
                outputs = self.task.predict(self.runner, to_device(batch, self.device)).cpu()
                rows = outputs.shape[0] if outputs.dim() else 0
                if rows != length_of(batch):
                    raise DataError(
                        f"The model returned {rows} rows for {length_of(batch)} samples. `predict` "
                        "needs one row a sample; apply the model yourself, or pass a `task` whose "
                        "`predict` makes it so."
                    )
                yield outputs
