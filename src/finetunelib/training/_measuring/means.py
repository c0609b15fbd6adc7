"""Weighted means over batches: of a function of (outputs, targets), and of scalar tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib.data._batch import length_of


class MeanOf:
    """The mean of a function of (outputs, targets), weighted by the samples of each batch.

    The function returns a number, a tensor of numbers, or a mapping of them by name.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self._sum: Any = 0.0
        self._samples = 0

    @property
    def higher_is_better(self) -> bool | None:
        """The direction that the function declares, or `None`."""
        return getattr(self._function, "higher_is_better", None)

    def update(self, outputs: Any, targets: Any) -> None:
        """Add one batch."""
        value = self._function(outputs, targets)
        samples = _samples_in(outputs, targets)
        if isinstance(value, Mapping):
            old = self._sum if isinstance(self._sum, dict) else {}
            self._sum = {name: old.get(name, 0.0) + part * samples for name, part in value.items()}
        else:
            self._sum = self._sum + value * samples
        self._samples += samples

    def compute(self) -> Any:
        """Return the mean, or nan if there is no value."""
        if not self._samples:
            return float("nan")
        if isinstance(self._sum, dict):
            return {name: part / self._samples for name, part in self._sum.items()}
        several = isinstance(self._sum, Tensor) and self._sum.numel() != 1
        return self._sum / self._samples if several else float(self._sum) / self._samples

    def reset(self) -> None:
        """Start over."""
        self._sum = 0.0
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sum so far."""
        # The sum keeps its dtype: a resumed sum must round in the same way.
        return {"sum": self._sum, "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sum that `state_dict` returned."""
        self._sum, self._samples = state["sum"], state["samples"]


def _samples_in(outputs: Any, targets: Any) -> int:
    """Return the number of samples in a batch, whose targets may be a mapping or missing."""
    if isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    return length_of(targets) or length_of(outputs) or 1


class Mean:
    """A weighted mean of scalar tensors, in double precision.

    A value on the CPU is added at once. A value on an accelerator stays there until the mean is
    read, because reading it synchronizes with the device.
    """

    #: The number of values that are kept before they are summed, which bounds the memory.
    _CHUNK = 1024

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0
        self._restored_weight = 0.0
        self._values: list[Tensor] = []
        self._weights: list[Tensor | float] = []

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Add one value."""
        if value.is_cpu:
            self._add(value.item(), float(weight))
            return
        self._values.append(value.detach())
        self._weights.append(weight)
        if len(self._values) == self._CHUNK:
            self._fold()

    def compute(self) -> float:
        """Return the mean, or nan if there is no value."""
        self._fold()
        return self._sum / self._weight if self._weight else float("nan")

    @property
    def weight(self) -> float:
        """The weight of all values."""
        self._fold()
        return self._weight

    @property
    def weight_added(self) -> float:
        """The weight of the values that were added here, rather than restored from a state."""
        return self.weight - self._restored_weight

    def state_dict(self) -> dict[str, float]:
        """Return the sum so far."""
        self._fold()
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the sum that `state_dict` returned."""
        self._sum, self._weight = state["sum"], state["weight"]
        self._restored_weight = self._weight

    def _add(self, value: float, weight: float) -> None:
        # The mean of a batch without weight is nan, which must not be added.
        if weight:
            self._sum += value * weight
            self._weight += weight

    def _fold(self) -> None:
        """Add the values that were kept, in one transfer from the device."""
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
