"""Compares one output of a file with the model's: finite, error, norm, largest class, exactness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from finetunelib._public import public
from finetunelib.export._batches.arrays import Array
from finetunelib.export._verification.columns import small_columns
from finetunelib.export._verification.exact import compare_exactly

#: Outputs that vary by less than this fraction of their magnitude prove nothing: float32 rounding
#: varies as much, and any file would agree with them.
SMALLEST_SPREAD = 1e-4

#: A class that leads by less than this fraction of the tolerance is a tie, which rounding decides.
_TIE = 0.1

#: The model's values of an output for a batch, by number, after changes the size of rounding.
Rounding = Callable[[int], list[Array]]


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
        error: `largest_error` as a fraction of `spread`; infinity if the spread is 0.
        norm_ratio: The norm of the variation in the file's output (its distance from the model's
            mean over the samples) divided by that in the model, where the latter counts as at
            least the spread; 1 if nothing varies.
        argmax_agreement: The fraction of samples whose largest value is at the same index, for
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
    """The result for one output.

    Attributes:
        comparisons: The numbers for each batch.
        varies: Whether the output varies over the samples.
        problem: What differs, if anything, and `batch`, the number of the batch where it does.
        doubt: Why the agreement proves nothing, for a reason other than `varies`.
    """

    comparisons: tuple[Comparison, ...]
    varies: bool
    problem: str | None = None
    batch: int = 0
    doubt: str | None = None


def no_rounding(number: int) -> list[Array]:
    """Return no alternatives, so any difference counts."""
    del number
    return []


def examine(
    name: str,
    expected: Sequence[Array],
    actual: Sequence[Array],
    tolerance: float,
    *,
    batch_sizes: Sequence[int] | None = None,
    rounding: Rounding = no_rounding,
) -> Finding:
    """Compare one output over all batches.

    Args:
        name: The output's name.
        expected: The model's values for each batch.
        actual: The file's values for each batch.
        tolerance: The largest error allowed, as a fraction of the spread.
        batch_sizes: The size of each batch. `None` is the size of the first axis.
        rounding: Returns the model's values for a batch after changes the size of rounding. It is
            called only if a difference might be explained by them.
    """
    for number, (ours, theirs) in enumerate(zip(expected, actual, strict=True)):
        blocked = _incomparable(name, ours, theirs)
        if blocked:
            return Finding((), varies=True, problem=blocked, batch=number)
    if not any(batch.size for batch in expected):
        return Finding((), varies=False, doubt=f"the output `{name}` was empty in all batches")
    sizes = list(batch_sizes or [len(batch) if batch.ndim else 1 for batch in expected])
    axis = _batch_axis(expected, sizes)
    if expected[0].dtype.kind in "biu":
        return _exact(name, expected, actual, sizes, axis, rounding)

    def rounded(number: int) -> list[Array]:
        return [_rows(values.astype(np.float64), axis) for values in rounding(number)]

    return _Floats(
        name,
        [_rows(batch.astype(np.float64), axis) for batch in expected],
        [_rows(batch.astype(np.float64), axis) for batch in actual],
        sizes,
        tolerance,
    ).finding(rounded)


def _incomparable(name: str, ours: Array, theirs: Array) -> str | None:
    if ours.shape != theirs.shape:
        return (
            f"The output `{name}` has the shape {theirs.shape} in the file and {ours.shape} in "
            "the model."
        )
    for where, values in (("model", ours), ("file", theirs)):
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            return (
                f"The output `{name}` of the {where} has values that are not finite. "
                "A file is verified on finite outputs only; check the weights and the samples."
            )
    return None


def _batch_axis(batches: Sequence[Array], sizes: Sequence[int]) -> int | None:
    """Return the axis of an output that has the size of each batch; `None` if there is none."""
    if not batches[0].ndim:
        return None
    if len(set(sizes)) > 1:
        for axis in range(min(batch.ndim for batch in batches)):
            if all(batch.shape[axis] == size for batch, size in zip(batches, sizes, strict=True)):
                return axis
        # Detections, pairs of samples and flattened texts have rows, but not one per sample.
        same = len({batch.shape for batch in batches}) == 1
        return None if same else 0
    return 0


def _rows(batch: Array, axis: int | None) -> Array:
    """Return an output with its samples along the first axis."""
    return batch[np.newaxis] if axis is None else np.moveaxis(batch, axis, 0)


def _exact(
    name: str,
    expected: Sequence[Array],
    actual: Sequence[Array],
    sizes: Sequence[int],
    axis: int | None,
    rounding: Rounding,
) -> Finding:
    """Compare an output of integers or booleans."""
    rows = [_rows(batch, axis) for batch in expected]
    samples = _samples(rows)
    spread = float(samples.max() - samples.min()) if samples.dtype.kind != "b" else 1.0
    varies = bool((samples != samples[:1]).any())
    comparisons, doubt = [], None
    for number, (ours, theirs) in enumerate(zip(expected, actual, strict=True)):
        result = compare_exactly(ours, theirs, partial(rounding, number))
        if result.problem:
            problem = f"The output `{name}` at batch size {sizes[number]} {result.problem}"
            return Finding((), varies, problem, number)
        doubt = doubt or (result.doubt and f"the output `{name}` {result.doubt}")
        error = result.largest / spread if spread else float("inf")
        comparisons.append(
            Comparison(name, sizes[number], result.largest, spread, error, 1.0, None)
        )
    return Finding(tuple(comparisons), varies, doubt=doubt)


@dataclass(frozen=True, slots=True)
class _Floats:
    """An output of floating-point numbers, with the samples of each batch along the first axis."""

    name: str
    expected: Sequence[Array]
    actual: Sequence[Array]
    sizes: Sequence[int]
    tolerance: float

    def finding(self, rounding: Rounding) -> Finding:
        """Return the numbers, and the first condition that does not hold."""
        samples = _samples(self.expected)
        spreads = np.ptp(samples, axis=0)
        spread = float(spreads.max(initial=0.0))
        size = max(float(np.abs(batch).max(initial=0.0)) for batch in self.expected)
        varies = spread > SMALLEST_SPREAD * size
        # If nothing varies, errors can only be compared with the magnitude of the outputs.
        scale = spread if varies else size
        comparisons = tuple(
            self._compare(number, spread, scale, self._mean(samples), varies=varies)
            for number in range(len(self.expected))
        )
        doubt = None
        for number, numbers in enumerate(comparisons):
            problem = _problem(numbers, scale, self.tolerance)
            if problem is None:
                same = self.expected[number].shape[1:] == samples.shape[1:]
                small = small_columns(
                    spreads if same else None,
                    self.expected[number],
                    self.actual[number],
                    self.tolerance,
                    partial(rounding, number),
                )
                problem = small.problem and _where(numbers) + small.problem
                doubt = doubt or (small.doubt and f"the output `{self.name}` {small.doubt}")
                varies = varies or small.varies
            if problem:
                return Finding(comparisons, varies, problem, number)
        return Finding(comparisons, varies, doubt=doubt)

    def _compare(
        self, number: int, spread: float, scale: float, mean: Array, *, varies: bool
    ) -> Comparison:
        ours, theirs = self.expected[number], self.actual[number]
        largest = float(np.abs(ours - theirs).max(initial=0.0))
        tie = _TIE * self.tolerance * scale
        return Comparison(
            output=self.name,
            batch_size=self.sizes[number],
            largest_error=largest,
            spread=spread,
            error=largest / spread if spread else float("inf"),
            norm_ratio=_norm_ratio(ours - mean, theirs - mean, spread) if varies else 1.0,
            argmax_agreement=_agreement(ours, theirs, tie) if ours.ndim == 2 else None,
        )

    def _mean(self, samples: Array) -> Array:
        """Return the mean sample, or the mean value if the samples differ in shape."""
        same = all(batch.shape[1:] == samples.shape[1:] for batch in self.expected)
        return np.asarray(samples.mean(axis=0) if same else samples.mean())


def _where(numbers: Comparison) -> str:
    return f"The output `{numbers.output}` at batch size {numbers.batch_size} "


def _problem(numbers: Comparison, scale: float, tolerance: float) -> str | None:
    """Return the condition that does not hold for a batch, or `None`."""
    if numbers.largest_error > tolerance * scale:
        fraction = numbers.largest_error / scale if scale else float("inf")
        return (
            f"{_where(numbers)}differs by up to {numbers.largest_error:.3g} between the file and "
            f"the model, which is {fraction:.3g} of its spread over the samples ({scale:.3g}); "
            f"allowed is {tolerance:.3g}."
        )
    if abs(numbers.norm_ratio - 1) > tolerance:
        return (
            f"{_where(numbers)}has {numbers.norm_ratio:.5g} times the norm in the file that it has "
            f"in the model; allowed is a difference of {tolerance:.3g}."
        )
    if numbers.argmax_agreement is not None and numbers.argmax_agreement < 1:
        return (
            f"{_where(numbers)}has its largest value at a different index than in the model for "
            f"{1 - numbers.argmax_agreement:.1%} of the samples."
        )
    return None


def _norm_ratio(ours: Array, theirs: Array, spread: float) -> float:
    norm = float(np.linalg.norm(ours))
    # For a sample close to the mean, a ratio of norms is meaningless.
    return 1 + (float(np.linalg.norm(theirs)) - norm) / max(norm, spread)


def _agreement(ours: Array, theirs: Array, tie: float) -> float:
    if not ours.size:
        return 1.0
    rows = np.arange(len(ours))
    lead = ours.max(axis=1) - ours[rows, theirs.argmax(axis=1)]
    return float((lead <= tie).mean())


def _samples(batches: Sequence[Array]) -> Array:
    """Return the samples of all batches whose samples have the most frequent shape."""
    groups: dict[tuple[int, ...], list[Array]] = {}
    for batch in batches:
        if batch.size:
            groups.setdefault(batch.shape[1:], []).append(batch)
    largest = max(groups.values(), key=lambda group: sum(map(len, group)))
    return np.concatenate(largest)
