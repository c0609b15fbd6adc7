"""Runs a classifier over labelled data, batch by batch, for the plots of its predictions.

Nothing is kept here; each plot decides what to keep.
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
from finetunelib.training._tasks.class_targets import IGNORED, check_class_range
from finetunelib.training._tasks.first_batch import dry_run

#: How far from 1 the sums of a softmax may be, after rounding in half precision.
_SOFTMAX_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """The predictions for one batch, on the CPU, without samples that have no label.

    Attributes:
        inputs: The batch's inputs as the data returned them, with all samples.
        rows: The rows of `inputs` that the other attributes describe, `(n,)` int64.
        targets: The labels, `(n,)` int64.
        predicted: The predicted classes, `(n,)` int64.
        confidence: The probabilities of the predicted classes, `(n,)` float32.
        start: The number of samples before this batch.
    """

    inputs: Any  # Any: a batch has whatever structure the model understands.
    rows: Tensor
    targets: Tensor
    predicted: Tensor
    confidence: Tensor
    start: int


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for a dataset, whose batches are read on iteration.

    Attributes:
        classes: The number of classes.
        first_inputs: The inputs of the first batch.
        batches: The predictions, batch by batch.
    """

    classes: int
    first_inputs: Any  # Any: a batch has whatever structure the model understands.
    batches: Iterator[PredictedBatch]


@contextlib.contextmanager
def predicting(
    model: nn.Module, data: Data, *, batch_size: int, num_workers: int
) -> Iterator[Predictions]:
    """Run a classifier on labelled data within the block.

    Modes and random states are restored. Batches are sent to the model's device.

    Raises:
        InvalidTypeError: If `model` is not a module, or `data` has an unsupported type.
        EmptyDataError: If there are no samples.
        InvalidArgumentError: If a size is out of range, or the model has no weights yet.
        InvalidInputError: If the model does not accept the inputs.
        InvalidTargetError: If the targets are not class indices of this model.
        DataError: If the model does not return finite logits for each sample.
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
        classifier = _Classifier(model, device, returns_probabilities=_sums_to_one(logits))
        yield Predictions(logits.shape[1], inputs, classifier.predict(chain([first], in_order)))


def check_class_names(class_names: Sequence[str] | None) -> None:
    """Check that class names are a sequence of strings.

    Raises:
        InvalidTypeError: If they are not.
    """
    if class_names is None:
        return
    if isinstance(class_names, str | bytes) or not isinstance(class_names, Sequence):
        raise InvalidTypeError(
            "`class_names` must be a sequence of strings, one per output of the model, got "
            f"{describe(class_names)}."
        )
    for number, name in enumerate(class_names):
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"`class_names[{number}]` must be a string, got {name!r} ({type(name).__name__})."
            )


def class_labels(class_names: Sequence[str] | None, classes: int) -> list[str]:
    """Return a name for each class: the user's, or else its number.

    Raises:
        InvalidArgumentError: If the number of names differs from the number of classes.
    """
    if class_names is None:
        return [str(number) for number in range(classes)]
    if len(class_names) != classes:
        raise InvalidArgumentError(
            f"`class_names` must contain {classes} names, one per output of the model, got "
            f"{len(class_names)}."
        )
    return list(class_names)


class _Classifier:
    """A model, its device, and how its outputs become probabilities."""

    def __init__(
        self, model: nn.Module, device: torch.device, *, returns_probabilities: bool
    ) -> None:
        self._model = model
        self._device = device
        self._returns_probabilities = returns_probabilities

    def predict(self, batches: Iterator[Batch]) -> Iterator[PredictedBatch]:
        """Yield the predictions for each batch."""
        start = 0
        for batch in batches:
            inputs, targets = _split(batch)
            outputs = call(self._model, to_device(inputs, self._device)).float().cpu()
            _check_targets(targets, outputs)
            yield self._predicted(inputs, targets.cpu().long(), outputs, start)
            start += len(targets)

    def _predicted(
        self, inputs: Any, targets: Tensor, outputs: Tensor, start: int
    ) -> PredictedBatch:
        rows = (targets != IGNORED).nonzero().flatten()
        outputs, targets = outputs[rows], targets[rows]
        probabilities = outputs if self._returns_probabilities else outputs.softmax(1)
        finite = probabilities.isfinite().all(1)
        if not finite.all():
            bad = int(rows[~finite][0])
            raise DataError(
                f"The model's outputs for sample {start + bad} are not finite: "
                f"{outputs[~finite][0][:4].tolist()}. Check its inputs and the model's weights "
                "for nan."
            )
        confidence, predicted = probabilities.max(1)
        return PredictedBatch(inputs, rows, targets, predicted, confidence, start)


def _device_of(model: nn.Module) -> torch.device:
    lazy = uninitialized(model)
    if lazy is not None:
        raise InvalidArgumentError(lazy)
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        raise InvalidArgumentError(
            "`model` is on the meta device, which computes nothing. Load its weights on another "
            "device."
        )
    return device


def _split(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and targets of a batch."""
    try:
        return split(batch)
    except InvalidTypeError:
        # That message suggests a `task`, which plots do not have.
        raise InvalidTypeError(
            "A batch of `data` must be a pair (inputs, targets), or a mapping with the targets "
            f"under `labels`, got {describe(batch)}."
        ) from None


def _first_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs for the first batch.

    Raises:
        InvalidTypeError: If the model does not return a tensor.
        DataError: If the outputs are not those of a classifier.
    """
    try:
        outputs = dry_run(model, batch, "data")
    except InvalidTypeError as error:
        raise InvalidTypeError(
            "`model` must return a tensor of logits (batch, classes), or an object with these in "
            "`.logits`. Pass a module that calls your model and returns its logits."
        ) from error
    if outputs.dim() != 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
        raise DataError(
            "`model` must return logits of shape (batch, classes) for at least two classes, got "
            f"{outputs.dtype} of shape {tuple(outputs.shape)}. Pass a module that calls your "
            "model and returns its logits; if your model returns a single logit `z` of two "
            "classes, return `torch.cat([-z, z], dim=1) / 2`."
        )
    return outputs.float().cpu()


def _sums_to_one(outputs: Tensor) -> bool:
    """Return whether a model ends in a softmax, which must not be applied twice."""
    sums = outputs.sum(1)
    return bool(
        (outputs >= 0).all()
        and torch.allclose(sums, torch.ones_like(sums), atol=_SOFTMAX_TOLERANCE)
    )


def _check_targets(targets: object, outputs: Tensor) -> None:
    if not isinstance(targets, Tensor):
        raise InvalidTypeError(f"The targets of `data` must be a tensor, got {describe(targets)}.")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InvalidTargetError(
            f"The targets of `data` must be class indices, got {targets.dtype}. Convert indices "
            "with `.long()`, and one-hot rows or probabilities with `.argmax(1)`."
        )
    rows, classes = outputs.shape
    if tuple(targets.shape) != (rows,):
        raise InvalidTargetError(
            f"The targets of `data` must have the shape {(rows,)}, one class index for each row "
            f"of logits, got {tuple(targets.shape)}."
        )
    check_class_range(targets, classes, "data")
