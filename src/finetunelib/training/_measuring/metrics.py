"""The metric interface, and the check of the `metrics` argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._measuring.means import MeanOf


@runtime_checkable
class Metric(Protocol):
    """A metric that accumulates over batches, such as one of torchmetrics."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> object:
        """Add one batch."""

    def compute(self) -> Any:
        """Return the value over all batches since the last reset: one number or several."""
        ...

    def reset(self) -> object:
        """Start over."""


#: A metric is an object, or a function of (outputs, targets) that is averaged over samples.
MetricLike: TypeAlias = Metric | Callable[[Tensor, Tensor], Tensor | float]


def as_metrics(metrics: Mapping[str, MetricLike]) -> dict[str, Metric]:
    """Return the metrics as objects. A function becomes its mean over samples.

    Raises:
        InvalidTypeError: If `metrics` is not a mapping, or one of them is a class, or neither a
            function nor a metric.
        InvalidArgumentError: If one of them is named `"loss"`.
    """
    if not isinstance(metrics, Mapping):
        raise InvalidTypeError(
            f"`metrics` must be a mapping from names to metrics, got {metrics!r}. "
            'Give it a name: {"name": metric}.'
        )
    if "loss" in metrics:
        raise InvalidArgumentError(
            "A metric cannot be named 'loss', the name of the loss itself. Use another name."
        )
    wrapped: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise InvalidTypeError(
                f"The metric {name!r} is the class {metric.__name__}. Pass an object: "
                f"{metric.__name__}()."
            )
        if isinstance(metric, Metric):
            wrapped[name] = metric
        elif missing := _missing_method(metric):
            raise InvalidTypeError(
                f"The metric {name!r} ({type(metric).__name__}) has no `{missing}`. A metric "
                "object needs `update(outputs, targets)`, `compute()` and `reset()`."
            )
        elif callable(metric):
            wrapped[name] = MeanOf(metric)
        else:
            raise InvalidTypeError(
                f"The metric {name!r} ({type(metric).__name__}) must be a function of (outputs, "
                "targets), or an object with `update(outputs, targets)`, `compute()` and `reset()`."
            )
    return wrapped


def _missing_method(metric: object) -> str | None:
    """Return a method that a metric object lacks, or `None` if it has none of a metric's."""
    methods = ("update", "compute", "reset")
    missing = [name for name in methods if not callable(getattr(metric, name, None))]
    return missing[0] if 0 < len(missing) < len(methods) else None
