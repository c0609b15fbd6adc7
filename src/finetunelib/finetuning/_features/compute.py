"""One pass of a frozen backbone over data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from finetunelib._forward.batch import arguments_of, inputs_of
from finetunelib._forward.inputs import Inputs
from finetunelib._messages import readable_size
from finetunelib._progress import Progress
from finetunelib._typing import Batch
from finetunelib.data._batch import to_device
from finetunelib.data._batches import Batches
from finetunelib.errors import DataError
from finetunelib.finetuning._features.split import NotCacheableError, Split
from finetunelib.finetuning._features.storage import room_for

#: Returns the context in which a model runs, such as that of mixed precision.
Autocast = Callable[[], AbstractContextManager[object]]


def compute_features(
    split: Split,
    batches: Batches,
    device: torch.device,
    progress: Progress,
    autocast: Autocast = contextlib.nullcontext,
    *,
    full: bool = True,
) -> Tensor:
    """Return what the head receives for each sample, `(samples, ...)`, in the order of the data.

    Args:
        split: The model and its head, in the modes to use.
        batches: The data.
        device: The device of the model, where the features stay.
        progress: Shows how far the pass is.
        autocast: Returns the context in which the model runs.
        full: Whether a short last batch is filled up with samples of the one before, and each batch
            copied. All features are then computed in batches of the same size and alignment, as
            those of training have; others can differ in rounding.

    Raises:
        NotCacheableError: If the features differ in shape, or do not have one row per sample.
    """
    samples = batches.rows()
    if samples is None:
        raise NotCacheableError(
            "The features cannot be cached: the number of samples in the data is unknown."
        )
    progress.start("caching features", batches.steps)
    try:
        with autocast():
            features = _collect(split, batches, samples, device, progress, full=full)
    except BaseException:
        progress.abort()
        raise
    size = readable_size(features.numel() * features.element_size())
    progress.finish(f"cached the features of {samples:,} samples for `{split.name}` ({size})")
    return features


def _collect(
    split: Split,
    batches: Batches,
    samples: int,
    device: torch.device,
    progress: Progress,
    *,
    full: bool,
) -> Tensor:
    features: Tensor | None = None
    previous: Inputs | None = None
    filled = 0
    for batch in batches.in_order():
        inputs = batch_inputs(batch, device)
        whole = _filled_up(inputs, previous).map(Tensor.clone) if full else inputs
        part = split.features(whole)
        part, previous = part[-_rows(inputs) :], inputs
        if features is None:
            features = room_for((samples, *part.shape[1:]), part.dtype, part.device)
        if part.shape[1:] != features.shape[1:] or filled + len(part) > samples:
            raise NotCacheableError(
                "The features cannot be cached: the samples of a batch have features of shape "
                f"{tuple(part.shape[1:])}, earlier ones {tuple(features.shape[1:])}."
            )
        features[filled : filled + len(part)] = part
        filled += len(part)
        progress.advance()
    if features is None or filled != samples:
        raise DataError(f"The data announces {samples} samples, but yielded {filled}.")
    return features


def _filled_up(inputs: Inputs, previous: Inputs | None) -> Inputs:
    """Return a batch with samples of the previous one in front, if it is shorter."""
    missing = 0 if previous is None else _rows(previous) - _rows(inputs)
    if previous is None or missing <= 0:
        return inputs
    pairs = zip(previous.tensors, inputs.tensors, strict=True)
    return inputs.with_tensors([torch.cat([one[-missing:], other]) for one, other in pairs])


def _rows(inputs: Inputs) -> int:
    return len(inputs.tensors[0])


def batch_inputs(batch: Batch, device: torch.device) -> Inputs:
    """Return the inputs of a batch on a device, as arguments of the model.

    Raises:
        NotCacheableError: If they are not tensors.
    """
    inputs = arguments_of(inputs_of(to_device(batch, device)))
    if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in inputs.tensors):
        raise NotCacheableError(
            "The features cannot be cached: the inputs are not tensors `(batch, ...)`."
        )
    return inputs
