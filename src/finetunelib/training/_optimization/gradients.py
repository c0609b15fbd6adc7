"""Accumulation and clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from finetunelib._typing import Batch
from finetunelib.errors import InvalidArgumentError, InvalidTypeError


class GradientMean(Protocol):
    """How the gradients of a window's micro-batches become those of one large batch."""

    def scale_loss(self, loss: Tensor, weight: Tensor | float) -> Tensor:
        """Return the loss of a micro-batch times its weight, relative to the first one's."""
        ...

    def normalize(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the summed gradients by the total weight."""
        ...


class SingleBatch:
    """Leaves the gradients unchanged, for a window of one micro-batch.

    If it is a mean over nothing, such as over ignored targets only, the gradients become zeros.
    """

    __slots__ = ("_weight",)

    _weight: Tensor | float

    def scale_loss(self, loss: Tensor, weight: Tensor | float) -> Tensor:
        """Return the loss unchanged."""
        self._weight = weight
        return loss

    def normalize(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clear the gradients of a batch without weight: a mean over nothing may be nan."""
        if _is_zero(self._weight):
            _clear(parameters)


class WindowMean:
    """Makes the gradients of several micro-batches equal to those of one large batch.

    Each loss is a mean over its own weight (samples, tokens, class weights). Gradients are summed
    times weight and divided once. Weights are relative to the weight of the first micro-batch that
    has one, and divided in float64.
    """

    def __init__(self) -> None:
        self._unit: Tensor | float | None = None
        self._total: Tensor | float = 0.0

    def scale_loss(self, loss: Tensor, weight: Tensor | float) -> Tensor:
        """Return the loss of a micro-batch times its relative weight."""
        if _is_zero(weight):
            # A mean over nothing, whose gradients may be nan: it takes no part.
            return torch.zeros_like(loss, requires_grad=True)
        weight = _precise(weight)
        if self._unit is None:
            # The first loss is not scaled: its weight is the unit.
            self._unit = _or_one(weight)
            self._total = weight / self._unit
            return loss
        relative = weight / self._unit
        self._total = self._total + relative
        return loss * (relative.to(loss.dtype) if isinstance(relative, Tensor) else relative)

    def normalize(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the summed gradients by the total weight."""
        if self._unit is None:
            _clear(parameters)
            return
        total = _or_one(self._total)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total)


def mean_over(window: Sequence[Batch]) -> GradientMean:
    """Return the mean for a window. One micro-batch gives the bits of the plain loop."""
    return SingleBatch() if len(window) == 1 else WindowMean()


def _or_one(weight: Tensor | float) -> Tensor | float:
    if isinstance(weight, Tensor):
        return torch.where(weight > 0, weight, 1)
    return weight or 1.0


def _precise(weight: Tensor | float) -> Tensor | float:
    """Return a weight in float64, or in float32 on a device that has no float64."""
    if not isinstance(weight, Tensor):
        return weight
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)


def _is_zero(weight: Tensor | float) -> bool:
    """Return whether a weight is 0. One on an accelerator is not read."""
    return not weight if not isinstance(weight, Tensor) else weight.is_cpu and not weight.item()


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    """Set the gradients of all trainable parameters to zeros."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


class Clipping(Protocol):
    """Limits the gradients of an update."""

    def __call__(self, parameters: list[nn.Parameter]) -> Tensor | None:
        """Clip the gradients in place, and return their norm if it was computed."""
        ...


class NoClipping:
    """Leaves the gradients unchanged."""

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Return `None`: the norm is not computed."""


class NormClipping:
    """Scales all gradients by one factor if their common norm is too large.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
    networks", 2013, implemented by `torch.nn.utils.clip_grad_norm_`.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def __call__(self, parameters: list[nn.Parameter]) -> Tensor:
        """Clip the gradients in place, and return their norm."""
        return torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)


def choose_clipping(max_norm: float | None) -> Clipping:
    """Return the clipping to a norm; `None` does not clip.

    Raises:
        InvalidArgumentError: If the norm is not above 0.
        InvalidTypeError: If the norm is not a number.
    """
    if max_norm is None:
        return NoClipping()
    if not isinstance(max_norm, int | float):
        raise InvalidTypeError(
            f"`max_grad_norm` must be a number, got {max_norm!r} ({type(max_norm).__name__})."
        )
    if not max_norm > 0.0:
        raise InvalidArgumentError(f"`max_grad_norm` must be above 0, got {max_norm}.")
    return NormClipping(max_norm)
