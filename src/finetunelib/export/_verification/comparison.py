"""The four gates between a file's outputs and a model's: finite, error, norm, largest class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetunelib._public import public
from finetunelib.export._verification.runtime import Array

#: Outputs that vary by less than this share of their size tell nothing: their variation is as
#: small as what float32 rounds away, and any file would agree with them.
_SMALLEST_SPREAD = 1e-4

#: A class that leads by less than this share of the tolerance is a tie, which rounding decides.
_TIE = 0.1


@public("finetunelib.export")
@dataclass(frozen=True, slots=True)
class Comparison:
    """The agreement of one output on one batch.

    Attributes:
        output: The name of the output in the file.
        batch_size: The size of the batch.
        largest_error: The largest absolute difference of any value.
        spread: The largest range of any value of the output over the samples of all batches, in
            the model.
        error: `largest_error` as a share of `spread`; infinity where there is no spread.
        norm_ratio: The norm of what varies in the file's output (its distance from the model's
            mean over the samples) over the same of the model, of which the latter counts as the
            spread where it is smaller; 1 where nothing varies.
        argmax_agreement: The share of samples of which the largest value is at the same place, for
            an output `(batch, classes)`; `None` for others. A tie counts as agreement.
    """

    output: str
    batch_size: int
    largest_error: float
    spread: float
    error: float
    norm_ratio: float
    argmax_agreement: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What the gates say of one output: its numbers, whether it varies, what is wrong where."""

    comparisons: tuple[Comparison, ...]
    varies: bool
    problem: str | None = None
    batch: int = 0


def examine(
    name: str, expected: Sequence[Array], actual: Sequence[Array], tolerance: float
) -> Finding:
    """Compare one output over all batches.

    Args:
        name: The output's name.
        expected: The model's values, a batch each.
        actual: The file's values.
        tolerance: The largest error allowed, as a share of the spread.
    """
    for number, (ours, theirs) in enumerate(zip(expected, actual, strict=True)):
        blocked = _incomparable(name, ours, theirs)
        if blocked:
            return Finding((), varies=True, problem=blocked, batch=number)
    expected = [batch.astype(np.float64) for batch in expected]
    actual = [batch.astype(np.float64) for batch in actual]
    spread = float(max(np.ptp(_samples(expected), axis=0).max(initial=0.0), 0.0))
    size = max(float(np.abs(batch).max(initial=0.0)) for batch in expected)
    varies = spread > _SMALLEST_SPREAD * size
    # Where nothing varies, the size of the outputs is all that an error can be compared with.
    scale = spread if varies else size
    mean = _mean(expected)
    comparisons = tuple(
        _compare(name, ours, theirs, spread, mean, varies=varies, tie=_TIE * tolerance * scale)
        for ours, theirs in zip(expected, actual, strict=True)
    )
    for number, numbers in enumerate(comparisons):
        problem = _problem(numbers, scale, tolerance)
        if problem:
            return Finding(comparisons, varies, problem, number)
    return Finding(comparisons, varies)


def _incomparable(name: str, ours: Array, theirs: Array) -> str | None:
    if ours.shape != theirs.shape:
        return (
            f"The output `{name}` has the shape {theirs.shape} in the file and {ours.shape} in "
            "the model."
        )
    for where, values in (("model", ours), ("file", theirs)):
        if not np.isfinite(values).all():
            return (
                f"The output `{name}` of the {where} holds values that are not finite. "
                "A file is verified on finite outputs only; check the weights and the example."
            )
    return None


def _compare(
    name: str, ours: Array, theirs: Array, spread: float, mean: Array, *, varies: bool, tie: float
) -> Comparison:
    largest = float(np.abs(ours - theirs).max(initial=0.0))
    return Comparison(
        output=name,
        batch_size=len(ours) if ours.ndim else 1,
        largest_error=largest,
        spread=spread,
        error=largest / spread if spread else float("inf"),
        norm_ratio=_norm_ratio(ours - mean, theirs - mean, spread) if varies else 1.0,
        argmax_agreement=_agreement(ours, theirs, tie) if ours.ndim == 2 else None,
    )


def _problem(numbers: Comparison, scale: float, tolerance: float) -> str | None:
    """Return which gate a batch fails, or `None`."""
    where = f"The output `{numbers.output}` at batch {numbers.batch_size}"
    if numbers.largest_error > tolerance * scale:
        share = numbers.largest_error / scale if scale else float("inf")
        return (
            f"{where} differs by up to {numbers.largest_error:.3g} between the file and the "
            f"model, which is {share:.3g} of its spread over the samples ({scale:.3g}); "
            f"allowed is {tolerance:.3g}."
        )
    if abs(numbers.norm_ratio - 1) > tolerance:
        return (
            f"{where} has {numbers.norm_ratio:.5g} times the norm in the file that it has in "
            f"the model; allowed is a difference of {tolerance:.3g}."
        )
    if numbers.argmax_agreement is not None and numbers.argmax_agreement < 1:
        return (
            f"{where} has its largest value at another place than in the model for "
            f"{1 - numbers.argmax_agreement:.1%} of the samples."
        )
    return None


def _norm_ratio(ours: Array, theirs: Array, spread: float) -> float:
    norm = float(np.linalg.norm(ours))
    # A sample may lie at the mean by chance, where a ratio means nothing.
    return 1 + (float(np.linalg.norm(theirs)) - norm) / max(norm, spread)


def _agreement(ours: Array, theirs: Array, tie: float) -> float:
    if not ours.size:
        return 1.0
    rows = np.arange(len(ours))
    lead = ours.max(axis=1) - ours[rows, theirs.argmax(axis=1)]
    return float((lead <= tie).mean())


def _samples(batches: Sequence[Array]) -> Array:
    """Return all samples of an output, where the batches agree in the shape of a sample."""
    if not batches[0].ndim:
        return np.stack(batches)  # One number a batch, such as a mean.
    if len({batch.shape[1:] for batch in batches}) == 1:
        return np.concatenate(batches)
    return max(batches, key=len)


def _mean(batches: Sequence[Array]) -> Array:
    """Return the mean sample, or the mean value where the batches' samples differ in shape."""
    samples = _samples(batches)
    same = not batches[0].ndim or all(batch.shape[1:] == samples.shape[1:] for batch in batches)
    return np.asarray(samples.mean(axis=0) if same and samples.size else samples.mean())
