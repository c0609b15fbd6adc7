"""Weighted means over batches: of a function of (outputs, targets), and of scalar tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.batch import describe
from finetunelib._preserve import random_state_preserved
from finetunelib.data._batch import length_of
from finetunelib.errors import InvalidArgumentError


class MeanOf:
    """The mean of a function of (outputs, targets), weighted by the samples of each batch.

    The function returns a number for the batch, one number for each sample, several numbers such
    as one for each class, or a mapping of them by name.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self._sum: Any = 0.0
        self._samples: float | Tensor = 0
        # Whether a value has one number for each sample, once that is known.
        self._per_sample: bool | None = None

    @property
    def higher_is_better(self) -> bool | None:
        """The direction that the function declares, or `None`."""
        return getattr(self._function, "higher_is_better", None)

    def update(self, outputs: Any, targets: Any, sample_weight: Tensor | None = None) -> None:
        """Add one batch.

        Raises:
            InvalidArgumentError: If samples have weights and the function returns no value for each
                of them.
        """
        value = self._function(outputs, targets)
        samples = _samples_in(outputs, targets)
        if self._per_sample is None and samples > 1:
            self._per_sample = self._is_per_sample(value, samples, outputs, targets)
        parts = value if isinstance(value, Mapping) else {"": value}
        if sample_weight is not None:
            sums = {name: _weighted(part, sample_weight) for name, part in parts.items()}
            counted: float | Tensor = precise_sum(sample_weight)
        elif self._per_sample:
            sums, counted = {name: part.sum() for name, part in parts.items()}, samples
        else:
            sums, counted = {name: part * samples for name, part in parts.items()}, samples
        if isinstance(value, Mapping):
            old = self._sum if isinstance(self._sum, dict) else {}
            self._sum = {name: old.get(name, 0.0) + part for name, part in sums.items()}
        else:
            self._sum = self._sum + sums[""]
        self._samples = self._samples + counted

    def _is_per_sample(self, value: Any, samples: int, outputs: Any, targets: Any) -> bool:
        """Return whether there is a number for each sample: one sample then gives one number."""
        parts = list(value.values()) if isinstance(value, Mapping) else [value]
        if not parts or not all(isinstance(p, Tensor) and p.shape == (samples,) for p in parts):
            return False
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return False
        try:
            with random_state_preserved():
                one = self._function(outputs[:1], targets[:1])
        except Exception:  # noqa: BLE001 - it may need several samples, so it is not for each
            return False
        ones = list(one.values()) if isinstance(one, Mapping) else [one]
        return all(isinstance(part, Tensor) and part.shape == (1,) for part in ones)

    def compute(self) -> Any:
        """Return the mean, or nan if there is no value."""
        samples = as_number(self._samples)
        if not samples:
            return float("nan")
        if isinstance(self._sum, dict):
            return {name: part / samples for name, part in self._sum.items()}
        several = isinstance(self._sum, Tensor) and self._sum.numel() != 1
        return self._sum / samples if several else float(self._sum) / samples

    def reset(self) -> None:
        """Start over."""
        self._sum = 0.0
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sum so far."""
        # The sum keeps its dtype: a resumed sum must round in the same way.
        return {"sum": self._sum, "samples": as_number(self._samples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sum that `state_dict` returned."""
        self._sum, self._samples = state["sum"], state["samples"]


def _samples_in(outputs: Any, targets: Any) -> int:
    """Return the number of samples in a batch, whose targets may be a mapping or missing."""
    if isinstance(targets, Tensor) and targets.dim():
        return len(targets)
    return length_of(targets) or length_of(outputs) or 1


def _weighted(value: Any, sample_weight: Tensor) -> Tensor:
    """Return the weighted sum of the values of samples."""
    if not isinstance(value, Tensor) or value.shape != sample_weight.shape:
        raise InvalidArgumentError(
            "Samples have weights, so a metric function must return one value for each sample, "
            f"the shape {tuple(sample_weight.shape)}, got {describe(value)}. Leave out its "
            "`.mean()`; the Trainer averages the values."
        )
    return precise_sum(value * sample_weight.to(value.device))


def precise_sum(values: Tensor) -> Tensor:
    """Return the sum in float64, or in float32 on a device that has no float64."""
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)


def as_number(value: Tensor | float) -> float:
    """Return a number, which is read from its device. Whole numbers stay whole."""
    return value.item() if isinstance(value, Tensor) else value


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
