"""The states of metrics in the middle of an epoch, including those of torchmetrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from finetunelib.training._measuring.metrics import Metric


@runtime_checkable
class StatefulMetric(Metric, Protocol):
    """A metric whose state can be saved and restored."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state so far: numbers, tensors, and lists and dicts of them."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Restore the state that `state_dict` returned."""


class TorchMetricState:
    """Reads and writes the state of a torchmetrics metric, or of a `MetricCollection`.

    The `state_dict` of these objects omits it unless it was declared persistent.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def _parts(self) -> dict[str, Any]:
        """Return the metrics by name. A wrapper, such as a running mean, contains other metrics."""
        torchmetrics = sys.modules["torchmetrics"]
        tops = {"": self._metric}
        if isinstance(self._metric, torchmetrics.MetricCollection):
            # Of several metrics that share their counts, only the first one is updated. This copies
            # its counts to the others.
            tops = dict(self._metric.items(keep_base=True, copy_state=True))
        return {
            ".".join(filter(None, (top, name))): part
            for top, metric in tops.items()
            for name, part in metric.named_modules()
            if isinstance(part, torchmetrics.Metric)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state so far."""
        return {
            name: {"values": dict(part.metric_state), "updates": part.update_count}
            for name, part in self._parts().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, part in self._parts().items():
            for key, value in state[name]["values"].items():
                setattr(part, key, value)
            part._update_count = state[name]["updates"]  # noqa: SLF001 - there is no public setter


def metric_state(metric: Metric) -> StatefulMetric | TorchMetricState | None:
    """Return the object that saves and restores a metric's state, or `None` if there is none."""
    torchmetrics = sys.modules.get("torchmetrics")
    kinds = torchmetrics and (torchmetrics.Metric, torchmetrics.MetricCollection)
    if kinds and isinstance(metric, kinds):
        return TorchMetricState(metric)
    # The `state_dict` of nn.Module omits plain attributes, such as the sums of a metric.
    inherited = isinstance(metric, nn.Module) and type(metric).state_dict is nn.Module.state_dict
    return metric if isinstance(metric, StatefulMetric) and not inherited else None
