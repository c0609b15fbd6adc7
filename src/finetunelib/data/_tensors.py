"""Batches cut from tensors in memory, without a per-sample step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs

from finetunelib._preserve import derive_seed
from finetunelib._public import public
from finetunelib._typing import TensorLike
from finetunelib.data._batches import SeededBatches
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidArgumentError,
    InvalidTypeError,
)


@public("finetunelib.data")
class TensorBatches(SeededBatches):
    """Batches of tensors in memory, shuffled anew each epoch in a reproducible order.

    The order of an epoch is a pure function of `seed` and the epoch's number: the permutation
    that `torch.randperm` draws on the CPU from a generator of its own. No global random state is
    read or changed. The last batch is kept, also when it is short.

    Args:
        *tensors: Tensors or numpy arrays with one row a sample and equal lengths, on any device;
            as a rule inputs and targets. Arrays share their memory with the tensors made of them.
        batch_size: The number of samples in a batch, at least 1.
        seed: Decides the order together with the epoch's number.
        batch_transform: What is done with the rows of the first tensor, a batch at a time; for
            bytes `lambda images: images.float() / 255`.

    Attributes:
        tensors: The tensors.
        samples: The number of rows of each.
        batch_size: The number of samples in a batch.
        seed: What decides the order together with the epoch's number.

    Raises:
        EmptyDataError: There is no tensor, or no sample in it.
        DataError: The lengths differ, or a tensor has no rows.
        InvalidTypeError: A value is neither a tensor nor a numpy array.
        InvalidArgumentError: `batch_size` is below 1.

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
        if batch_size < 1:
            raise InvalidArgumentError(f"`batch_size` must be at least 1, but is {batch_size}.")
        self.tensors: tuple[Tensor, ...] = tuple(as_tensor(tensor) for tensor in tensors)
        self.batch_size = batch_size
        self.seed = seed
        self.samples: int = _common_length(self.tensors)
        self._transform = batch_transform

    @property
    def steps(self) -> int:
        """The number of batches of an epoch."""
        return -(-self.samples // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of an epoch in its own shuffled order.

        Args:
            number: The number of the epoch, from 0.
            skip: How many batches to leave out at the beginning.

        Yields:
            One batch: a tuple with the rows of each tensor, `(batch_size, ...)`.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        order = torch.randperm(self.samples, generator=generator)
        for rows in torch.split(order, self.batch_size)[skip:]:
            yield self._transformed(
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
        """Return the second tensor, the targets of every sample, or None if there is none."""
        return self.tensors[1] if len(self.tensors) > 1 else None


def is_tensor_like(value: object) -> TypeIs[TensorLike]:
    """Return whether `value` is a tensor or a numpy array."""
    return isinstance(value, Tensor | np.ndarray)


def as_tensor(value: object) -> Tensor:
    """Return a tensor as it is and a numpy array as a tensor over the same memory.

    Raises:
        InvalidTypeError: `value` is neither, or an array of a dtype that torch does not have.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if is_tensor_like(value):
        try:
            with warnings.catch_warnings():
                # A read-only array (a memory map) is only read here.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return torch.as_tensor(value)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(
                f"This numpy array of dtype {value.dtype} cannot become a tensor: {error} "
                "Make a plain copy of it first, such as np.ascontiguousarray(array, np.float32)."
            ) from error
    raise InvalidTypeError(
        f"Expected a tensor or a numpy array, but got {type(value).__name__}. "
        "Convert it with torch.tensor(...)."
    )


def _common_length(tensors: tuple[Tensor, ...]) -> int:
    if not tensors:
        raise EmptyDataError("TensorBatches needs at least one tensor, but got none.")
    for position, tensor in enumerate(tensors):
        if tensor.dim() == 0:
            raise DataError(
                f"Tensor {position} of the data is a single number. "
                "Data needs one row a sample: (samples, ...)."
            )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise DataError(
            f"Inputs and targets must have one row a sample each, but hold {lengths} rows "
            f"(shapes {shapes}). Pass as many targets as inputs."
        )
    if lengths[0] == 0:
        raise EmptyDataError(
            f"The data holds no sample: the shape of the inputs is {tuple(tensors[0].shape)}."
        )
    return lengths[0]
