"""The decorator that gives public objects the path that users import them from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Public = TypeVar("_Public", bound=type | Callable[..., object])


def public(module: str) -> Callable[[_Public], _Public]:
    """Return a decorator that sets `__module__`, which tracebacks, pickles and the docs show.

    Args:
        module: The package that users import the object from, such as `"finetunelib.export"`.
    """

    def decorate(public_object: _Public) -> _Public:
        public_object.__module__ = module
        return public_object

    return decorate
