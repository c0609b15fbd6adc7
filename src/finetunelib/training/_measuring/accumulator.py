"""The loss and metrics of a pass over data, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib.training._measuring.means import Mean
from finetunelib.training._measuring.metric_state import metric_state
from finetunelib.training._measuring.metrics import Metric
from finetunelib.training._measuring.rows import mapped
from finetunelib.training._tasks.task import StepOutput

_HALF = (torch.bfloat16, torch.float16)


class MetricAccumulator:
    """Accumulates the loss and metrics over a pass over data."""

    def __init__(self, metrics: Mapping[str, Metric], prefix: str = "") -> None:
        self._loss = Mean()
        self._metrics = metrics
        self._prefix = prefix

    def reset(self) -> None:
        """Start a new pass."""
        self._loss = Mean()
        for metric in self._metrics.values():
            metric.reset()

    def update(self, output: StepOutput) -> None:
        """Add the output of a task for one batch."""
        self._loss.add(output.loss, output.weight)
        if self._metrics:
            outputs = mapped(_for_metrics, output.outputs)
            for name, metric in self._metrics.items():
                try:
                    metric.update(outputs, output.targets)
                except Exception as error:
                    error.add_note(f"In the metric {name!r}.")
                    raise

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loss and the metrics, with their prefix."""
        return tuple(f"{self._prefix}{name}" for name in ("loss", *self._metrics))

    @property
    def why_not_resumable(self) -> str | None:
        """Why a pass cannot be resumed exactly from its middle, or `None` if it can."""
        without = [name for name, m in self._metrics.items() if metric_state(m) is None]
        if not without:
            return None
        return (
            f"The metric {without[0]!r} has no `state_dict` and `load_state_dict`, so a "
            "checkpoint in the middle of an epoch would lose its sums. Add them, or write "
            "checkpoints at the ends of epochs."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        states = {name: metric_state(metric) for name, metric in self._metrics.items()}
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: dict(s.state_dict()) for name, s in states.items() if s is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums that `state_dict` returned."""
        self._loss.load_state_dict(state["loss"])
        for name, values in state["metrics"].items():
            if stateful := metric_state(self._metrics[name]):
                stateful.load_state_dict(values)

    def compute(self) -> dict[str, float]:
        """Return the loss and the metrics by name, the loss first."""
        values = [self._loss.compute(), *(m.compute() for m in self._metrics.values())]
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}


def _for_metrics(outputs: Tensor) -> Tensor:
    """Return outputs without their graph, in half precision as float32, which numpy can take."""
    # A metric that stores outputs must not keep the graph of every batch alive.
    outputs = outputs.detach()
    return outputs.float() if outputs.dtype in _HALF else outputs
