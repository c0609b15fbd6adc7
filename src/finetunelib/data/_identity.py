"""Whether two calls got the same data, without keeping the data alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

#: More parts than this are not compared; the data then counts as different.
_MOST_PARTS = 10_000


class DataIdentity:
    """Which objects the data of a `fit` consists of: tensors, arrays, datasets.

    A new tuple or DataLoader of the same tensors or the same dataset is the same data.
    """

    def __init__(self, data: Any) -> None:  # Any: data of any kind that `fit` accepts, or None.
        parts = [part for part, _ in zip(_parts(data), range(_MOST_PARTS + 1), strict=False)]
        self._parts = [_reference(part) for part in parts]

    def is_same(self, other: DataIdentity) -> bool:
        """Return whether both consist of the same objects, which still exist."""
        if not len(self._parts) == len(other._parts) <= _MOST_PARTS:
            return False
        pairs = zip(self._parts, other._parts, strict=True)
        return all(one() is two() is not None for one, two in pairs)


def _parts(data: Any) -> Iterator[Any]:
    """Yield the objects that data consists of."""
    if isinstance(data, list | tuple):
        for part in data:
            yield from _parts(part)
    elif isinstance(data, Mapping):
        for part in data.values():
            yield from _parts(part)
    elif isinstance(data, DataLoader):
        yield from _parts(data.dataset)
    elif type(data) is TensorDataset:
        yield from data.tensors
    else:
        yield data


def _reference(part: object) -> Callable[[], object]:
    try:
        return weakref.ref(part)
    except TypeError:
        return lambda: part  # A number or a string, for example.
