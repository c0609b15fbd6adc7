"""Measures of quality, summed on the device over batches and read once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from finetunelib.errors import InvalidArgumentError, InvalidTypeError


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


class Accuracy:
    """The share of samples whose class is among the `top_k` largest logits.

    Args:
        top_k: How many of the largest logits may hold the class, at least 1.

    Raises:
        InvalidArgumentError: `top_k` is below 1.

    Example:
        >>> import torch
        >>> from finetunelib.training import Accuracy
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        0.5
    """

    def __init__(self, top_k: int = 1) -> None:
        if top_k < 1:
            raise InvalidArgumentError(f"`top_k` must be at least 1, but is {top_k}.")
        self.top_k = top_k
        self._hits: Tensor | int = 0
        self._samples = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            outputs: Logits, `(batch, classes, ...)`.
            targets: Class indices, `(batch, ...)`, integer.
        """
        if self.top_k == 1:
            hits = outputs.argmax(1) == targets
        else:
            largest = outputs.topk(self.top_k, dim=1).indices
            hits = (largest == targets.unsqueeze(1)).any(1)
        # The sum stays on the device: reading it here would wait for the device at every step.
        self._hits = self._hits + hits.sum()
        self._samples += targets.numel()

    def compute(self) -> float:
        """Return the share, in [0, 1], or nan when nothing was taken in."""
        return float(self._hits) / self._samples if self._samples else float("nan")

    def reset(self) -> None:
        """Forget everything taken in."""
        self._hits = 0
        self._samples = 0


class MeanOf:
    """The mean of a function of (outputs, targets), weighted by the samples of each batch."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor | float]) -> None:
        self._function = function
        self._sum: Tensor | float = 0.0
        self._samples = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch; the function sees it as it is."""
        self._sum = self._sum + self._function(outputs, targets) * len(targets)
        self._samples += len(targets)

    def compute(self) -> float:
        """Return the mean, or nan when nothing was taken in."""
        return float(self._sum) / self._samples if self._samples else float("nan")

    def reset(self) -> None:
        """Forget everything taken in."""
        self._sum = 0.0
        self._samples = 0


class Mean:
    """A weighted mean of tensors that stay on their device until it is read."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._weights: list[Tensor | float] = []

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Take in one value. Nothing is computed here: a step should cost no more than it must."""
        self._values.append(value)
        self._weights.append(weight)

    def compute(self) -> float:
        """Return the mean in double precision, or nan when nothing was taken in."""
        if not self._values:
            return float("nan")
        values = torch.stack(self._values).double().cpu()
        weights = torch.tensor([float(weight) for weight in self._weights], dtype=torch.float64)
        return float((values * weights).sum() / weights.sum())


def checked_metrics(metrics: Mapping[str, MetricLike]) -> dict[str, Metric]:
    """Return every metric as an object, functions wrapped into means.

    Raises:
        InvalidTypeError: One is a class instead of an object, or neither function nor metric.
    """
    checked: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise InvalidTypeError(
                f"The metric {name!r} is the class {metric.__name__}. Pass an object: "
                f"{metric.__name__}()."
            )
        if isinstance(metric, Metric):
            checked[name] = metric
        elif callable(metric):
            checked[name] = MeanOf(metric)
        else:
            raise InvalidTypeError(
                f"The metric {name!r} ({type(metric).__name__}) must be a function of (outputs, "
                "targets), or an object with `update(outputs, targets)`, `compute()` and `reset()`."
            )
    return checked
