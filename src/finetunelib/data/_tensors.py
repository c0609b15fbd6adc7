"""Batches of tensors in memory, sliced without work per sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs

from finetunelib._arguments import check_at_least, check_whole
from finetunelib._preserve import derive_seed
from finetunelib._public import public
from finetunelib._typing import TensorLike
from finetunelib.data._batches import SeededBatches
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError

_LARGEST_INT32 = 2**31 - 1


@public("finetunelib.data")
class TensorBatches(SeededBatches):
    """Batches of tensors in memory, reshuffled each epoch in a reproducible order.

    The order of an epoch depends only on `seed` and the epoch's number: it is a permutation drawn
    by `torch.randperm` on the CPU from a separate generator. The global random state is neither
    read nor changed. The last batch of an epoch may be shorter.

    Args:
        *tensors: Tensors or numpy arrays with one row per sample and equal lengths, on any
            device; usually inputs and targets. Arrays are not copied.
        batch_size: The number of samples per batch, at least 1.
        seed: The seed of the order, together with the epoch's number.
        batch_transform: A function that is applied to each batch of the first tensor, such as
            `lambda images: images.float() / 255` for bytes.

    Attributes:
        tensors: The tensors.
        samples: The number of rows of each tensor.
        batch_size: The number of samples per batch.
        seed: The seed of the order, together with the epoch's number.

    Raises:
        EmptyDataError: If there is no tensor, or it has no rows.
        DataError: If the lengths differ, or a tensor has no dimensions.
        InvalidTypeError: If a value is neither a tensor nor a numpy array, or `batch_size` or
            `seed` is not a whole number.
        InvalidArgumentError: If `batch_size` is below 1.

    Example:
        >>> import torch
        >>> from finetunelib.data import TensorBatches
        >>> batches = TensorBatches(torch.arange(5), batch_size=2, seed=0)
        >>> [len(inputs) for (inputs,) in batches.epoch(0)]
        [2, 2, 1]
        >>> [inputs.tolist() for (inputs,) in batches.in_order()]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: TensorLike,
        batch_size: int = 64,
        seed: int = 0,
        batch_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        check_whole(seed=seed)
        self.tensors: tuple[Tensor, ...] = tuple(as_tensor(tensor) for tensor in tensors)
        self.batch_size = batch_size
        self.seed = seed
        self.samples: int = _common_length(self.tensors)
        self._transform = batch_transform
        # The order of an epoch whose first batch was read, until the epoch is read.
        self._drawn: tuple[tuple[int, int], Tensor] | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)
        return f"TensorBatches({shapes}, batch_size={self.batch_size}, seed={self.seed})"

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.samples // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of an epoch in its shuffled order.

        Args:
            number: The number of the epoch, from 0.
            skip: The number of batches to skip at the beginning.

        Yields:
            One batch: a tuple with the rows of each tensor, `(batch_size, ...)`.
        """
        order, self._drawn = self._order(number), None
        # Sliced one batch at a time: all slices of a long epoch together take much more memory.
        for start in range(skip * self.batch_size, self.samples, self.batch_size):
            yield self._rows(order[start : start + self.batch_size])

    def peek(self, number: int, name: str) -> tuple[Tensor, ...]:  # noqa: ARG002 - the protocol's form
        """Return the first batch of epoch `number`, which `epoch` will yield again."""
        order = self._order(number)
        self._drawn = (self.seed, number), order
        return self._rows(order[: self.batch_size])

    def _order(self, number: int) -> Tensor:
        """Return the rows of an epoch in their order, drawn once for `peek` and `epoch`."""
        if self._drawn is not None and self._drawn[0] == (self.seed, number):
            return self._drawn[1]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        # The numbers do not depend on the dtype. The smaller one takes half the memory.
        dtype = torch.int32 if self.samples <= _LARGEST_INT32 else torch.int64
        return torch.randperm(self.samples, generator=generator, dtype=dtype)

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self._transformed(
            tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors
        )

    def in_order(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches in the order of the rows, as views of the tensors."""
        for start in range(0, self.samples, self.batch_size):
            yield self._transformed(
                tensor[start : start + self.batch_size] for tensor in self.tensors
            )

    def _transformed(self, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        if self._transform is None:
            return tuple(tensors)
        first, *others = tensors
        return (self._transform(first), *others)

    def all_targets(self) -> Tensor | None:
        """Return the second tensor, the targets of all samples, or `None` if there is none."""
        return self.tensors[1] if len(self.tensors) > 1 else None


def is_tensor_like(value: object) -> TypeIs[TensorLike]:
    """Return whether `value` is a tensor or a numpy array."""
    return isinstance(value, Tensor | np.ndarray)


def as_tensor(value: object) -> Tensor:
    """Return a tensor detached, or a numpy array as a tensor that shares its memory.

    Raises:
        InvalidTypeError: If `value` is neither, or an array of a dtype that PyTorch lacks.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if is_tensor_like(value):
        try:
            with warnings.catch_warnings():
                # A read-only array, such as a memory map, is only read.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return torch.as_tensor(value)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(
                f"This numpy array of dtype {value.dtype} cannot be converted to a tensor: {error} "
                "Copy it first, such as with np.ascontiguousarray(array, np.float32)."
            ) from error
    raise InvalidTypeError(
        f"Expected a tensor or a numpy array, got {type(value).__name__}. "
        "Convert it with torch.tensor(...)."
    )


def _common_length(tensors: tuple[Tensor, ...]) -> int:
    if not tensors:
        raise EmptyDataError("TensorBatches needs at least one tensor, got none.")
    for position, tensor in enumerate(tensors):
        if tensor.dim() == 0:
            raise DataError(
                f"Tensor {position} of the data is a single number. "
                "Data needs one row per sample: (samples, ...)."
            )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise DataError(
            f"Inputs and targets must have one row per sample each, got {lengths} rows "
            f"(shapes {shapes}). Pass as many targets as inputs."
        )
    if lengths[0] == 0:
        raise EmptyDataError(
            f"The data contains no samples: the shape of the inputs is {tuple(tensors[0].shape)}."
        )
    return lengths[0]
