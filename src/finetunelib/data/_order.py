"""The order of the samples of a DataLoader."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from finetunelib.errors import DataError


def rows_of(source: object, name: str) -> int | None:
    """Return the number of samples that a source yields, or `None` if it is unknown.

    Args:
        source: A DataLoader, or any other iterable of batches, whose own order is that of the data.
        name: The name of the data, for messages.

    Raises:
        DataError: If it is a DataLoader that shuffles, repeats or leaves out samples.
    """
    if not isinstance(source, DataLoader):
        return None
    if isinstance(source.dataset, IterableDataset):
        if source.num_workers > 1:
            raise DataError(
                f"`{name}` is a DataLoader of an IterableDataset with {source.num_workers} "
                "workers, which yield their batches in turns and may repeat samples. Pass a "
                "DataLoader with `num_workers=1`."
            )
        return None
    if not _in_order(source):
        raise DataError(
            f"`{name}` is a DataLoader that does not yield its dataset in order, so the rows would "
            f"be in another order than the data. Pass its dataset, `{name}.dataset`, or a "
            "DataLoader with `shuffle=False`. For rows in the order of the batches, pass "
            "`list(loader)`."
        )
    samples = len(source.dataset) if isinstance(source.dataset, Sized) else None
    if samples is None or source.batch_sampler is None:
        return None
    sampler = source.batch_sampler
    if getattr(sampler, "drop_last", False) and samples % getattr(sampler, "batch_size", 1):
        raise DataError(
            f"`{name}` is a DataLoader with `drop_last=True`, which leaves out samples of the "
            "last batch. Pass a DataLoader with `drop_last=False`."
        )
    return samples


def _in_order(loader: DataLoader[Any]) -> bool:
    if loader.batch_size is None and loader.batch_sampler is not None:  # the user's own
        batch_sampler = loader.batch_sampler
        own = type(batch_sampler) is BatchSampler
        return own and type(getattr(batch_sampler, "sampler", None)) is SequentialSampler
    return type(loader.sampler) is SequentialSampler
