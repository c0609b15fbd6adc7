"""Batches of tensors in memory, sliced without work per sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetunelib._arguments import check_at_least, check_whole
from finetunelib._forward.batch import WeightedBatch
from finetunelib._preserve import derive_seed
from finetunelib._public import public
from finetunelib._typing import Batch, TensorLike
from finetunelib.data._batches import SeededBatches
from finetunelib.data._parts import (
    PartLike,
    as_part,
    common_length,
    mapped_part,
    shapes_of_part,
)
from finetunelib.data._sample_weight import as_sample_weight

_LARGEST_INT32 = 2**31 - 1


@public("finetunelib.data")
class TensorBatches(SeededBatches):
    """Batches of tensors in memory, reshuffled each epoch in a reproducible order.

    The order of an epoch depends only on `seed` and the epoch's number: it is a permutation drawn
    by `torch.randperm` on the CPU from a separate generator. The global random state is neither
    read nor changed. The last batch of an epoch may be shorter.

    Args:
        *tensors: Tensors or numpy arrays with one row per sample and equal lengths, on any
            device; usually inputs and targets. Each may be a mapping of them by name, such as
            several inputs by the arguments of the model. Arrays are not copied.
        batch_size: The number of samples per batch, at least 1.
        seed: The seed of the order, together with the epoch's number.
        batch_transform: A function that is applied to each batch of the first tensor or mapping,
            such as `lambda images: images.float() / 255` for bytes.
        sample_weight: How much each sample counts, `(samples,)`, finite numbers of at least 0; not
            all 0. A batch then is a named tuple (inputs, targets, sample_weight). The Trainer's
            losses and metrics are weighted means; those of PyTorch and metric functions with one
            value for each sample need nothing else. `None` counts all samples equally.

    Attributes:
        tensors: The tensors, and dicts of tensors.
        samples: The number of rows of each tensor.
        batch_size: The number of samples per batch.
        seed: The seed of the order, together with the epoch's number.
        sample_weight: The weights of the samples as float32, or `None`.

    Raises:
        EmptyDataError: If there is no tensor, a mapping is empty, or there are no rows.
        DataError: If the lengths differ, also that of `sample_weight`, or a tensor has no
            dimensions.
        InvalidTypeError: If a value is neither a tensor nor a numpy array, or `batch_size` or
            `seed` is not a whole number.
        InvalidArgumentError: If `batch_size` is below 1, a weight is negative or not finite, all
            weights are 0, or there are weights but not inputs and targets.

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
        *tensors: PartLike,
        batch_size: int = 64,
        seed: int = 0,
        batch_transform: Callable[[Any], Any] | None = None,  # Any: a tensor or a dict of them.
        sample_weight: TensorLike | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        check_whole(seed=seed)
        parts = tuple(as_part(tensor, position) for position, tensor in enumerate(tensors))
        self.tensors: tuple[Any, ...] = parts  # Any: a tensor or a dict of tensors.
        self.batch_size = batch_size
        self.seed = seed
        self.samples: int = common_length(parts)
        self.sample_weight: Tensor | None = as_sample_weight(
            sample_weight, self.samples, len(parts)
        )
        self._transform = batch_transform
        # Whether a batch is the first part itself: a mapping with inputs and targets.
        self._bare = False
        # The order of an epoch whose first batch was read, until the epoch is read.
        self._drawn: tuple[tuple[int, int], Tensor] | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(map(shapes_of_part, self.tensors))
        weighted = "" if self.sample_weight is None else ", sample_weight=..."
        return f"TensorBatches({shapes}{weighted}, batch_size={self.batch_size}, seed={self.seed})"

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.samples // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch in its shuffled order.

        Args:
            number: The number of the epoch, from 0.
            skip: The number of batches to skip at the beginning.

        Yields:
            One batch: a tuple with the rows of each tensor, `(batch_size, ...)`, and a dict of rows
            for each mapping.
        """
        order, self._drawn = self._order(number), None
        # Sliced one batch at a time: all slices of a long epoch together take much more memory.
        for start in range(skip * self.batch_size, self.samples, self.batch_size):
            yield self._rows(order[start : start + self.batch_size])

    def peek(self, number: int, name: str) -> Batch:  # noqa: ARG002 - the protocol's form
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

    def _rows(self, rows: Tensor) -> Batch:
        return self._batch(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the rows, as views of the tensors."""
        for start in range(0, self.samples, self.batch_size):
            yield self._batch(partial(_sliced, start, start + self.batch_size))

    def _batch(self, taken: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of the rows that a function takes from each tensor."""
        first: Any = mapped_part(taken, self.tensors[0])
        if self._transform is not None:
            first = self._transform(first)
        if self._bare:
            return first
        others = [mapped_part(taken, part) for part in self.tensors[1:]]
        if self.sample_weight is not None:
            return WeightedBatch(first, others[0], taken(self.sample_weight))
        return (first, *others)

    def with_inputs(self, inputs: Tensor) -> TensorBatches:
        """Return the same batches with other inputs, `(samples, ...)`, and no transform."""
        batches = copy.copy(self)
        batches._transform, batches._drawn = None, None  # noqa: SLF001 - of the same class
        batches.tensors = (inputs, *self.tensors[1:])
        return batches

    def all_targets(self) -> Tensor | None:
        """Return the targets of all samples, or `None` if there are none or several by name."""
        first = self.tensors[0]
        if self._bare and isinstance(first, dict):
            return first.get("labels")
        targets = self.tensors[1] if len(self.tensors) > 1 else None
        return targets if isinstance(targets, Tensor) else None


def _sliced(start: int, stop: int, tensor: Tensor) -> Tensor:
    return tensor[start:stop]


def batches_of_mapping(
    mapping: PartLike,
    *,
    batch_size: int,
    seed: int,
    batch_transform: Callable[[Any], Any] | None = None,
) -> TensorBatches:
    """Return batches that are mappings of rows, with inputs and targets in one mapping."""
    batches = TensorBatches(
        mapping, batch_size=batch_size, seed=seed, batch_transform=batch_transform
    )
    batches._bare = True  # noqa: SLF001 - of this module
    return batches
