"""A count of true values, summed for many batches at once."""

from __future__ import annotations

import torch
from torch import Tensor

from finetunelib.training._measuring.means import as_number


class HitCount:
    """Counts the true values in tensors, which are kept until there are enough of them.

    Summing is a call of its own for each small tensor, and reading a sum waits for an accelerator.
    The tensors must not be written to afterwards.
    """

    #: The number of tensors that are kept.
    _CHUNK = 64

    #: The number of values that are kept, one byte each.
    _VALUES = 1 << 16

    def __init__(self, start: float = 0) -> None:
        self._sum: Tensor | float = start
        self._kept: list[Tensor] = []
        self._values = 0

    def copy(self) -> HitCount:
        """Return a count that continues from here on its own."""
        other = HitCount()
        other._sum = self._sum
        other._kept, other._values = [*self._kept], self._values
        return other

    def add(self, hits: Tensor) -> None:
        """Add a tensor of bools."""
        kept = self._kept
        if kept and kept[0].device != hits.device:
            self._fold()
        kept.append(hits)
        self._values += hits.numel()
        if len(kept) >= self._CHUNK or self._values >= self._VALUES:
            self._fold()

    def add_sum(self, hits: Tensor) -> None:
        """Add the sum of the weights of true values."""
        self._fold()
        self._sum = self._sum + hits

    def read(self) -> float:
        """Return the count, or the sum of weights, which waits for an accelerator."""
        self._fold()
        return as_number(self._sum)

    def _fold(self) -> None:
        if self._kept:
            self._sum = self._sum + torch.cat([hits.flatten() for hits in self._kept]).sum()
        self._kept.clear()
        self._values = 0
