"""Losses of samples that count differently: the weighted mean of the losses of single samples."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib._typing import LossFunction
from finetunelib.errors import DataError, InvalidArgumentError
from finetunelib.training._tasks.convention import CLASS_FUNCTIONS, CLASS_LOSSES
from finetunelib.training._tasks.weighting import function_of, settings_of

#: The relative error up to which the mean of the single losses is that of the loss itself.
_TOLERANCE = 1e-3


def weighted_loss(
    loss_fn: LossFunction, outputs: Tensor, targets: Tensor, sample_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of the losses of samples, and the sum of the weights that count.

    With class weights, a sample counts with the product of its two weights. A loss that ignores a
    class index does not count the samples with it. If no sample counts, the loss is 0.

    Args:
        loss_fn: A loss that averages over samples.
        outputs: The outputs of a batch, `(batch, ...)`.
        targets: Its targets, `(batch, ...)`.
        sample_weight: The weights of its samples, `(batch,)`, at least 0.

    Raises:
        InvalidArgumentError: If the loss of each sample is unknown.
    """
    losses = _without_reduction(loss_fn)(outputs, targets)
    if not isinstance(losses, Tensor) or losses.shape[:1] != sample_weight.shape:
        raise InvalidArgumentError(
            f'`loss_fn` must return one loss for each sample with `reduction="none"`, to weight '
            f"them with `sample_weight`. {_ADVICE}"
        )
    weight = sample_weight.to(losses.dtype)
    counts = _counts(loss_fn, losses, targets)
    if counts is not None:
        total = (weight * _rows(losses).sum(1)).sum()
        counted = (weight * _rows(counts).sum(1)).sum()
    else:
        rows = _rows(losses)
        of_sample = rows.sum(1) if _sums_rows(loss_fn) else rows.mean(1)
        total, counted = (weight * of_sample).sum(), weight.sum()
    return total / torch.where(counted > 0, counted, torch.ones_like(counted)), counted


def check_weighted(
    loss_fn: LossFunction, outputs: Tensor, targets: Tensor, sample_weight: Tensor
) -> None:
    """Check that equal weights give the loss itself.

    Raises:
        InvalidArgumentError: If they do not, or the loss of each sample is unknown.
        DataError: If there is not one weight for each sample.
    """
    if sample_weight.shape != targets.shape[:1]:
        raise DataError(
            f"A batch has {len(targets)} targets and weights of the shape "
            f"{tuple(sample_weight.shape)}. Give each sample one weight."
        )
    equal, counted = weighted_loss(loss_fn, outputs, targets, torch.ones_like(sample_weight))
    plain = float(loss_fn(outputs, targets))
    if not math.isfinite(plain) or not float(counted):
        return
    if not math.isclose(float(equal), plain, rel_tol=_TOLERANCE, abs_tol=1e-6):
        raise InvalidArgumentError(
            f"`loss_fn` is {plain:.6g} for the first batch, but {float(equal):.6g} from its losses "
            'with `reduction="none"`, so it is not their mean and cannot be weighted by '
            f"`sample_weight`. {_ADVICE}"
        )


_ADVICE = (
    "Pass a loss of PyTorch, a module with an attribute `reduction` that its forward follows, a "
    "function with an argument `reduction`, or a `task` whose `step` gets (inputs, targets, "
    "sample_weight)."
)


def _without_reduction(loss_fn: LossFunction) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss with one value for each sample.

    Raises:
        InvalidArgumentError: If the loss has no reduction that could be turned off.
    """
    if isinstance(loss_fn, nn.Module) and isinstance(getattr(loss_fn, "reduction", None), str):
        # A shallow copy: it has the same parameters and buffers.
        single = copy.copy(loss_fn)
        single.reduction = "none"  # type: ignore[assignment]  # not a tensor or module
        return single
    if not isinstance(loss_fn, nn.Module) and _takes_reduction(loss_fn):
        return lambda outputs, targets: loss_fn(outputs, targets, reduction="none")  # type: ignore[call-arg]
    raise InvalidArgumentError(
        f"`sample_weight` needs the loss of each sample, which `loss_fn` does not give. {_ADVICE}"
    )


def _takes_reduction(function: LossFunction) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _counts(loss_fn: LossFunction, losses: Tensor, targets: Tensor) -> Tensor | None:
    """Return how much each target counts in the mean of a loss of classes, or `None`."""
    function = function_of(loss_fn)
    if type(function) not in CLASS_LOSSES and function not in CLASS_FUNCTIONS:
        return None
    if targets.is_floating_point():  # class probabilities: each counts once
        return torch.ones_like(losses)
    settings = settings_of(loss_fn)
    counted: Tensor = targets != settings.get("ignore_index", -100)
    of_class: Tensor | None
    of_class = settings["weight"] if "weight" in settings else getattr(function, "weight", None)
    if of_class is None:
        return counted.to(losses.dtype)
    weights: Tensor = torch.where(counted, of_class[targets.where(counted, 0)], 0)
    return weights.to(losses.dtype)


def _sums_rows(loss_fn: LossFunction) -> bool:
    """Return whether the loss of a sample is the sum over its row, not the mean."""
    function = function_of(loss_fn)
    divergence = isinstance(function, nn.KLDivLoss) or function is functional.kl_div
    return divergence and settings_of(loss_fn).get("reduction") == "batchmean"


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)
