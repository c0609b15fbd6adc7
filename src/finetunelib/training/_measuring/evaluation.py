"""Passes over data that change nothing: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._preserve import evaluating
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, length_of, to_device
from finetunelib.errors import DataError
from finetunelib.training._measuring.metric_state import metric_state
from finetunelib.training._measuring.metrics import Mean, Metric
from finetunelib.training._optimization.precision import Precision
from finetunelib.training._tasks.task import StepOutput, Task, checked


class Measurement:
    """The loss and metrics over a pass, taken in batch by batch and read at its end."""

    def __init__(self, metrics: Mapping[str, Metric], prefix: str = "") -> None:
        self._loss = Mean()
        self._metrics = metrics
        self._prefix = prefix

    def reset(self) -> None:
        """Forget everything taken in."""
        self._loss = Mean()
        for metric in self._metrics.values():
            metric.reset()

    def update(self, output: StepOutput) -> None:
        """Take in what the task made of one batch."""
        self._loss.add(output.loss, output.weight)
        if self._metrics:
            outputs = output.outputs
            # A metric that keeps what it sees must not keep the graph of every batch alive.
            outputs = outputs.detach() if isinstance(outputs, Tensor) else outputs
            for metric in self._metrics.values():
                metric.update(outputs, output.targets)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is measured."""
        return tuple(f"{self._prefix}{name}" for name in ("loss", *self._metrics))

    @property
    def inexact(self) -> str | None:
        """Why a pass cannot be gone on with from its middle exactly, where that is so."""
        without = [name for name, m in self._metrics.items() if metric_state(m) is None]
        if not without:
            return None
        return (
            f"The metric {without[0]!r} has no `state_dict` and `load_state_dict`, so that a "
            "checkpoint in the middle of an epoch would lose what it has summed. Add them, or "
            "write checkpoints at the ends of epochs."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far."""
        states = {name: metric_state(metric) for name, metric in self._metrics.items()}
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: dict(s.state_dict()) for name, s in states.items() if s is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._loss.load_state_dict(state["loss"])
        for name, values in state["metrics"].items():
            if stateful := metric_state(self._metrics[name]):
                stateful.load_state_dict(values)

    def compute(self) -> dict[str, float]:
        """Return every value under its name, the loss first."""
        values = [self._loss.compute(), *(m.compute() for m in self._metrics.values())]
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Evaluation:
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
        self, batches: Iterator[Batch], measurement: Measurement, name: str
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
                measurement.update(checked(output, self.task))
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
