"""What a dataset consists of, to notice when it changes.

Compared are the attributes, the elements of containers, what the functions of the user's code
refer to, the versions of tensors and the values of arrays. What objects without attributes contain,
such as open files and data frames, is not.
"""

from __future__ import annotations

import ctypes
import logging
import random
import zlib
from array import array
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import is_
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from finetunelib.data._cache.references import random_names, references

_LEAVES = (bool, int, float, complex, str, bytes, type(None), range, slice)
_SKIPPED = (*_LEAVES, ModuleType, logging.Logger, torch.dtype, torch.device)
_GENERATORS = (
    torch.Generator,
    np.random.Generator,
    np.random.BitGenerator,
    np.random.RandomState,
    random.Random,
)

#: Other objects whose bytes are compared. A number of ctypes is in a `multiprocessing.Value`.
_BUFFERS: tuple[type[Any], ...] = (
    type(ctypes.c_int()).__mro__[1],
    ctypes.Array,
    ctypes.Structure,
    bytearray,
    array,
)

#: The most objects that are looked at, without numbers and strings.
_MOST_OBJECTS = 300_000

#: The bytes of arrays whose values are compared, and the size of tensors that are, since a tensor
#: may also be changed through an array that shares its memory.
_MOST_BYTES, _SMALL_TENSOR = 2**28, 2**20

#: The most objects that are compared at every batch, and the most attributes of one.
_MOST_AT_A_BATCH = 32


class Contents:
    """The objects that a dataset consists of, as they are now.

    Attributes:
        why_random: Why the dataset may yield other samples each time, or `None`.
    """

    def __init__(self, dataset: object) -> None:
        self._owner = type(dataset).__name__
        self._length = _length(dataset)
        self._dataset = dataset
        self._entries: list[_Entry] = []
        self._values: list[tuple[Any, object]] = []  # Any: a tensor, an array or a buffer.
        self._digested = 0
        self.why_random: str | None = None
        self._walk(dataset)
        small = (entry for entry in self._entries if entry.is_small)
        self._light = list(islice(small, _MOST_AT_A_BATCH))
        tensors = (value for value, _ in self._values if isinstance(value, Tensor))
        self._versions = [(each, _version(each)) for each in islice(tensors, _MOST_AT_A_BATCH)]

    def why_changed(self) -> str | None:
        """Return what has changed since then, or `None`."""
        if _length(self._dataset) != self._length:
            return f"the length of {self._owner} has changed"
        for entry in self._entries:
            if (changed := entry.why_changed()) is not None:
                return changed
        for value, before in self._values:
            if _state(value) != before:
                return f"values of {self._owner} were changed in place ({type(value).__name__})"
        return None

    def why_just_changed(self) -> str | None:
        """Return what has changed, or `None`; for every batch, so only what is fast to compare.

        These are attributes, small containers, and tensors.
        """
        for entry in self._light:
            if (changed := entry.why_changed()) is not None:
                return changed
        for tensor, version in self._versions:
            if _version(tensor) != version:
                return f"values of {self._owner} were changed in place ({type(tensor).__name__})"
        return None

    def restore(self) -> None:
        """Set attributes, dicts, lists and sets back to what they were."""
        for entry in self._entries:
            entry.restore()

    def _walk(self, dataset: object) -> None:
        seen: dict[int, object] = {}
        waiting: list[object] = [dataset]
        while waiting:
            value = waiting.pop()
            if isinstance(value, _SKIPPED) or id(value) in seen:
                continue
            seen[id(value)] = value  # A reference, because the ids of dead objects are used again.
            if len(seen) > _MOST_OBJECTS:
                self.why_random = f"{self._owner} consists of too many objects to notice changes"
                return
            if (reason := _why_random(value)) is not None:
                self.why_random = reason
                return
            if self._is_value(value):
                continue
            for entry in _entries(value):
                self._entries.append(entry)
                waiting.extend(entry.elements)

    def _is_value(self, value: object) -> bool:
        """Record the state of a tensor or an array, and return whether it is one."""
        if isinstance(value, (Tensor, *_BUFFERS)):
            self._values.append((value, _state(value)))
            return True
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            return False
        self._digested += value.nbytes
        if not isinstance(value, np.memmap) and self._digested <= _MOST_BYTES:
            self._values.append((value, _state(value)))
        return True


class _Entry:
    """An object, and what it refers to."""

    __slots__ = ("_container", "_copy", "_read", "_title", "elements")

    def __init__(self, title: str, read: Callable[[], tuple[Any, ...]], container: Any) -> None:
        self._title = title
        self._read = read
        self._container = container
        self._copy = container.copy() if container is not None else None
        self.elements = read()

    @property
    def is_small(self) -> bool:
        """Whether these are attributes or a container, and few."""
        return self._container is not None and 0 < len(self.elements) <= _MOST_AT_A_BATCH

    def why_changed(self) -> str | None:
        """Return what has changed, or `None`."""
        now, before = self._read(), self.elements
        if len(now) == len(before) and all(map(is_, now, before)):
            return None
        old, new = self._copy, self._container
        if not self._title or old is None or new is None:
            return "the content of a list, dict, set or function in it has changed"
        names = [n for n in {**old, **new} if n not in old or n not in new or old[n] is not new[n]]
        return f"the attribute {', '.join(map(repr, names))} of {self._title} has changed"

    def restore(self) -> None:
        if self._container is None or self.why_changed() is None:
            return
        self._container.clear()
        add = self._container.extend if isinstance(self._copy, list | deque) else None
        (add or self._container.update)(self._copy)


def _entries(value: object) -> list[_Entry]:
    """Return what an object refers to: its elements, its attributes, the names in its code."""
    found = []
    if isinstance(value, dict):
        found.append(_Entry("", lambda: (*value.keys(), *value.values()), value))
    elif isinstance(value, list | set | deque):
        found.append(_Entry("", lambda: tuple(value), value))
    elif isinstance(value, tuple | frozenset):
        found.append(_Entry("", lambda: tuple(value), None))
    elif isinstance(value, np.ndarray):  # of objects
        found.append(_Entry("", lambda: tuple(value.ravel().tolist()), None))
    attributes = None if isinstance(value, type) else getattr(value, "__dict__", None)
    if type(attributes) is dict:
        read = attributes.values
        found.append(_Entry(type(value).__name__, lambda: (*attributes, *read()), attributes))
    found.append(_Entry("", lambda: references(value), None))
    return found


def _why_random(value: object) -> str | None:
    """Return why samples that come from an object may differ each time, or `None`."""
    if isinstance(value, _GENERATORS):
        return f"it contains a random generator ({type(value).__module__}.{type(value).__name__})"
    if isinstance(value, FunctionType) and (names := random_names(value)):
        return f"its code creates random numbers ({', '.join(names)} in `{value.__qualname__}`)"
    if isinstance(value, type):
        return None
    if isinstance(value, IterableDataset):
        return f"{type(value).__name__} is an IterableDataset"
    if hasattr(type(value), "__getitem__") and callable(getattr(value, "set_epoch", None)):
        return f"{type(value).__name__} has a method `set_epoch`, so each epoch may differ"
    return None


def _length(dataset: Any) -> int:
    return len(dataset)


def _state(value: Any) -> object:  # Any: a tensor, an array or a buffer.
    """Return what changes if a value is changed in place."""
    if isinstance(value, _BUFFERS):
        return bytes(value)
    if isinstance(value, np.ndarray):
        return value.shape, _checksum(value)
    version = _version(value)
    plain = type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.is_quantized or value.is_conj() or value.is_neg():
        return version, value.shape
    small = value.numel() * value.element_size() <= _SMALL_TENSOR
    # As bytes, because numpy lacks bfloat16.
    values = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if small else None
    return version, value.shape, value.data_ptr(), None if values is None else _checksum(values)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch's own counter


def _checksum(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
