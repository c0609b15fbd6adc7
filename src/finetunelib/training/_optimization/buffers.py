"""Copies of a model's buffers, to undo what a forward pass has done to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Buffers up to this number of elements are copied in every step.
_SMALL = 1 << 14


class _Kept:
    """One buffer, and its value at the last call of `keep`."""

    __slots__ = ("copy", "name", "owner", "tensor", "version")

    def __init__(self, owner: dict[str, Tensor | None], name: str) -> None:
        self.owner = owner
        self.name = name
        self.tensor: Tensor | None = None
        self.version = -1
        self.copy: Tensor | None = None

    def is_current(self, tensor: Tensor) -> bool:
        """Return whether a large buffer has not been written since it was copied.

        The counter of a tensor's versions does not count what `batch_norm` writes to the running
        statistics, so those are copied every time.
        """
        return (
            tensor is self.tensor
            and tensor._version == self.version  # noqa: SLF001 - torch's own counter
            and tensor.numel() > _SMALL
            and not self.name.startswith("running_")
        )


class BufferCopies:
    """Keeps the values of buffers, and restores them.

    Large buffers, such as masks and tables of positions, are copied again only after they were
    written.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept = [
            _Kept(module._buffers, name)  # noqa: SLF001 - a forward may replace the tensor itself
            for module in modules
            for name in module._buffers  # noqa: SLF001
        ]

    def keep(self) -> None:
        """Copy the values of the buffers that may have changed since the last call."""
        if not self._kept:
            return  # Of most models without BatchNorm, in the time of an empty call.
        sources, copies = [], []
        for kept in self._kept:
            tensor = kept.owner.get(kept.name)
            if tensor is not None and not kept.is_current(tensor):
                sources.append(tensor)
                copies.append(_room_for(tensor, kept.copy))
                kept.copy, kept.version = copies[-1], tensor._version  # noqa: SLF001
            kept.tensor = tensor
        if not sources:
            return  # An empty list is refused.
        with torch.no_grad():
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the tensors and values that they had at the last call of `keep`."""
        for kept in self._kept:
            kept.owner[kept.name] = kept.tensor
            if kept.tensor is not None and kept.copy is not None:
                kept.tensor.copy_(kept.copy)


def _room_for(tensor: Tensor, copy: Tensor | None) -> Tensor:
    """Return a tensor to copy to: the previous copy, if it has the right shape and dtype."""
    if copy is not None and copy.shape == tensor.shape and copy.dtype == tensor.dtype:
        return copy
    return torch.empty_like(tensor)
