"""Passes over data that change nothing: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from finetunelib._preserve import evaluating
from finetunelib._typing import Batch
from finetunelib.data._batches import Batches
from finetunelib.errors import EmptyDataError
from finetunelib.training._device import to_device
from finetunelib.training._metrics import Mean, Metric
from finetunelib.training._task import StepOutput, SupervisedTask


class Measurement:
    """The loss and metrics over a pass, taken in batch by batch and read at its end."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._loss = Mean()
        self._metrics = metrics
        for metric in metrics.values():
            metric.reset()

    def update(self, output: StepOutput) -> None:
        """Take in what the task made of one batch."""
        self._loss.add(output.loss.detach(), output.weight)
        for metric in self._metrics.values():
            metric.update(output.outputs, output.targets)

    def compute(self, prefix: str = "") -> dict[str, float]:
        """Return every value under its name, the loss first."""
        values = {f"{prefix}loss": self._loss.compute()}
        for name, metric in self._metrics.items():
            values[f"{prefix}{name}"] = float(metric.compute())
        return values


def evaluate(
    model: nn.Module,
    task: SupervisedTask,
    batches: Iterator[Batch],
    metrics: Mapping[str, Metric],
    device: torch.device,
    prefix: str = "",
) -> dict[str, float]:
    """Return the loss and metrics over batches, the model in eval mode and then restored."""
    measurement = Measurement(metrics)
    with evaluating(model):
        for batch in batches:
            measurement.update(task.step(model, to_device(batch, device)))
    return measurement.compute(prefix)


def predict(
    model: nn.Module, task: SupervisedTask, batches: Batches, device: torch.device
) -> Tensor:
    """Return the outputs over all batches on the CPU, in the order of the data."""
    with evaluating(model):
        # Each batch leaves the device at once, so that the device holds one batch's outputs.
        outputs = [
            task.predict(model, to_device(batch, device)).cpu() for batch in batches.in_order()
        ]
    if not outputs:
        raise EmptyDataError("`data` yielded no batch, so there is nothing to predict.")
    return torch.cat(outputs)
