"""Findings about the scale of the inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from finetunelib.training._diagnosis.finding import Finding

#: The most inputs that are examined.
_MOST = 1 << 20

#: The root mean square of inputs below and above which training suffers.
_LEAST_SCALE, _MOST_SCALE = 1e-3, 50.0

#: Layers that scale their inputs themselves.
_NORMALIZING = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


class InputScale:
    """The scale of the inputs of the first batch, and of what the first layer receives.

    Args:
        inputs: The inputs of a batch.
    """

    def __init__(self, inputs: Any) -> None:  # Any: whatever the data contains.
        self.finding: Finding | None = None
        self.is_zero = False
        self._seen = False
        if _is_usual(inputs):
            values = _first_values(inputs)
            size = _root_mean_square(values)
            self.is_zero = size == 0
            self.finding = _finding(values, size)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Drop the finding if the model, called in the block, scales the inputs itself.

        Nothing is watched if the scale of the inputs is right.
        """
        if self.finding is None:
            yield
            return
        layers = [module for module in model.modules() if not any(module.children())]
        handles = [layer.register_forward_pre_hook(self._see) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Take the inputs of the first layer that runs and has weights or normalizes."""
        normalizing = isinstance(layer, _NORMALIZING)
        if self._seen or (not normalizing and next(layer.parameters(), None) is None):
            return
        self._seen = True
        first = next((value for value in args if isinstance(value, Tensor)), None)
        if (
            normalizing
            or first is None
            or not _is_usual(first)
            or _is_right(_root_mean_square(_first_values(first)))
        ):
            self.finding = None


def _finding(values: Tensor, size: float) -> Finding | None:
    """Return the finding about values with a root mean square, or `None`."""
    if _is_right(size):
        return None
    low, high = (float(value) for value in values.aminmax())
    if low >= 0 and 100 < high <= 255 and torch.equal(values, values.round()):
        return Finding(
            "inputs-in-0-255",
            "likely",
            f"The inputs are whole numbers from {low:g} to {high:g}, such as the bytes of images. "
            "The default initialization of layers expects inputs of about unit scale.",
            "Divide them by 255, and for a pretrained model also apply its normalization.",
        )
    return Finding(
        "inputs-far-from-unit-scale",
        "likely",
        f"The inputs range from {low:.3g} to {high:.3g}, with a root mean square of {size:.3g}. "
        "The default initialization of layers expects inputs of about unit scale.",
        "Subtract the mean of each feature of the training data, and divide by its standard "
        "deviation.",
    )


def _first_values(inputs: Tensor) -> Tensor:
    values = inputs.detach()
    if values.dim() and values.numel() > _MOST:
        values = values[: max(1, _MOST // values[0].numel())]
    return values


def _root_mean_square(values: Tensor) -> float:
    # The norm of half precision could overflow.
    dtype = torch.float32 if values.element_size() == 2 else None
    norm = torch.linalg.vector_norm(values, dtype=dtype)
    return float(norm) / math.sqrt(max(1, values.numel()))


def _is_usual(value: Any) -> bool:
    """Return whether a value is a tensor of floating-point numbers in the usual layout."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    return value.is_floating_point() and value.element_size() > 1 and value.numel() > 0


def _is_right(size: float) -> bool:
    # Values that are not finite are reported with the loss.
    return size == 0 or not math.isfinite(size) or _LEAST_SCALE <= size <= _MOST_SCALE
