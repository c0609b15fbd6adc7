"""Predictions of rows of tokens, cut to the length of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._forward.batch import WeightedBatch, split
from finetunelib._typing import Batch
from finetunelib.errors import InvalidArgumentError


def targets_of(batch: Batch) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch.

    Raises:
        InvalidTypeError: If the batch has no targets.
        InvalidArgumentError: If its samples have weights.
    """
    if isinstance(batch, WeightedBatch):
        raise InvalidArgumentError(
            "`TokenTask` counts each token equally, so `sample_weight` has no effect in it. Leave "
            "it out, or set the targets of rows that must not count to `ignore_index`."
        )
    return split(batch)


def targets_in(batch: Batch) -> Tensor | None:
    """Return the targets of a batch that may lack them."""
    if isinstance(batch, Mapping):
        targets = batch.get("labels")
    else:
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    return targets if isinstance(targets, Tensor) else None


def cut_rows(
    logits: Tensor, inputs: Any, targets: Tensor | None, ignored: int, *, decoder: bool
) -> list[Tensor]:
    """Return the logits of each row without its padding.

    The attention mask says which positions are padding, on either side. Without one, the ignored
    targets at the end of a row do, and without targets no position is.

    Args:
        logits: `(batch, tokens, classes)`.
        inputs: The inputs of the batch.
        targets: The targets, if there are any.
        ignored: The index of the targets that do not count.
        decoder: Whether the logits are those of a decoder, which has a mask of its own.

    Returns:
        For each row a tensor `(length, classes)`.
    """
    mask = (
        inputs.get("decoder_attention_mask" if decoder else "attention_mask")
        if isinstance(inputs, Mapping)
        else None
    )
    shape = logits.shape[:2]
    if isinstance(mask, Tensor) and mask.shape == shape:
        kept = mask != 0
    elif targets is not None and targets.shape == shape:
        counted = (targets != ignored).int()
        # 1 up to the last counted target of a row.
        kept = counted.flip(1).cumsum(1).flip(1) > 0
    else:
        return list(logits.unbind(0))
    return [row[where] for row, where in zip(logits, kept.to(torch.bool), strict=True)]
