"""Measures what a loss is a mean over, by evaluating two unequal parts of a batch and the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetunelib._preserve import random_state_preserved, unchanged
from finetunelib._typing import LossFunction
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._tasks.class_targets import IGNORED
from finetunelib.training._tasks.weighting import (
    Weight,
    Weighting,
    class_weighting,
    ignored_by,
)

#: The rows of a batch that are evaluated, or a quarter of them for targets `(batch,)`. A third of
#: them is the first part.
_ROWS = 12

#: Fewer rows are evaluated if their outputs have more elements than this.
_ELEMENTS = 4_000_000

#: The relative error up to which two values of a loss are the same.
_TOLERANCE = 2e-5

#: The class indices that losses commonly ignore.
_IGNORABLE = (IGNORED, -1, 0, 255)

#: What to do if the weighting of a loss is unknown.
UNKNOWN = (
    "`loss_fn` is not a mean over the samples or the counted targets of a batch, so batches of "
    "different sizes cannot be averaged: neither in gradient accumulation, nor in the loss of an "
    "epoch. Return what the loss is a mean over as `StepOutput.weight` from a Task"
)


@dataclass(frozen=True, slots=True)
class _Probe:
    """Outputs and targets of a few rows, and where they are cut into two unequal parts."""

    outputs: Tensor
    targets: Tensor
    cut: int

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the two parts and the whole."""
        yield self.outputs[: self.cut], self.targets[: self.cut]
        yield self.outputs[self.cut :], self.targets[self.cut :]
        yield self.outputs, self.targets

    def losses(self, loss_fn: LossFunction) -> tuple[float, float, float] | None:
        """Return the losses of the parts and the whole, or `None` if there is none."""
        try:
            found = [float(loss_fn(outputs, targets)) for outputs, targets in self.parts()]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - a loss may refuse these values in any way
            return None
        first, second, whole = found
        return (first, second, whole) if all(map(math.isfinite, found)) else None

    def fits(self, losses: tuple[float, float, float], weight: Weight) -> bool:
        """Return whether the whole is the mean of the parts with these weights."""
        one, other, _ = (float(weight(targets)) for _, targets in self.parts())
        first, second, whole = losses
        if not one + other:
            return False
        return _close((one * first + other * second) / (one + other), whole, losses)


def measured_weighting(loss_fn: LossFunction, outputs: Tensor, targets: Tensor) -> Weighting:
    """Return what a loss is a mean over, from a few rows of a batch with random outputs.

    Random outputs differ from row to row. The model's own may be equal, such as those of a head
    whose weights are zeros, and then every weighting would fit.

    Args:
        loss_fn: The loss. It is called several times, without gradients.
        outputs: The outputs of the batch, `(batch, ...)`.
        targets: Its targets, `(batch, ...)`.

    Raises:
        InvalidArgumentError: If the loss is a sum.
    """
    modules = [loss_fn] if isinstance(loss_fn, nn.Module) else []
    exact = torch.autocast(outputs.device.type, enabled=False)
    with torch.no_grad(), exact, random_state_preserved(), unchanged(*modules):
        fitting = _candidates(loss_fn, targets)
        informative = None
        for probe in _probes(outputs, targets):
            losses = probe.losses(loss_fn)
            if losses is None:
                continue  # All targets of a part may be ignored.
            _check_is_no_sum(losses)
            informative = probe
            fitting = [each for each in fitting if probe.fits(losses, each.weight)]
        if informative is None or not fitting:
            return Weighting(len, known=False)
        if not _may_be_classes(targets):
            return fitting[0]
        return _with_ignored(loss_fn, informative, fitting)


def nothing_counted(targets: Tensor) -> Weighting | None:
    """Return the weighting of a batch whose targets are all ignored, from which none can be found.

    `None` means that other targets may count.
    """
    if not _may_be_classes(targets) or not targets.numel():
        return None
    value = int(targets.flatten()[0])
    if value not in _IGNORABLE or value == 0 or bool((targets != value).any()):
        return None
    return Weighting(_counted(value), ignored=value)


def _candidates(loss_fn: LossFunction, targets: Tensor) -> list[Weighting]:
    samples = Weighting(len)
    if not _may_be_classes(targets):
        return [samples]
    own: list[Weighting] = []
    if isinstance(loss_fn, nn.Module) and hasattr(loss_fn, "ignore_index"):
        own.append(class_weighting(loss_fn, {"ignore_index": ignored_by(loss_fn)}))
    return [*own, samples, *_counts()]


def _may_be_classes(targets: Tensor) -> bool:
    return targets.dtype in (torch.int64, torch.int32, torch.int16)


def _counts() -> Iterator[Weighting]:
    for ignored in _IGNORABLE:
        yield Weighting(_counted(ignored), ignored=ignored)
        yield Weighting(_counted(ignored, after_first=True), ignored=ignored)


def _counted(ignored: int, *, after_first: bool = False) -> Weight:
    """Return the number of targets that are not ignored, with or without each row's first one.

    A causal language model predicts the next token, so the first one of a row is not a target.
    """

    def weight(targets: Tensor) -> Tensor | float:
        rows = targets[:, 1:] if after_first and targets.dim() > 1 else targets
        counted = (rows != ignored).sum()
        return int(counted) if counted.is_cpu else counted

    return weight


def _with_ignored(loss_fn: LossFunction, probe: _Probe, fitting: list[Weighting]) -> Weighting:
    """Return the weighting that also fits if some targets are ignored."""
    # On the CPU, because an index that is not ignored would break the state of an accelerator.
    probe = _Probe(probe.outputs.cpu(), probe.targets.cpu(), probe.cut)
    chosen = fitting[0]
    for ignored in _IGNORABLE:
        marked = _marked(probe, ignored)
        losses = marked.losses(loss_fn)
        if losses is None or marked.fits(losses, chosen.weight):
            continue  # The loss does not accept this value, or does not ignore it.
        counts = [*fitting, *_counts()]
        better = [w for w in counts if w.ignored == ignored and marked.fits(losses, w.weight)]
        if not better:
            return Weighting(len, known=False)
        chosen = better[0]
    return chosen


def _marked(probe: _Probe, ignored: int) -> _Probe:
    """Return a probe in which some targets are ignored, more of them in the first part."""
    targets = probe.targets.clone(memory_format=torch.contiguous_format)
    rows = targets.view(len(targets), -1)
    width = rows.shape[1]
    for row in range(len(rows)):
        many = width // 2 if row % 2 == 0 and row < probe.cut else row % 2
        count = many if width > 1 else int(row in (0, len(rows) - 1))
        rows[row, width - count :] = ignored
    return _Probe(probe.outputs, targets, probe.cut)


def _probes(outputs: Tensor, targets: Tensor) -> Iterator[_Probe]:
    """Yield probes of other rows, the last with different classes in its two parts."""
    per_row = max(1, outputs[0].numel())
    rows, least = (_ROWS, 3) if targets.dim() > 1 else (4 * _ROWS, 12)
    count = max(least, min(rows, _ELEMENTS // per_row))
    for seed, cut in enumerate((count // 3, count // 4 + 1, count // 5 + 1, count // 3)):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(targets), (count,), generator=generator)
        if seed == 3 and targets.dim() == 1:
            chosen = chosen[targets.cpu()[chosen].argsort()]  # Classes may have weights.
        kept = outputs[chosen.to(outputs.device)]
        if kept.is_floating_point():
            dtype = torch.float64 if kept.dtype == torch.float64 else torch.float32
            # Values between 0 and 1 are valid as logits, as probabilities and in a logarithm.
            kept = (torch.rand(kept.shape, generator=generator) * 0.9 + 0.05).to(kept.device, dtype)
        yield _Probe(kept, targets[chosen.to(targets.device)], cut)


def _check_is_no_sum(losses: tuple[float, float, float]) -> None:
    first, second, whole = losses
    if _close(first + second, whole, losses) and not _close(whole, 0.0, (1.0, 0.0, 0.0)):
        raise InvalidArgumentError(
            "`loss_fn` must average over the batch, but it sums: its values for two parts of a "
            'batch add up to its value for the whole. Use reduction="mean", or `.mean()` instead '
            "of `.sum()`."
        )


def _close(one: float, other: float, losses: tuple[float, float, float]) -> bool:
    return abs(one - other) <= _TOLERANCE * max(map(abs, losses))
