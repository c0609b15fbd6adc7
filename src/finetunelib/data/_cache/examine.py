"""Whether the samples of a dataset are the same each time, as far as reading some of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finetunelib._preserve import random_state_preserved
from finetunelib._typing import Batch
from finetunelib.data._cache.contents import Contents
from finetunelib.data._cache.rows import KeptRows, NotKeptError, Rows, leaves, same_batches
from finetunelib.data._cache.watching import Watched
from finetunelib.data._datasets import DatasetBatches
from finetunelib.data._samples import Failure

#: The number of samples that are read twice, and again before each later epoch. Each repeated read
#: misses a random flip with probability 1/2, so 16 of them miss it once in 65,536 datasets.
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Examined:
    """A dataset whose samples seem to be the same each time.

    Attributes:
        contents: What it consists of.
        rows: The indices of some samples, `(n,)`, int64.
        batch: These samples.
        size: The bytes of all samples.
    """

    contents: Contents
    rows: Tensor
    batch: Batch
    size: int

    def check(self, kept: Rows) -> None:
        """Check samples that are kept against those that were read before.

        Raises:
            NotKeptError: If they differ.
        """
        if not same_batches(kept.take(self.rows), self.batch):
            raise NotKeptError("reading a sample twice gave different results")


def examine(source: DatasetBatches) -> Examined:
    """Read some samples of a dataset twice, in other batches and by other workers.

    Attributes of the dataset that this changes are restored if the samples cannot be kept, and so
    are the random states.

    Args:
        source: Reads the dataset.

    Raises:
        NotKeptError: If its samples cannot be kept.
    """
    contents = Contents(source.dataset)
    if contents.why_random is not None:
        raise NotKeptError(contents.why_random)
    try:
        with random_state_preserved():
            return _examined(source)
    except NotKeptError:
        contents.restore()
        raise


def _examined(source: DatasetBatches) -> Examined:
    samples = source.samples
    indices = _spread(samples, 0)
    half = len(indices) // 2
    # Other neighbours in the second time: a dataset may return batches that depend on them.
    second = [part for part in (range(half, len(indices)), range(half)) if part]
    batches = _read(source, [indices, *([indices[place] for place in part] for part in second)])
    first = next(batches)
    # A dataset may open its files at the first read, so what it is then counts.
    contents = Contents(source.dataset)
    again = list(batches)
    if contents.why_random is not None:
        raise NotKeptError(contents.why_random)
    if (changed := contents.why_changed()) is not None:
        raise NotKeptError(f"reading it changes it: {changed}")
    kept = KeptRows(len(indices))
    kept.put(torch.arange(len(indices)), first.batch, first.form)
    for part, watched in zip(second, again, strict=True):
        if not same_batches(kept.take(torch.tensor(part)), watched.batch):
            raise NotKeptError("reading a sample twice gave different results (a random transform)")
        if watched.form != first.form:
            raise NotKeptError("its samples differ in type or dtype")
    size = sum(tensor.nbytes for tensor in leaves(first.batch)) // len(indices) * samples
    return Examined(contents, torch.tensor(indices), first.batch, size)


def why_other(source: DatasetBatches, examined: Examined, kept: Rows, passes: int) -> str | None:
    """Return why the samples that are kept are not those of the dataset any more, or `None`.

    Args:
        source: Reads the dataset.
        examined: What the dataset was.
        kept: The samples that are kept.
        passes: How often this was called before. Each time, other samples are read.
    """
    indices = _spread(source.samples, passes)
    try:
        with random_state_preserved():
            (watched,) = _read(source, [indices])
    except NotKeptError as error:
        return str(error)
    if not same_batches(kept.take(torch.tensor(indices)), watched.batch):
        return "reading some samples again gave different results"
    changed = examined.contents.why_changed()
    return None if changed is None else f"reading it changes it: {changed}"


def _spread(samples: int, offset: int) -> list[int]:
    """Return up to 16 indices at equal distances, others for each offset."""
    step = max(1, samples // _SAMPLES)
    return list(range(offset % step, samples, step))[:_SAMPLES]


def _read(source: DatasetBatches, groups: list[list[int]]) -> Iterator[Watched]:
    """Yield batches of samples.

    Raises:
        NotKeptError: If they cannot be read, or cannot be kept.
    """
    for watched in source.watched_groups(groups):
        if isinstance(watched, Failure):
            raise NotKeptError(f"a sample cannot be read: {watched.message}")
        if watched.problem is not None:
            raise NotKeptError(watched.problem)
        yield watched
