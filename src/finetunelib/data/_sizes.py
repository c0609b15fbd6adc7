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
