"""The curve of a range test: smoothing it, when to stop, and which learning rate to suggest."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

#: The weight of the past in the running mean that decides when to stop.
_PAST = 0.8

#: The standard deviation of the smoothing, in powers of ten of the learning rate.
_WIDTH = 0.15

#: A descent counts if it is this many times the uncertainty of the smoothed losses.
_LEAST_DESCENT = 4.0

#: The fraction of the steps that show the loss before training, and the least number of them.
_START, _LEAST_START = 0.1, 4


class Divergence:
    """Notices that the loss has risen above its start by more than it had fallen before."""

    def __init__(self, steps: int) -> None:
        self._first = max(_LEAST_START, round(_START * steps))
        self._losses: list[float] = []
        self._mean = 0.0
        self._best = math.inf

    def add(self, loss: float) -> bool:
        """Add the loss of a step, and return whether the losses diverge."""
        self._losses.append(loss)
        self._mean = _PAST * self._mean + (1 - _PAST) * loss
        mean = self._mean / (1 - _PAST ** len(self._losses))
        self._best = min(self._best, mean)
        if len(self._losses) <= self._first:
            return False
        start = self._losses[: self._first]
        level, noise = statistics.fmean(start), noise_of(start)
        return mean - level > max(level - self._best, 0.5 * abs(level), 5 * noise)


def smooth(lrs: Sequence[float], losses: Sequence[float]) -> list[float]:
    """Return means of the losses over neighbors, weighted by a Gaussian of log10(lr).

    Unlike a running mean, they do not lag behind the losses.
    """
    places = [math.log10(lr) for lr in lrs]
    smoothed = []
    for place in places:
        weights = [math.exp(-0.5 * ((other - place) / _WIDTH) ** 2) for other in places]
        total = math.fsum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        smoothed.append(total / math.fsum(weights))
    return smoothed


def noise_of(losses: Sequence[float]) -> float:
    """Return the standard deviation of the losses around their trend, from their differences."""
    steps = [after - before for before, after in itertools.pairwise(losses)]
    return math.sqrt(statistics.fmean(step * step for step in steps) / 2) if steps else 0.0


def suggest(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]
) -> tuple[float | None, str]:
    """Return a learning rate and how it was found, or `None` and why there is none."""
    first = max(_LEAST_START, round(_START * len(lrs)))
    if len(lrs) < 2 * first:
        return None, "The test ended after too few steps to show a descent. Lower `min_lr`."
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    start = statistics.fmean(losses[:first])
    before = losses[: max(lowest, first)]
    # The number of losses that a smoothed one is a mean over.
    per_decade = (len(lrs) - 1) / math.log10(lrs[-1] / lrs[0])
    neighbors = max(1.0, per_decade * _WIDTH * 2 * math.sqrt(math.pi))
    uncertainty = noise_of(before) * math.sqrt(1 / first + 1 / neighbors)
    descent = start - smoothed[lowest]
    if descent <= max(_LEAST_DESCENT * uncertainty, 1e-3 * abs(start)):
        return None, (
            f"The loss does not fall clearly below its start, {start:.4g}: the lowest smoothed "
            f"loss is {smoothed[lowest]:.4g}. Use more steps or larger batches, or check that the "
            "model learns at all."
        )
    steepest = min(range(lowest), key=lambda n: smoothed[n + 1] - smoothed[n])
    if lowest == len(lrs) - 1:
        return lrs[steepest], (
            "It is where the smoothed loss falls fastest. The loss still falls at the last "
            "learning rate, so a larger `max_lr` may suggest a larger one."
        )
    return lrs[steepest], "It is where the smoothed loss falls fastest."
