"""The size of the last batch of ready batches, where it is known before they are read."""

from __future__ import annotations

from torch.utils.data import BatchSampler, DataLoader

from finetunelib.data._batch import length_of


def last_batch_size(batches: object) -> int | None:
    """Return the number of samples in the last batch of a list or a DataLoader, or `None`."""
    if isinstance(batches, list):
        return length_of(batches[-1]) if batches else None
    if not isinstance(batches, DataLoader) or type(batches.batch_sampler) is not BatchSampler:
        return None
    try:
        samples = len(batches.sampler)  # type: ignore[arg-type]  # a TypeError is expected
    except TypeError:
        return None
    size = batches.batch_size
    if not size or not samples:
        return None
    return size if batches.drop_last else samples % size or size


def has_short_last_batch(batches: object) -> bool:
    """Return whether a batch is known to be shorter than the others of a list or a DataLoader."""
    if isinstance(batches, list):
        return len({length_of(batch) for batch in batches}) > 1
    last = last_batch_size(batches)
    if last is None or not isinstance(batches, DataLoader) or len(batches) < 2:
        return False
    return batches.batch_size is not None and last < batches.batch_size
