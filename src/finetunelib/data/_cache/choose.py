"""Whether the samples of data are kept in memory."""

from __future__ import annotations

from collections.abc import Callable

from finetunelib.data._batches import Batches
from finetunelib.data._datasets import DatasetBatches
from finetunelib.data._tensors import TensorBatches
from finetunelib.errors import InvalidArgumentError


def check_can_be_kept(batches: Batches, name: str) -> None:
    """Raise if samples cannot be kept, as far as that is known without reading any.

    Args:
        batches: The data.
        name: Its name, for messages.

    Raises:
        InvalidArgumentError: If it is neither in memory nor a dataset with a length, or has a
            `collate_fn`.
    """
    if isinstance(batches, TensorBatches):
        return
    if not isinstance(batches, DatasetBatches):
        reason = (
            f"`{name}` yields ready batches, or is an IterableDataset. Pass a Dataset with a length"
        )
    elif batches.has_collate_fn:
        reason = "`collate_fn` may return other batches each time. Pass `cache_data=False`"
    else:
        return
    raise InvalidArgumentError(f"`cache_data` is True, but {reason}.")


def with_cache(
    batches: Batches,
    name: str,
    *,
    required: bool,
    announce: Callable[[str], None],
    record: Callable[[bool], None],
) -> Batches:
    """Return batches of a dataset that keep its samples, and other batches as they are.

    Args:
        batches: The data.
        name: Its name, for messages.
        required: Whether it is an error if the samples of a dataset cannot be kept.
        announce: Is called with a line when it is decided that they are kept.
        record: Is called with whether the batches come from memory.
    """
    if not isinstance(batches, DatasetBatches) or batches.has_collate_fn:
        return batches
    # Imported here because the package should stay fast to import.
    from finetunelib.data._cache.batches import CachedBatches

    return CachedBatches(batches, name, required=required, announce=announce, record=record)
