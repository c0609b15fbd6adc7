"""Measures of quality, summed on the device over batches and read once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from finetunelib._public import public
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.training._tasks.class_targets import counted


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


#: What torch's losses ignore among class indices, by default.
_IGNORED = -100

#: A metric is an object, or a function of (outputs, targets) that is averaged over samples.
MetricLike: TypeAlias = Metric | Callable[[Tensor, Tensor], Tensor | float]


@public("finetunelib.training")
class Accuracy:
    """The share of samples whose class is among the `top_k` largest logits.

    Targets of -100, which cross-entropy ignores, are neither hits nor misses.

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
        self.top_k: int = top_k
        self._hits: Tensor | int = 0
        self._samples: Tensor | int = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            outputs: Logits, `(batch, classes, ...)`.
            targets: Class indices, `(batch, ...)`, integer.
        """
        if self.top_k == 1:
            hits = outputs.argmax(1) == targets
        else:
            if outputs.shape[1] < self.top_k:
                raise InvalidArgumentError(
                    f"`top_k` is {self.top_k}, but the model has {outputs.shape[1]} classes."
                )
            largest = outputs.topk(self.top_k, dim=1).indices
            hits = (largest == targets.unsqueeze(1)).any(1)
        # The sum stays on the device: reading it here would wait for the device at every step.
        self._hits = self._hits + hits.sum()
        self._samples = self._samples + counted(targets, _IGNORED)

    def compute(self) -> float:
        """Return the share, in [0, 1], or nan when nothing was taken in."""
        samples = int(self._samples)
        return float(self._hits) / samples if samples else float("nan")

    def reset(self) -> None:
        """Forget everything taken in."""
        self._hits = 0
        self._samples = 0

    def state_dict(self) -> dict[str, int]:
        """Return what was taken in so far."""
        return {"hits": int(self._hits), "samples": int(self._samples)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what `state_dict` returned."""
        self._hits, self._samples = state["hits"], state["samples"]

    def merge(self, states: Iterable[Mapping[str, int]]) -> None:
        """Take in what others took in, as their `state_dict` tells it."""
        for state in states:
            self._hits = self._hits + state["hits"]
            self._samples = self._samples + state["samples"]


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

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far."""
        # The sum keeps its dtype, so that going on rounds as it would have.
        return {"sum": self._sum, "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._sum, self._samples = state["sum"], state["samples"]

    def merge(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Take in what others took in, as their `state_dict` tells it."""
        for state in states:
            self._sum = self._sum + state["sum"]
            self._samples += state["samples"]


class Mean:
    """A weighted mean of scalar tensors, in double precision.

    A value on the CPU is added at once. One on an accelerator stays there until the mean is
    read, since to look at it is to wait for the device.
    """

    #: How many values are kept before they are summed, so that memory is bounded.
    _CHUNK = 1024

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0
        self._values: list[Tensor] = []
        self._weights: list[Tensor | float] = []

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Take in one value."""
        if value.is_cpu:
            self._add(value.item(), float(weight))
            return
        self._values.append(value.detach())
        self._weights.append(weight)
        if len(self._values) == self._CHUNK:
            self._fold()

    def compute(self) -> float:
        """Return the mean, or nan when nothing was taken in."""
        self._fold()
        return self._sum / self._weight if self._weight else float("nan")

    def state_dict(self) -> dict[str, float]:
        """Return what was taken in so far."""
        self._fold()
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` returned."""
        self._sum, self._weight = state["sum"], state["weight"]

    def _add(self, value: float, weight: float) -> None:
        # A batch without weight has no mean: its nan is no part of the whole.
        if weight:
            self._sum += value * weight
            self._weight += weight

    def _fold(self) -> None:
        """Fetch the values that were kept, in one transfer."""
        if not self._values:
            return
        values = torch.stack(self._values).tolist()
        if all(isinstance(weight, Tensor) for weight in self._weights):
            weights = torch.stack(self._weights).tolist()  # type: ignore[arg-type]
        else:
            weights = [float(weight) for weight in self._weights]
        for value, weight in zip(values, weights, strict=True):
            self._add(value, weight)
        self._values.clear()
        self._weights.clear()


def checked_metrics(metrics: Mapping[str, MetricLike]) -> dict[str, Metric]:
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
