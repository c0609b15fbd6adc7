"""The metric that the Trainer measures by default."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from finetunelib._arguments import check_at_least
from finetunelib._public import public
from finetunelib.errors import InvalidArgumentError
from finetunelib.training._tasks.class_targets import IGNORED, count_targets


@public("finetunelib.training")
class Accuracy:
    """The fraction of samples whose target class is among the `top_k` largest logits.

    Targets of -100, which cross-entropy ignores, are not counted.

    Args:
        top_k: The number of largest logits to search for the target class, at least 1.

    Raises:
        InvalidArgumentError: If `top_k` is below 1.
        InvalidTypeError: If `top_k` is not a whole number.

    Example:
        >>> import torch
        >>> from finetunelib.training import Accuracy
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        0.5
    """

    higher_is_better = True

    def __init__(self, top_k: int = 1) -> None:
        check_at_least(1, top_k=top_k)
        self.top_k: int = top_k
        self._hits: Tensor | int = 0
        self._samples: Tensor | int = 0

    def __repr__(self) -> str:
        return f"Accuracy(top_k={self.top_k})"

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            outputs: Logits, `(batch, classes, ...)`.
            targets: Class indices, `(batch, ...)`, integer.

        Raises:
            InvalidArgumentError: If there are fewer than `top_k` classes.
        """
        if self.top_k == 1:
            hits = outputs.argmax(1) == targets
        else:
            if outputs.shape[1] < self.top_k:
                raise InvalidArgumentError(
                    f"`top_k` is {self.top_k}, but the model has {outputs.shape[1]} classes."
                )
            largest = outputs.topk(self.top_k, dim=1).indices
            hits = (largest == targets.unsqueeze(1)).any(1)
        # The sum stays on the device: reading it here would synchronize at every step.
        self._hits = self._hits + hits.sum()
        self._samples = self._samples + count_targets(targets, IGNORED)

    def compute(self) -> float:
        """Return the fraction, in [0, 1], or nan if no sample was counted."""
        samples = int(self._samples)
        return float(self._hits) / samples if samples else float("nan")

    def reset(self) -> None:
        """Start over."""
        self._hits = 0
        self._samples = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counts so far."""
        return {"hits": int(self._hits), "samples": int(self._samples)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counts that `state_dict` returned."""
        self._hits, self._samples = state["hits"], state["samples"]
