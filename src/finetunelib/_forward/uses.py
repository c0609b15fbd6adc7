"""The tensors that an operation uses, for modes that record them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def values_used(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments of an operation, those in lists and tuples one by one.

    Args:
        function: The operation, as a `TorchFunctionMode` receives it. Reading an attribute, such as
            `.shape` or `.dtype`, is not a use.
        args: Its positional arguments.
        kwargs: Its named arguments.
    """
    if getattr(function, "__name__", "") == "__get__":
        return
    for value in (*args, *kwargs.values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value
