"""Evaluation and prediction: passes over data that leave the model unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._preserve import evaluating, random_state_preserved, undone_on_error
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, length_of, to_device
from finetunelib.data._batches import Batches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._measuring.accumulator import MetricAccumulator, task_needs_equal_sizes
from finetunelib.training._measuring.rows import Rows, mapped
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._tasks.first_batch import check_batch, predict_first
from finetunelib.training._tasks.measured import UNKNOWN
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

    def check(
        self,
        first: Batch,
        batches: Batches,
        metrics: MetricAccumulator,
        name: str,
        *,
        training: bool = False,
    ) -> None:
        """Check that the model, the loss and the metrics accept the first batch of data.

        They are left as they were.

        Args:
            first: The batch.
            batches: The data that it belongs to.
            metrics: The metrics, which learn their columns.
            name: The name of the data, for messages.
            training: Whether the data is trained on.

        Raises:
            DataError: If they do not accept it.
            InvalidArgumentError: If the loss cannot be averaged over the batches of this data.
        """
        on_device, targets = to_device(first, self.device), batches.all_targets()
        with random_state_preserved(inner=False):
            with self.precision.autocast():
                output = check_batch(
                    self.model, self.task, on_device, targets, name, training=training
                )
            metrics.check(output, name)
        unequal = task_needs_equal_sizes(self.task) and batches.has_short_last_batch()
        # A loss that is not finite is reported by the step that meets it.
        if unequal and bool(output.loss.isfinite()):
            raise InvalidArgumentError(
                f"The last batch of `{name}` is shorter than the others, but {UNKNOWN}, or pass a "
                "DataLoader with `drop_last=True`."
            )

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

    def predict(self, batches: Iterator[Batch], samples: int | None) -> Any:
        """Return the outputs for all batches on the CPU, in the order of the data.

        Args:
            batches: The batches.
            samples: The number of samples, if known.

        Returns:
            The outputs as collected by `Rows`. In mixed precision they are float32.

        Raises:
            InvalidInputError: If the model does not accept the first batch.
            DataError: If the number of rows differs from the number of samples.
        """
        rows = Rows(samples)
        with evaluating(self.model), self.precision.autocast():
            predict: Callable[[nn.Module, Batch], Any] = self._predict_first
            for batch in batches:
                # Move them at once: the device needs memory for the outputs of one batch only.
                outputs = mapped(self._final, predict(self.runner, to_device(batch, self.device)))
                rows.add(outputs, length_of(batch))
                predict = self.task.predict
        return rows.result()

    def _predict_first(self, runner: nn.Module, batch: Batch) -> Any:
        with undone_on_error(self.model):
            return predict_first(self.task, self.model, runner, batch)

    def _final(self, outputs: Tensor) -> Tensor:
        outputs = self.precision.widen(outputs)
        if outputs.requires_grad:
            outputs = outputs.detach()
        return outputs if outputs.is_cpu else outputs.cpu()
