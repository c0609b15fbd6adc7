"""The exponential of the mean loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

from finetunelib.training._measuring.means import Mean
from finetunelib.training._tasks.task import StepOutput


class Perplexity:
    """The exponential of the mean loss over all counted tokens, not the mean of exponentials.

    It is computed from the loss of a step, so the logits are not read again.
    """

    higher_is_better = False

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, outputs: object, targets: object) -> None:
        """Do nothing: `add` gets the loss."""

    def add(self, output: StepOutput) -> None:
        """Add the loss of one batch."""
        self._mean.add(output.loss, output.weight)

    def compute(self) -> float:
        """Return the perplexity, at least 1 for a cross-entropy, or nan if nothing counted."""
        try:
            return math.exp(self._mean.compute())
        except OverflowError:
            return math.inf

    def reset(self) -> None:
        """Start over."""
        self._mean = Mean()

    def state_dict(self) -> dict[str, float]:
        """Return the sum so far."""
        return self._mean.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the sum that `state_dict` returned."""
        self._mean.load_state_dict(state)
