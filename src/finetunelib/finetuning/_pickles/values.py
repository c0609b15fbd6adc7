"""What `scan` knows about the values of a pickle without creating them, and their limits."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

#: Deeper nesting could overflow the stack of whatever walks the content.
_DEEPEST = 100

#: The largest number of values when shared containers are counted at each of their uses. Few bytes
#: can nest shared containers to billions of values, which a copy or a comparison would visit.
_MOST_VALUES = 10_000_000

#: Hashing a tuple visits all of its values each time.
_LARGEST_KEY = 100

#: The largest number of keys with equal hashes, which make a dict slow.
_EQUAL_HASHES = 1000


class BadPickleError(ValueError):
    """A pickle is damaged, takes too much memory, or contains what torch.save does not write."""


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle refers to a class or function that weights do not need.

    Attributes:
        name: Its dotted name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it refers to GLOBAL {name}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Global:
    """A class, function or dtype that a pickle refers to."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """A string or bytes too long to be kept, or the result of a call."""

    length: int


@dataclass(frozen=True, slots=True)
class StorageRef:
    """The storage of tensors. Sizes are in bytes."""

    size: int
    item_size: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor. Its size in bytes counts repeated elements."""

    size: int


@dataclass(slots=True, eq=False)
class Container:
    """A tuple, list, dict or set.

    Attributes:
        kind: The class, such as `tuple` or `dict`.
        items: The values, for a dict keys and values in turn.
    """

    kind: type
    items: list[Any] = field(default_factory=list)  # Any: what a pickle contains


class Keys:
    """Checks the keys of dicts and the members of sets."""

    def __init__(self) -> None:
        self._seen: set[object] = set()
        self._hashes: dict[int, int] = {}

    def check(self, key: object) -> None:
        """Check that a key is hashable, small, and not one of many with equal hashes.

        Raises:
            BadPickleError: If it is not.
        """
        if isinstance(key, str | Text):
            return  # The hashes of strings are random.
        value = _hashable(key)
        if value in self._seen:
            return
        number = hash(value)
        count = self._hashes[number] = self._hashes.get(number, 0) + 1
        if count > _EQUAL_HASHES:
            raise BadPickleError("too many of its keys have the same hash")
        self._seen.add(value)


def _hashable(key: object) -> object:
    if isinstance(key, Container):
        if key.kind is not tuple or len(key.items) > _LARGEST_KEY:
            raise BadPickleError("a key is not a string, a number or a short tuple")
        if any(isinstance(item, Container) for item in key.items):
            raise BadPickleError("a key is a nested tuple")
        return tuple(key.items)
    return key


def check_nesting(root: object) -> None:
    """Check the depth of nested containers, and the number of values in them.

    Raises:
        BadPickleError: If there are too many, or if a container contains itself.
    """
    if not isinstance(root, Container):
        return
    sizes: dict[int, int] = {}  # of finished containers, and 0 of those in progress
    stack: list[tuple[Container, int]] = [(root, 0)]
    while stack:
        container, position = stack.pop()
        if position == 0:
            sizes[id(container)] = 0
            if len(stack) >= _DEEPEST:
                raise BadPickleError(f"its content is nested more than {_DEEPEST} levels deep")
        inner = next(
            (
                place
                for place in range(position, len(container.items))
                if isinstance(container.items[place], Container)
                and id(container.items[place]) not in sizes
            ),
            None,
        )
        if inner is not None:
            stack.append((container, inner + 1))
            stack.append((container.items[inner], 0))
            continue
        total = 1 + len(container.items)
        for item in container.items:
            if isinstance(item, Container):
                if sizes[id(item)] == 0:
                    raise BadPickleError("a container in it contains itself")
                total += sizes[id(item)]
        if total > _MOST_VALUES:
            raise BadPickleError(f"its content unfolds to more than {_MOST_VALUES:,} values")
        sizes[id(container)] = total
