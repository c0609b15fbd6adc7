"""What a loss is a mean over: known for the losses of PyTorch, and measured for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from finetunelib._typing import LossFunction
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._tasks.class_targets import IGNORED, count_targets
from finetunelib.training._tasks.convention import (
    CLASS_FUNCTIONS,
    CLASS_LOSSES,
    REGRESSION_FUNCTIONS,
    REGRESSION_LOSSES,
)

#: Losses that compare outputs and targets element by element.
ELEMENTWISE = (*REGRESSION_LOSSES, nn.BCEWithLogitsLoss)

_ELEMENTWISE_FUNCTIONS = (
    *REGRESSION_FUNCTIONS,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
)

#: Computes the weight of a batch from its targets.
Weight: TypeAlias = Callable[[Tensor], Tensor | float]


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a loss is a mean over.

    Attributes:
        weight: Computes the weight of a batch.
        known: Whether the weights of batches of different sizes can be compared. Otherwise all
            batches must have the same size.
        ignored: The class index that the loss ignores.
        counts_targets: Whether a weight of class indices that is a whole number is the number of
            those that are not ignored.
    """

    weight: Weight
    known: bool = True
    ignored: int = IGNORED
    counts_targets: bool = False


def known_weighting(loss_fn: LossFunction) -> Weighting | None:
    """Return the weighting of a loss of PyTorch, or `None` if it must be measured.

    A derived class may change what its parent does, so only PyTorch's own classes are known.

    Raises:
        InvalidArgumentError: If the loss does not average over the batch.
    """
    function, settings = _unwrapped(loss_fn)
    reduction = settings.get("reduction", "mean")
    divergence = isinstance(loss_fn, nn.KLDivLoss) or function is functional.kl_div
    if reduction != "mean" and not (divergence and reduction == "batchmean"):
        name = getattr(function, "__name__", type(function).__name__)
        raise InvalidArgumentError(
            f"`loss_fn` must average over the batch, got the reduction {reduction!r}. "
            f'Use {name}(reduction="mean").'
        )
    kind = type(function)
    if divergence and (kind is nn.KLDivLoss or not isinstance(function, nn.Module)):
        return Weighting(len if reduction == "batchmean" else Tensor.numel)
    if kind in (*ELEMENTWISE, nn.BCELoss) or function in _ELEMENTWISE_FUNCTIONS:
        return Weighting(Tensor.numel)
    if kind in CLASS_LOSSES or function in CLASS_FUNCTIONS:
        return class_weighting(function, settings)
    return None


def class_weighting(function: object, settings: Mapping[str, Any]) -> Weighting:
    """Return the weighting of a cross-entropy: the counted targets, or their class weights."""
    ignored = settings.get("ignore_index", IGNORED)

    def weight(targets: Tensor) -> Tensor | float:
        if targets.is_floating_point():
            return len(targets)  # class probabilities: none is ignored
        # Read at each call: the module may have been moved to another device.
        of_class = settings["weight"] if "weight" in settings else getattr(function, "weight", None)
        if of_class is not None:
            return of_class[targets[targets != ignored]].sum()  # type: ignore[no-any-return]
        return count_targets(targets, ignored)

    return Weighting(weight, ignored=ignored, counts_targets=True)


def _unwrapped(loss_fn: LossFunction) -> tuple[object, dict[str, Any]]:
    """Return the function or module inside partials, and its settings."""
    settings: dict[str, Any] = {}
    function: object = loss_fn
    while isinstance(function, partial):
        settings = function.keywords | settings
        function = function.func
    if isinstance(function, nn.Module):
        names = ("reduction", "ignore_index")
        settings = {n: getattr(function, n) for n in names if hasattr(function, n)} | settings
    return function, settings


def ignored_by(loss_fn: LossFunction) -> int:
    """Return the class index that a loss says to ignore, or PyTorch's own."""
    ignored = _unwrapped(loss_fn)[1].get("ignore_index", IGNORED)
    return ignored if isinstance(ignored, int) else IGNORED


def function_of(loss_fn: LossFunction) -> object:
    """Return the function or module inside partials."""
    return _unwrapped(loss_fn)[0]


def settings_of(loss_fn: LossFunction) -> dict[str, Any]:
    """Return the settings of a loss: those of its partials, before those of a module."""
    return _unwrapped(loss_fn)[1]
