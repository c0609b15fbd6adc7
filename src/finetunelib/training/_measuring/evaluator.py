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
    """Runs the model over data in eval mode, and restores its modes.

    Attributes:
        model: The user's model.
        runner: The module that is called: the model, or its compiled form.
    """

    model: nn.Module
    runner: nn.Module
    task: Task
    precision: Precision
    device: torch.device

    def evaluate(
        self, batches: Iterator[Batch], metrics: MetricAccumulator, name: str
    ) -> dict[str, float]:
        """Return the loss and metrics over batches.

        Args:
            batches: The batches.
            metrics: Accumulates the loss and metrics; it is reset first.
            name: The name of the data, for messages.

        Raises:
            EmptyDataError: If there is no batch.
        """
        metrics.reset()
        first = first_of(batches, name)
        with evaluating(self.model), self.precision.autocast():
            for batch in chain([first], batches):
                output = self.task.step(self.runner, to_device(batch, self.device))
                metrics.update(validate_output(output, self.task))
        return metrics.compute()

    def predict(self, batches: Iterator[Batch], samples: int | None) -> Tensor:
        """Return the outputs for all batches on the CPU, in the order of the data.

        Args:
            batches: The batches.
            samples: The number of samples, if known. The outputs are then written into one
                tensor, which takes half the memory.

        Raises:
            DataError: If the number of outputs of a batch differs from its number of samples.
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
                # Move them at once: the device needs memory for the outputs of one batch only.
                outputs = self.task.predict(self.runner, to_device(batch, self.device)).cpu()
                rows = outputs.shape[0] if outputs.dim() else 0
                if rows != length_of(batch):
                    raise DataError(
                        f"The model returned {rows} rows for {length_of(batch)} samples. `predict` "
                        "needs one row per sample. Call the model yourself, or pass a `task` whose "
                        "`predict` returns one row per sample."
                    )
                yield outputs
