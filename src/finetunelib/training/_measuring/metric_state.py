"""The states of metrics in the middle of an epoch, those of torchmetrics included."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from finetunelib.training._measuring.metrics import Metric


@runtime_checkable
class StatefulMetric(Metric, Protocol):
    """A metric that can go on from where another one stopped."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what was taken in so far: numbers, tensors, lists and dicts of them."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Go on from what `state_dict` returned."""


class TorchMetricState:
    """Reads and writes the sums of a metric of torchmetrics.

    Its own `state_dict` leaves them out unless they were declared persistent.
    """

    def __init__(self, metric: Any) -> None:
        # A wrapper, such as a running mean, holds other metrics.
        kind = sys.modules["torchmetrics"].Metric
        self._parts: dict[str, Any] = {
            name: part for name, part in metric.named_modules() if isinstance(part, kind)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far."""
        return {
            name: {"values": dict(part.metric_state), "updates": part.update_count}
            for name, part in self._parts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name, part in self._parts.items():
            for key, value in state[name]["values"].items():
                setattr(part, key, value)
            part._update_count = state[name]["updates"]  # noqa: SLF001 - there is no public way in


def metric_state(metric: Metric) -> StatefulMetric | TorchMetricState | None:
    """Return what reads and writes a metric's state; None where nothing can."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None and isinstance(metric, torchmetrics.Metric):
        return TorchMetricState(metric)
    # A module's own state dict leaves out plain attributes, in which a metric sums.
    inherited = isinstance(metric, nn.Module) and type(metric).state_dict is nn.Module.state_dict
    return metric if isinstance(metric, StatefulMetric) and not inherited else None
