"""Metrics of samples that count differently."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from finetunelib.errors import InvalidArgumentError
from finetunelib.training._measuring.metrics import Metric


def update_metric(metric: Metric, outputs: Any, targets: Any, sample_weight: Tensor | None) -> None:
    """Add one batch to a metric, with the weights of its samples if there are any."""
    if sample_weight is None:
        metric.update(outputs, targets)
    else:
        metric.update(outputs, targets, sample_weight=sample_weight)  # type: ignore[call-arg]


def check_takes_weights(name: str, metric: Metric) -> None:
    """Check that a metric takes the weights of samples.

    Raises:
        InvalidArgumentError: If its `update` has no argument `sample_weight`.
    """
    try:
        names = inspect.signature(metric.update).parameters
    except (TypeError, ValueError):
        names = {}  # type: ignore[assignment]  # nothing is known about it
    if "sample_weight" not in names:
        raise InvalidArgumentError(
            f"The metric {name!r} ({type(metric).__name__}) cannot weight samples, since its "
            "`update` has no argument `sample_weight`. Add `update(outputs, targets, "
            "sample_weight=None)`, pass a function of (outputs, targets) that returns one value "
            "for each sample, or leave the metric out."
        )
