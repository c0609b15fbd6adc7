"""Batches of a dataset that has a length, in an order that depends only on (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetunelib._preserve import derive_seed
from finetunelib._typing import Batch, SizedDataset
from finetunelib.data._batch import first_of
from finetunelib.data._batches import SeededBatches
from finetunelib.data._ready import without
from finetunelib.data._samples import Collate, CollateFunction, LocatedSamples, raising


class DatasetBatches(SeededBatches):
    """Batches of a dataset with a length, read by a PyTorch DataLoader.

    The order and the workers' seeds depend only on (seed, epoch).
    """

    def __init__(
        self,
        dataset: SizedDataset[Any],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        pin_memory: bool = False,
        collate_fn: CollateFunction | None = None,
        name: str = "data",
    ) -> None:
        self._dataset = dataset
        self._samples = LocatedSamples(dataset, name)
        self._collate = Collate(collate_fn, name)
        self.batch_size = batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._pin_memory = pin_memory

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self._dataset)

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self._dataset) // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, shuffled, without the first `skip`."""
        order, generator = self._order(number)
        if self._num_workers:
            # Read the skipped batches too: a worker's random state depends on them.
            return without(skip, self._loader(order, generator))
        return self._loader(order[skip * self.batch_size :], generator)

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, which `epoch` will yield again.

        If the data is read by workers, one of them reads it: a dataset may open its files at the
        first read, and a process must not inherit them.
        """
        order, generator = self._order(number)
        workers = min(1, self._num_workers)
        loader = self._loader(order[: self.batch_size], generator, num_workers=workers)
        return first_of(loader, name)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the dataset."""
        # The loader draws a seed for its workers. With its own generator, evaluation does not
        # change the global random state.
        generator = torch.Generator().manual_seed(self._seed)
        return self._loader(range(len(self._dataset)), generator)

    def all_targets(self) -> Tensor | None:
        """Return `None`: collecting the targets would be a pass over the data."""
        return None

    def _order(self, number: int) -> tuple[list[int], torch.Generator]:
        """Return the shuffled indices of an epoch, and the generator that shuffled them."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        return torch.randperm(len(self._dataset), generator=generator).tolist(), generator

    def _loader(
        self, order: Iterable[int], generator: torch.Generator, num_workers: int | None = None
    ) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self._num_workers if num_workers is None else num_workers,
            generator=generator,
            pin_memory=self._pin_memory,
            collate_fn=self._collate,
        )
        return raising(iter(loader))
