"""Functions of one batch: the first one, its device, its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib._typing import Batch
from finetunelib.errors import EmptyDataError


def first_of(batches: Iterator[Batch], name: str) -> Batch:
    """Return the first batch.

    Raises:
        EmptyDataError: If there is none.
    """
    for batch in batches:
        return batch
    raise EmptyDataError(
        f"`{name}` yielded no batch. An iterator is empty after it has been read once; pass a "
        "list or a DataLoader to read it again."
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch of the same structure, with all of its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, (tuple, list)):
        parts = [
            part if isinstance(part, Tensor) and part.device == device else to_device(part, device)
            for part in batch
        ]
        if type(batch) is tuple:
            return tuple(parts)
        # The constructor of a named tuple takes one argument per part.
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    return batch


def length_of(batch: Any) -> int:
    """Return the number of samples in a batch: the rows of its first tensor, or 0."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 0
    if not isinstance(batch, (tuple, list)):
        batch = batch.values() if isinstance(batch, Mapping) else ()
    for part in batch:
        if length := length_of(part):
            return length
    return 0
