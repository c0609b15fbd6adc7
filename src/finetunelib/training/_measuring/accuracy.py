"""The metric that the Trainer measures by default."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from finetunelib._arguments import check_at_least, check_whole
from finetunelib._public import public
from finetunelib.errors import InvalidArgumentError, InvalidTargetError
from finetunelib.training._measuring.hits import HitCount
from finetunelib.training._measuring.means import as_number, precise_sum
from finetunelib.training._tasks.class_targets import count_targets
from finetunelib.training._tasks.convention import Convention

#: How far the probabilities of a sample may be from a sum of 1.
_TOLERANCE = 1e-3

#: The number of outputs that are not all between 0 and 1 if they are logits.
_ENOUGH = 16


@public("finetunelib.training")
class Accuracy:
    """The fraction of targets that are predicted.

    What outputs and targets mean follows the loss of the Trainer:

    - Logits `(batch, classes, ...)` and class indices `(batch, ...)`: the target class is among the
      `top_k` largest logits. Logits `(batch, ..., classes)` work too, unless both axes fit. Targets
      of the index that the loss ignores are not counted.
    - Logits and probabilities of the same shape, with cross-entropy: the classes with the largest
      values are compared.
    - With a `TokenTask`, logits `(batch, tokens, classes)`.
    - One output for each sample, `(batch,)` or `(batch, 1)`, and targets from 0 to 1: class 1 is
      predicted above the threshold, and is the target above 0.5.
    - Several labels `(batch, labels)`, with a binary cross-entropy: the same for each label.

    Args:
        top_k: The number of largest logits to search for the target class, at least 1.
        ignore_index: The class index of targets that are not counted. `None` is that of the loss,
            or -100.
        multilabel: Whether targets of the shape of the outputs are several labels or the
            probabilities of classes. `None` follows the loss.
        threshold: The output above which a label or class 1 is predicted: 0 for logits, 0.5 for
            probabilities. `None` follows the loss; without one it is 0.

    Raises:
        InvalidArgumentError: If `top_k` is below 1.
        InvalidTypeError: If `top_k` or `ignore_index` is not a whole number.

    Example:
        >>> import torch
        >>> from finetunelib.training import Accuracy
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        0.5
    """

    higher_is_better = True

    def __init__(
        self,
        top_k: int = 1,
        *,
        ignore_index: int | None = None,
        multilabel: bool | None = None,
        threshold: float | None = None,
    ) -> None:
        check_at_least(1, top_k=top_k)
        if ignore_index is not None:
            check_whole(ignore_index=ignore_index)
        self.top_k: int = top_k
        self.ignore_index: int | None = ignore_index
        self.multilabel: bool | None = multilabel
        self.threshold: float | None = threshold
        self._convention = Convention()
        self._hits = HitCount()
        self._samples: Tensor | float = 0
        self._weight: Tensor | None = None
        self._is_first = True

    def __repr__(self) -> str:
        options = {
            "ignore_index": self.ignore_index,
            "multilabel": self.multilabel,
            "threshold": self.threshold,
        }
        given = (f", {name}={value}" for name, value in options.items() if value is not None)
        return f"Accuracy(top_k={self.top_k}{''.join(given)})"

    def update(self, outputs: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            outputs: Logits, `(batch, classes, ...)`, or one output for each target.
            targets: Class indices, `(batch, ...)`, integer, or values from 0 to 1 of the shape of
                the outputs.
            sample_weight: How much each sample counts, `(batch,)`. `None` counts all equally.

        Raises:
            InvalidArgumentError: If there are fewer than `top_k` classes, or it is unknown what
                the targets mean.
            InvalidTargetError: If the targets do not fit the outputs.
        """
        self._weight = sample_weight
        if self._convention.of_tokens:
            self._add_tokens(outputs, targets)
            self._is_first = False
            return
        shape, wanted = outputs.shape, targets.shape
        if wanted and len(shape) == len(wanted) + 1 and shape[0] == wanted[0]:
            logits = outputs if len(wanted) == 1 else _classes_first(outputs, targets)
            if logits is not None and logits.shape[1] > 1:
                self._add_classes(logits, targets)
                self._is_first = False
                return
            outputs = outputs if logits is None else logits.squeeze(1)
        if targets.numel() == outputs.numel() and _is_single(outputs) and _is_single(targets):
            self._add_labels(outputs, targets.reshape(outputs.shape))
        elif outputs.shape != targets.shape or outputs.dim() < 2:
            raise InvalidTargetError(_mismatch(outputs, targets))
        elif self._are_labels(targets):
            self._add_labels(outputs, targets)
        else:
            hits = self._class_hits(outputs, targets.argmax(1))
            self._count(hits, torch.ones_like(hits), hits.numel())
        self._is_first = False

    def compute(self) -> float:
        """Return the fraction, in [0, 1], or nan if no target was counted."""
        samples = as_number(self._samples)
        return self._hits.read() / samples if samples else float("nan")

    def reset(self) -> None:
        """Start over."""
        self._hits = HitCount()
        self._samples = 0
        self._is_first = True

    def state_dict(self) -> dict[str, float]:
        """Return the counts so far."""
        return {"hits": self._hits.read(), "samples": as_number(self._samples)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the counts that `state_dict` returned."""
        self._hits, self._samples = HitCount(state["hits"]), state["samples"]

    def _add_counted(self, outputs: Tensor, targets: Tensor, counted: object) -> bool:
        """Add a batch of which the loss has counted the targets, if that is all there is to know.

        It takes half the time of `update`, at every step of most classifiers.

        Args:
            outputs: The outputs, which may have a graph.
            targets: The targets.
            counted: The weight of the loss. If it is a whole number, none of the targets is
                ignored, or they are not class indices.

        Returns:
            Whether the batch was added.
        """
        if not (isinstance(counted, int) and self._is_simple and outputs.dim() == 2):
            return False
        rows, classes = outputs.shape
        if targets.dtype != torch.int64 or targets.shape != (rows,) or classes < 2:
            return False
        self._hits.add(outputs.argmax(1) == targets)
        self._samples = self._samples + counted
        self._is_first = False
        return True

    def _accepts(self, outputs: object, targets: object) -> bool:
        """Return whether it is known, without counting, that a first batch can be added.

        So it is for the logits and the class indices of most classifiers.
        """
        if type(outputs) is not Tensor or type(targets) is not Tensor or self.top_k > 1:
            return False
        rows = outputs.shape[0] if outputs.dim() == 2 and outputs.is_floating_point() else 0
        fits = targets.dtype == torch.int64 and targets.shape == (rows,)
        return fits and rows > 0 and outputs.shape[1] > 1

    def _copy(self) -> Accuracy:
        """Return a copy with its own counts, in a fraction of the time of `copy.deepcopy`."""
        other = copy.copy(self)
        other._hits = self._hits.copy()  # noqa: SLF001 - of the same class
        return other

    @property
    def _is_simple(self) -> bool:
        return self.top_k == 1 and self.ignore_index is None and self._convention.ignored < 0

    def _follow(self, convention: Convention) -> None:
        """Take what was not said from the loss."""
        self._convention = convention

    @property
    def _ignored(self) -> int:
        return self._convention.ignored if self.ignore_index is None else self.ignore_index

    def _add_classes(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits `(batch, classes, ...)` and class indices `(batch, ...)`."""
        hits, ignored = self._class_hits(logits, targets), self._ignored
        if 0 <= ignored < logits.shape[1]:  # Otherwise it is never the predicted class.
            hits = hits & (targets != ignored)
        self._count_targets(hits, targets)

    def _add_tokens(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits `(batch, tokens, classes)` or predicted classes, and the targets of tokens."""
        if outputs.shape != targets.shape:
            self._add_classes(outputs.movedim(-1, 1), targets)
            return
        if self.top_k > 1:
            raise InvalidArgumentError(
                f"`top_k` is {self.top_k}, but only the most probable class of each token is known,"
                " since the logits are computed in chunks. Leave out `chunk_size`, or `top_k`."
            )
        hits = (outputs == targets) & (targets != self._ignored)
        self._count_targets(hits, targets)

    def _class_hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.top_k == 1:
            return logits.argmax(1) == targets
        if logits.shape[1] < self.top_k:
            raise InvalidArgumentError(
                f"`top_k` is {self.top_k}, but the model has {logits.shape[1]} classes."
            )
        largest = logits.topk(self.top_k, dim=1).indices
        return (largest == targets.unsqueeze(1)).any(1)

    def _add_labels(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs and targets of the same shape, each of which is true or false."""
        if self.top_k > 1:
            raise InvalidArgumentError(
                f"`top_k` is {self.top_k}, but the targets of shape {tuple(targets.shape)} are "
                "true or false for each output."
            )
        threshold = self._threshold_for(outputs)
        counted = torch.ones_like(targets, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = targets != self.ignore_index
        # On an accelerator only the first batch is read, which waits for the device.
        if targets.is_cpu or self._is_first:
            _check_between_0_and_1(targets[counted])
        hits = ((outputs > threshold) == (targets > 0.5)) & counted
        self._count(hits, counted, counted.numel() if self.ignore_index is None else None)

    def _count_targets(self, hits: Tensor, targets: Tensor) -> None:
        """Add hits of class indices, of which those of the ignored index do not count."""
        if self._weight is None:
            self._count(hits, hits, count_targets(targets, self._ignored))
        else:
            self._count(hits, targets != self._ignored)

    def _count(self, hits: Tensor, counted: Tensor, samples: Tensor | int | None = None) -> None:
        """Add hits.

        Args:
            hits: Whether each target is predicted, `(batch, ...)`.
            counted: Whether each target counts.
            samples: The number of targets that count, if it is known.
        """
        # The sums stay on the device: reading them here would synchronize at every step.
        if self._weight is not None:
            weight = self._weight.view(-1, *[1] * (hits.dim() - 1))
            self._hits.add_sum(precise_sum(hits * weight))
            self._samples = self._samples + precise_sum(counted * weight)
            return
        self._hits.add(hits)
        self._samples = self._samples + (counted.sum() if samples is None else samples)

    def _threshold_for(self, outputs: Tensor) -> float:
        convention = self._convention
        if self.threshold is not None:
            return self.threshold
        if convention.threshold is not None:
            return convention.threshold
        if convention.regression:
            raise InvalidArgumentError(
                "`Accuracy` of one output needs a threshold, since the loss is that of a "
                "regression. Pass Accuracy(threshold=0.5), or a loss such as BCEWithLogitsLoss."
            )
        # Some logits of a larger batch are below 0 or above 1.
        readable = self._is_first and outputs.numel() >= _ENOUGH
        if readable and bool(((outputs >= 0) & (outputs <= 1)).all()):
            raise InvalidArgumentError(
                "`Accuracy` cannot tell if the outputs, which are all between 0 and 1, are logits "
                "or probabilities. Pass Accuracy(threshold=0) for logits, Accuracy(threshold=0.5) "
                "for probabilities."
            )
        return 0.0

    def _are_labels(self, targets: Tensor) -> bool:
        """Return whether targets of the shape of the outputs are several labels."""
        if self.multilabel is not None:
            return self.multilabel
        if self._convention.kind is not None:
            return self._convention.kind == "labels"
        if self._is_first:  # It is read, which waits for an accelerator.
            whole = bool(((targets == 0) | (targets == 1)).all())
            sums = targets.sum(1, dtype=torch.float64)
            ones = bool((sums - 1).abs().max() < _TOLERANCE)
            if whole == ones:
                raise InvalidArgumentError(
                    f"`Accuracy` cannot tell if targets of shape {tuple(targets.shape)} are "
                    "several labels or the probabilities of classes. Pass "
                    "Accuracy(multilabel=True) or Accuracy(multilabel=False)."
                )
            self._convention = replace(self._convention, kind="labels" if whole else "classes")
        return self._convention.kind == "labels"


def _classes_first(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return logits with the classes on axis 1, or `None` if the shapes do not fit."""
    if outputs.shape[2:] == targets.shape[1:]:
        return outputs
    return outputs.movedim(-1, 1) if outputs.shape[1:-1] == targets.shape[1:] else None


def _is_single(values: Tensor) -> bool:
    """Return whether there is one value for each sample: `(batch,)` or `(batch, 1, ...)`."""
    return values.dim() == 1 or values.shape[1] == 1


def _check_between_0_and_1(targets: Tensor) -> None:
    if len(targets) and not (float(targets.min()) >= 0 and float(targets.max()) <= 1):
        raise InvalidTargetError(
            "`Accuracy` of one output for each target needs targets from 0 to 1, got values from "
            f"{float(targets.min()):g} to {float(targets.max()):g}. Use another metric for numbers."
        )


def _mismatch(outputs: Tensor, targets: Tensor) -> str:
    text = (
        f"`Accuracy` cannot compare outputs of shape {tuple(outputs.shape)} with targets of shape "
        f"{tuple(targets.shape)}. It needs logits (batch, classes, ...) and class indices "
        "(batch, ...), or targets of the shape of the outputs."
    )
    if targets.dim() > 1 and targets.shape[1] == 1 and len(targets) == len(outputs):
        return f"{text} Remove the axis of the targets with `.squeeze(1)`."
    return text
