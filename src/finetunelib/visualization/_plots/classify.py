"""One pass of a classifier over labelled data, for the pictures of its predictions.

What is kept of the batches is the pictures' business; here nothing is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_at_least, check_model, uninitialized
from finetunelib._forward.batch import call, describe, split
from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib._typing import Batch
from finetunelib.data._batch import first_of, to_device
from finetunelib.data._batches import Data
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import (
    DataError,
    InvalidArgumentError,
    InvalidTargetError,
    InvalidTypeError,
)
from finetunelib.training._tasks.first_batch import dry_run

#: The target that cross-entropy passes over.
_IGNORED = nn.CrossEntropyLoss().ignore_index


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model said of one batch, on the CPU; samples without a label are left out.

    Attributes:
        inputs: The batch's inputs as the data holds them, all of them.
        rows: Which rows of the inputs the other attributes speak of, `(n,)`.
        targets: Their labels, `(n,)` int64.
        predicted: The classes that the model says, `(n,)` int64.
        confidence: The probabilities that it gives them, `(n,)` float32.
        start: How many samples came before this batch.
    """

    inputs: Any  # Any: a batch has whatever structure the model understands.
    rows: Tensor
    targets: Tensor
    predicted: Tensor
    confidence: Tensor
    start: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A pass that has begun: the number of classes is known, the batches are yet to be read."""

    classes: int
    first_inputs: Any  # Any: a batch has whatever structure the model understands.
    batches: Iterator[Judged]


@contextlib.contextmanager
def judging(
    model: nn.Module, data: Data, *, batch_size: int, num_workers: int
) -> Iterator[Judgement]:
    """Apply a classifier to labelled data within the block, and leave it as it was.

    Modes and random states are put back; the model stays on its device, where batches are sent.

    Raises:
        InvalidTypeError: The model is none, or the data is of no known form.
        EmptyDataError: There is no sample.
        InvalidArgumentError: A size makes no sense, or the model has no weights yet.
        InvalidInputError: The model cannot take the inputs.
        InvalidTargetError: The targets are no class indices of this model.
        DataError: The model returns no row of numbers for each sample, as the pass goes on.
    """
    check_model(model)
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, num_workers=num_workers)
    device = _device_of(model)
    batches = as_batches(data, name="data", batch_size=batch_size, num_workers=num_workers, seed=0)
    with random_state_preserved(), evaluating(model):
        in_order = batches.in_order()
        first = first_of(in_order, "data")
        inputs, targets = _split(first)
        logits = _first_outputs(model, to_device(first, device))
        _check_targets(targets, logits)
        judge = _Judge(model, device, _sums_to_one(logits))
        yield Judgement(logits.shape[1], inputs, judge.read(chain([first], in_order)))


def check_class_names(class_names: Sequence[str] | None) -> None:
    """Raise when names of classes are no sequence of strings.

    Raises:
        InvalidTypeError: They are not.
    """
    if class_names is None:
        return
    if isinstance(class_names, str | bytes) or not isinstance(class_names, Sequence):
        raise InvalidTypeError(
            "`class_names` must be a sequence of strings, one a class in the order of the model's "
            f"outputs, but is {describe(class_names)}."
        )
    for number, name in enumerate(class_names):
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"`class_names[{number}]` must be a string, but is {name!r} "
                f"({type(name).__name__})."
            )


def names_of(class_names: Sequence[str] | None, classes: int) -> list[str]:
    """Return a name for each class: its number where there is no other.

    Raises:
        InvalidArgumentError: There are more or fewer names than classes.
    """
    if class_names is None:
        return [str(number) for number in range(classes)]
    if len(class_names) != classes:
        raise InvalidArgumentError(
            f"`class_names` must hold {classes} names, one for each output of the model, but holds "
            f"{len(class_names)}."
        )
    return list(class_names)


class _Judge:
    """A model, where it is, and how its outputs are to be read."""

    def __init__(self, model: nn.Module, device: torch.device, probabilities: bool) -> None:
        self._model = model
        self._device = device
        self._probabilities = probabilities

    def read(self, batches: Iterator[Batch]) -> Iterator[Judged]:
        """Yield what the model says of each batch."""
        start = 0
        for batch in batches:
            inputs, targets = _split(batch)
            outputs = call(self._model, to_device(inputs, self._device)).float().cpu()
            _check_targets(targets, outputs)
            yield self._judged(inputs, targets.cpu().long(), outputs, start)
            start += len(targets)

    def _judged(self, inputs: Any, targets: Tensor, outputs: Tensor, start: int) -> Judged:
        rows = (targets != _IGNORED).nonzero().flatten()
        outputs, targets = outputs[rows], targets[rows]
        shares = outputs if self._probabilities else outputs.softmax(1)
        finite = shares.isfinite().all(1)
        if not finite.all():
            bad = int(rows[~finite][0])
            raise DataError(
                f"The model's outputs for sample {start + bad} are not finite: "
                f"{outputs[~finite][0][:4].tolist()}. Look for nan in its inputs, or in the "
                "model's weights."
            )
        confidence, predicted = shares.max(1)
        return Judged(inputs, rows, targets, predicted, confidence, start)


def _device_of(model: nn.Module) -> torch.device:
    lazy = uninitialized(model)
    if lazy is not None:
        raise InvalidArgumentError(lazy)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        raise InvalidArgumentError(
            "`model` is on the meta device, where nothing is computed. Load its weights on a real "
            "one."
        )
    return device


def _split(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch, as a training finds them."""
    try:
        return split(batch)
    except InvalidTypeError:
        # A training's way out, a task of the user's own, is none here.
        raise InvalidTypeError(
            "A batch of `data` must be a pair (inputs, targets), or a mapping with the targets "
            f"under `labels`, but is {describe(batch)}."
        ) from None


def _first_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs for the first batch, or explain why they are not those of a classifier."""
    try:
        outputs = dry_run(model, batch, "data")
    except InvalidTypeError as error:
        raise InvalidTypeError(
            "`model` must return a tensor of logits (batch, classes), or an object that has them "
            "in `.logits`. Pass a module that calls your model and returns them."
        ) from error
    if outputs.dim() != 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
        raise DataError(
            "`model` must return logits of shape (batch, classes) for at least two classes, but "
            f"returns {outputs.dtype} of shape {tuple(outputs.shape)}. Pass a module that calls "
            "your model and returns them; a single logit `z` of two classes is "
            "`torch.cat([-z, z], dim=1) / 2`."
        )
    return outputs.float().cpu()


def _sums_to_one(outputs: Tensor) -> bool:
    """Return whether a model ends in a softmax: a second one would flatten its confidence."""
    sums = outputs.sum(1)
    return bool((outputs >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def _check_targets(targets: object, outputs: Tensor) -> None:
    if not isinstance(targets, Tensor):
        raise InvalidTypeError(
            f"The targets of `data` must be a tensor, but are {describe(targets)}."
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidTargetError(
            f"The targets of `data` must be class indices, but are {targets.dtype}. Convert "
            "indices with `.long()`, and one-hot rows or probabilities with `.argmax(1)`."
        )
    rows, classes = outputs.shape
    if tuple(targets.shape) != (rows,):
        raise InvalidTargetError(
            f"The targets of `data` must have the shape {(rows,)}, one class index for each row "
            f"of logits, but have {tuple(targets.shape)}."
        )
    counted = targets[targets != _IGNORED]
    if len(counted) and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        raise InvalidTargetError(
            f"The targets of `data` must be in 0 to {classes - 1}, since the model has {classes} "
            f"outputs, but they range from {int(counted.min())} to {int(counted.max())}."
        )
