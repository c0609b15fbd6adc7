"""What happens to gradients between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from finetunelib._typing import Batch
from finetunelib.errors import InvalidArgumentError, InvalidTypeError


class NoMean:
    """Leaves the gradients of a window of one micro-batch as they are."""

    def share(self, loss: Tensor, weight: Tensor | float) -> Tensor:  # noqa: ARG002 - WindowMean's form
        """Return the loss."""
        return loss

    def finish(self, parameters: Iterable[nn.Parameter]) -> None: ...


class WindowMean(NoMean):
    """Makes the gradients of several micro-batches those of one large batch.

    Each loss is a mean over its own weight (samples, tokens, class weights), so that gradients
    are summed times weight and divided once. Weights are taken relative to the first one's.
    """

    def __init__(self) -> None:
        self._unit: Tensor | float | None = None
        self._total: Tensor | float = 0.0

    def share(self, loss: Tensor, weight: Tensor | float) -> Tensor:
        """Return a micro-batch's part of the window's loss, not yet divided."""
        if self._unit is None:
            # The first micro-batch's loss goes in as it is, so that its weight is the unit; where
            # it weighs nothing (all its targets are ignored), its gradients are zeros.
            self._unit = _or_one(weight)
            self._total = weight / self._unit
            return loss
        relative = weight / self._unit
        self._total = self._total + relative
        return loss * relative

    def finish(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the summed gradients by the summed weight."""
        total = _or_one(self._total)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total)


_NO_MEAN = NoMean()


def mean_over(window: Sequence[Batch]) -> NoMean:
    """Return what averages over a window; one of one micro-batch stays the plain loop's bits."""
    return _NO_MEAN if len(window) == 1 else WindowMean()


def _or_one(weight: Tensor | float) -> Tensor | float:
    if isinstance(weight, Tensor):
        return torch.where(weight > 0, weight, 1)
    return weight or 1.0


class NoClipping:
    """Leaves gradients as they are."""

    def __call__(self, parameters: list[nn.Parameter]) -> None: ...


class NormClipping(NoClipping):
    """Scales all gradients down together where their norm is too large.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural
    networks", 2013, by `torch.nn.utils.clip_grad_norm_`.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip the gradients in place."""
        torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)


def choose_clipping(max_norm: float | None) -> NoClipping:
    """Return what clips gradients to a norm; `None` clips nothing.

    Raises:
        InvalidArgumentError: The norm is not above 0.
        InvalidTypeError: It is no number.
    """
    if max_norm is None:
        return NoClipping()
    if not isinstance(max_norm, int | float):
        raise InvalidTypeError(
            f"`max_grad_norm` must be a number, but is {max_norm!r} ({type(max_norm).__name__})."
        )
    if not max_norm > 0.0:
        raise InvalidArgumentError(f"`max_grad_norm` must be above 0, but is {max_norm}.")
    return NormClipping(max_norm)
