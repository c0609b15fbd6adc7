"""Where a training runs, how batches get there, and how many samples they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetunelib.errors import InvalidArgumentError


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that a user named; `"auto"` is an accelerator where there is one.

    Raises:
        InvalidArgumentError: There is no such device, here or at all.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(
            f"`device` is {str(device)!r}, which cannot be used here: {reason} "
            'Pass "auto", "cpu" or a device of this machine.'
        ) from error
    return chosen


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor in it on `device`; its structure stays."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, (tuple, list)):
        parts = [to_device(part, device) for part in batch]
        # A named tuple takes its parts one by one.
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
