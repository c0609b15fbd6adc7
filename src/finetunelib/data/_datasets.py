"""Batches of a dataset that has a length, in an order that depends only on (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetunelib._preserve import derive_seed
from finetunelib._typing import Batch, SizedDataset
from finetunelib.data._batch import first_of
from finetunelib.data._batches import SeededBatches
from finetunelib.data._cache.watching import Watched, WatchedCollate, WatchedSamples
from finetunelib.data._ready import without
from finetunelib.data._samples import Collate, CollateFunction, Failure, LocatedSamples, raising


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
        self.dataset = dataset
        self._samples = LocatedSamples(dataset, name)
        self._collate = Collate(collate_fn, name)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.has_collate_fn = collate_fn is not None
        self._seed = seed
        self._pin_memory = pin_memory

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.dataset)

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, shuffled, without the first `skip`."""
        order, generator = self.order(number)
        if self.num_workers:
            # Read the skipped batches too: a worker's random state depends on them.
            return without(skip, self._batches(order.tolist(), generator))
        return self._batches(order[skip * self.batch_size :].tolist(), generator)

    def peek(self, number: int, name: str) -> Batch:
        """Return the first batch of epoch `number`, which `epoch` will yield again.

        If the data is read by workers, one of them reads it: a dataset may open its files at the
        first read, and a process must not inherit them.
        """
        order, generator = self.order(number)
        workers = min(1, self.num_workers)
        first = order[: self.batch_size].tolist()
        return first_of(self._batches(first, generator, num_workers=workers), name)

    def in_order(self, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches in the order of the dataset, without the first `skip`."""
        rows = range(skip * self.batch_size, len(self.dataset))
        return self._batches(rows, self._generator())

    def order(self, number: int) -> tuple[Tensor, torch.Generator]:
        """Return the shuffled indices of an epoch, int64, and the generator that shuffled them."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        return torch.randperm(len(self.dataset), generator=generator), generator

    def watched(
        self, order: Iterable[int], generator: torch.Generator | None = None
    ) -> Iterator[Watched]:
        """Yield the batches of samples in an order, with what is noticed while they are read.

        Args:
            order: The indices of the samples.
            generator: Draws the seeds of the workers, as for `epoch`. `None` is that of `in_order`.
        """
        return raising(
            self._loader(
                WatchedSamples(self._samples),
                WatchedCollate(self._collate),
                generator or self._generator(),
                num_workers=self.num_workers,
                batch_size=self.batch_size,
                sampler=order,
            )
        )

    def watched_groups(self, groups: list[list[int]]) -> Iterator[Watched | Failure]:
        """Yield batches of the samples with these indices, each by another worker if possible."""
        return self._loader(
            WatchedSamples(self._samples),
            WatchedCollate(self._collate),
            self._generator(),
            num_workers=min(len(groups), self.num_workers),
            batch_sampler=groups,
        )

    def all_targets(self) -> Tensor | None:
        """Return `None`: collecting the targets would be a pass over the data."""
        return None

    def _generator(self) -> torch.Generator:
        """Return the generator of passes in the order of the data.

        The loader draws a seed for its workers. With its own generator, evaluation does not change
        the global random state.
        """
        return torch.Generator().manual_seed(self._seed)

    def _batches(
        self, order: Iterable[int], generator: torch.Generator, num_workers: int | None = None
    ) -> Iterator[Batch]:
        return raising(
            self._loader(
                self._samples,
                self._collate,
                generator,
                num_workers=self.num_workers if num_workers is None else num_workers,
                batch_size=self.batch_size,
                sampler=order,
            )
        )

    def _loader(
        self,
        samples: Dataset[Any],
        collate: Callable[[Any], Any],
        generator: torch.Generator,
        **how: Any,
    ) -> Iterator[Any]:
        """Return an iterator over a DataLoader, whose workers are started now."""
        loader: DataLoader[Any] = DataLoader(
            samples,
            generator=generator,
            pin_memory=self._pin_memory,
            collate_fn=collate,
            **how,
        )
        return iter(loader)
