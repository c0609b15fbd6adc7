"""The rows of inputs along their batch axes, which may be any axis or none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetunelib._forward.inputs import Inputs

#: The batch axis of each input, `None` for an input without one.
BatchAxes = Sequence[int | None]


def take_rows(inputs: Inputs, batch: BatchAxes, count: int, offset: int = 0) -> Inputs:
    """Return `count` rows of each input from `offset` on, starting again after the last one."""
    return inputs.with_tensors(
        [
            tensor if axis is None else _cyclic(tensor, axis, count, offset)
            for tensor, axis in zip(inputs.tensors, batch, strict=True)
        ]
    )


def at_least_two(inputs: Inputs, batch: BatchAxes) -> Inputs:
    """Return the inputs with a batch of one doubled: the exporter treats a 1 as a constant."""
    return take_rows(inputs, batch, 2) if batch_size(inputs, batch) == 1 else inputs


def batch_size(inputs: Inputs, batch: BatchAxes) -> int:
    """Return the number of rows, 1 if no input has a batch axis."""
    sizes = [
        tensor.shape[axis]
        for tensor, axis in zip(inputs.tensors, batch, strict=True)
        if axis is not None
    ]
    return max(sizes, default=1)


def _cyclic(tensor: Tensor, axis: int, count: int, offset: int) -> Tensor:
    index = (torch.arange(count, device=tensor.device) + offset) % tensor.shape[axis]
    return tensor.index_select(axis, index)
