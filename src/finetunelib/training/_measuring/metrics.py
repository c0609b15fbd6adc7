"""Measures of quality, summed on the device over batches and read once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._measuring.means import MeanOf


@runtime_checkable
class Metric(Protocol):
    """What a metric object needs; those of torchmetrics have it."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> object:
        """Take in one batch."""

    def compute(self) -> Tensor | float:
        """Return the value over everything taken in since the last reset."""
        ...

    def reset(self) -> object:
        """Forget everything taken in."""


#: A metric is an object, or a function of (outputs, targets) that is averaged over samples.
MetricLike: TypeAlias = Metric | Callable[[Tensor, Tensor], Tensor | float]


def as_metrics(metrics: Mapping[str, MetricLike]) -> dict[str, Metric]:
    """Return every metric as an object, functions wrapped into means.

    Raises:
        InvalidTypeError: One is a class instead of an object, or neither function nor metric; or
            they have no names.
        InvalidArgumentError: One has the loss's name.
    """
    if not isinstance(metrics, Mapping):
        raise InvalidTypeError(
            f"`metrics` must be a mapping from names to metrics, but is {metrics!r}. "
            'Give it a name: {"name": metric}.'
        )
    if "loss" in metrics:
        raise InvalidArgumentError(
            "A metric cannot be called 'loss', which names the loss itself. Give it another name."
        )
    checked: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise InvalidTypeError(
                f"The metric {name!r} is the class {metric.__name__}. Pass an object: "
                f"{metric.__name__}()."
            )
        if isinstance(metric, Metric):
            checked[name] = metric
        elif missing := _half_a_metric(metric):
            raise InvalidTypeError(
                f"The metric {name!r} ({type(metric).__name__}) has no `{missing}`. A metric "
                "object needs `update(outputs, targets)`, `compute()` and `reset()`."
            )
        elif callable(metric):
            checked[name] = MeanOf(metric)
        else:
            raise InvalidTypeError(
                f"The metric {name!r} ({type(metric).__name__}) must be a function of (outputs, "
                "targets), or an object with `update(outputs, targets)`, `compute()` and `reset()`."
            )
    return checked


def _half_a_metric(metric: object) -> str | None:
    """Return what an object that has some methods of a metric lacks, or None for a function."""
    methods = ("update", "compute", "reset")
    missing = [name for name in methods if not callable(getattr(metric, name, None))]
    return missing[0] if 0 < len(missing) < len(methods) else None
