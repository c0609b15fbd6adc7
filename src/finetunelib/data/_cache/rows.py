"""The samples of a dataset in memory, from which batches like those of a DataLoader are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from finetunelib._forward.state_tensors import same_bits
from finetunelib._typing import Batch


class NotKeptError(Exception):
    """The samples of a dataset cannot be kept; the message continues "it cannot, because"."""


class Rows(Protocol):
    """The samples of a dataset."""

    def take(self, rows: Tensor) -> Batch:
        """Return a batch of the samples with these indices, `(batch,)`, int64, as a copy."""
        ...


class KeptRows:
    """The samples of batches that were read, in the order of the dataset."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._columns: Any = None  # Any: the structure of a batch, with a column for each tensor.
        self._form = ""

    def put(self, rows: Tensor, batch: Batch, form: str = "") -> None:
        """Keep a copy of the samples of a batch.

        Args:
            rows: Their indices in the dataset, `(batch,)`, int64.
            batch: The batch, of the structure that the first one had.
            form: The types of its samples, which are the same in all batches.

        Raises:
            NotKeptError: If a batch with the same bits, layout and types could not be cut again.
        """
        if self._columns is None:
            self._columns = mapped(lambda tensor: _Column.like(tensor, self._samples), batch)
            self._form = form
        if form != self._form or outline(batch) != outline(self._columns):
            raise NotKeptError("its samples differ in type or structure")
        for column, tensor in zip(leaves(self._columns), leaves(batch), strict=True):
            column.put(rows, tensor)

    def take(self, rows: Tensor) -> Batch:
        """Return a batch of the samples with these indices, `(batch,)`, int64, as a copy."""
        return mapped(lambda column: column.take(rows), self._columns)


@dataclass(frozen=True, slots=True)
class _Column:
    """One tensor of all samples.

    Attributes:
        values: `(samples, ...)`, contiguous: the dimensions in the order that they have in memory.
        dims: For each dimension of a batch, its place in `values`.
    """

    values: Tensor
    dims: tuple[int, ...]

    @classmethod
    def like(cls, tensor: Tensor, samples: int) -> _Column:
        """Return room for all samples of a dataset like those of a batch."""
        _check_plain(tensor)
        strides = tensor.stride()
        order = [0, *sorted(range(1, tensor.dim()), key=lambda dim: -strides[dim])]
        shape = [samples, *(tensor.shape[dim] for dim in order[1:])]
        return cls(tensor.new_empty(shape), tuple(map(order.index, range(tensor.dim()))))

    def put(self, rows: Tensor, tensor: Tensor) -> None:
        _check_plain(tensor)
        values = self.values
        shape = torch.Size((len(rows), *(values.shape[place] for place in self.dims[1:])))
        if (tensor.dtype, tensor.shape) != (values.dtype, shape):
            raise NotKeptError("its samples differ in shape or dtype")
        if tensor.stride() != self._strides(len(rows)):
            raise NotKeptError("the layout of its batches in memory differs")
        order = sorted(range(tensor.dim()), key=self.dims.__getitem__)
        values.index_copy_(0, rows, tensor.permute(order))

    def take(self, rows: Tensor) -> Tensor:
        return self.values.index_select(0, rows).permute(self.dims)

    def _strides(self, samples: int) -> tuple[int, ...]:
        """Return the strides of a batch of some samples."""
        found, step = [], 1
        for size in reversed((samples, *self.values.shape[1:])):
            found.append(step)
            step *= max(1, size)
        in_memory = found[::-1]
        return tuple(in_memory[place] for place in self.dims)


def _check_plain(tensor: object) -> None:
    """Check that a part of a batch is an ordinary tensor with one row per sample.

    Raises:
        NotKeptError: If it is anything else.
    """
    if not isinstance(tensor, Tensor):
        raise NotKeptError(
            f"its samples contain a {type(tensor).__name__}, and only tensors, arrays and numbers "
            "can be kept"
        )
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    if not plain or tensor.device.type != "cpu" or tensor.requires_grad or tensor.dim() == 0:
        raise NotKeptError("its samples are not ordinary tensors on the CPU without gradients")


def mapped(function: Callable[[Any], Any], batch: Batch) -> Any:
    """Return a batch with a function applied to each part that is not a list, tuple or dict.

    Raises:
        NotKeptError: If it contains a container of another type.
    """
    if type(batch) is list:
        return [mapped(function, part) for part in batch]
    if type(batch) is tuple:
        return tuple(mapped(function, part) for part in batch)
    if type(batch) is dict:
        return {key: mapped(function, part) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(function, part) for part in batch))
    return function(batch)


def leaves(batch: Batch) -> list[Any]:
    """Return the parts of a batch that are not a list, tuple or dict."""
    found: list[Any] = []
    mapped(found.append, batch)
    return found


def outline(batch: Batch) -> object:
    """Return the structure of a batch, without its tensors, to compare it."""
    if type(batch) is dict:
        return dict, tuple((key, outline(part)) for key, part in batch.items())
    if isinstance(batch, list | tuple):
        return type(batch), tuple(map(outline, batch))
    return None


def same_batches(one: Batch, other: Batch) -> bool:
    """Return whether two batches have the same structure, types, shapes, strides and bits."""
    if outline(one) != outline(other):
        return False
    return all(map(_same, leaves(one), leaves(other)))


def _same(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    return same_bits(one, other) and one.stride() == other.stride()
