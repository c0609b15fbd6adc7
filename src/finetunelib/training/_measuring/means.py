"""Weighted means over batches: of a function of (outputs, targets), and of scalar tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


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
