"""Batches of datasets, and of whatever yields ready batches by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from finetunelib._preserve import derive_seed
from finetunelib._typing import Batch, SizedDataset


class DatasetBatches:
    """Batches of a dataset with a length, collated by torch's DataLoader.

    Shuffling and the workers' seeds depend on (seed, epoch) alone.
    """

    replayable = True

    def __init__(
        self,
        dataset: SizedDataset[Any],
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._pin_memory = pin_memory

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self._dataset)

    @property
    def steps(self) -> int:
        """The number of batches of an epoch."""
        return -(-len(self._dataset) // self._batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, shuffled."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, number))
        order = torch.randperm(len(self._dataset), generator=generator)
        return iter(self._loader(order.tolist(), generator))

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the dataset."""
        # The loader draws a seed for its workers; from a generator of its own, so that reading
        # data for an evaluation moves nobody's random state.
        generator = torch.Generator().manual_seed(self._seed)
        return iter(self._loader(range(len(self._dataset)), generator))

    def all_targets(self) -> Tensor | None:
        """Return None: reading every sample for its target would be a pass over the data."""
        return None

    def _loader(self, order: Iterable[int], generator: torch.Generator) -> Iterable[Batch]:
        return DataLoader(
            self._dataset,  # type: ignore[arg-type]  # a length and items are all it needs
            batch_size=self._batch_size,
            sampler=order,
            num_workers=self._num_workers,
            generator=generator,
            pin_memory=self._pin_memory,
            collate_fn=collate,
        )


class ReadyBatches:
    """Whatever yields batches by itself: a DataLoader, a list of batches, a generator."""

    samples = None

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        # What returns the same iterator twice yields nothing the second time. A DataLoader is not
        # asked, since an iterator of it starts its workers.
        known = isinstance(batches, DataLoader | list)
        self.replayable = known or iter(batches) is not iter(batches)

    @property
    def steps(self) -> int | None:
        """The number of batches of an epoch, where the source knows it."""
        try:
            return len(self._batches)  # type: ignore[arg-type]  # a TypeError is an answer
        except TypeError:
            return None

    def epoch(self, number: int) -> Iterator[Batch]:  # noqa: ARG002 - it orders them itself
        """Yield the batches as the source orders them."""
        return iter(self._batches)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches as the source orders them."""
        return iter(self._batches)

    def all_targets(self) -> Tensor | None:
        """Return None: the targets are inside the batches."""
        return None


def batch_stream(
    dataset: IterableDataset[Any], *, batch_size: int, num_workers: int, pin_memory: bool
) -> ReadyBatches:
    """Return batches of a dataset that has no length and yields its samples in its own order."""
    return ReadyBatches(
        DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=collate,
        )
    )


def collate(samples: list[Any]) -> Batch:
    """Return samples as one batch, as torch does, but for lists of numbers inside mappings.

    Those are rows, as datasets of Hugging Face hold them; torch would take them for columns.
    """
    if isinstance(samples[0], Mapping):
        samples = [{name: _row(value) for name, value in sample.items()} for sample in samples]
    return default_collate(samples)


def _row(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) else value
