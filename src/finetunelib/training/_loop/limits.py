"""The limits of a `fit`: epochs, steps, and how often its data can be read."""

from __future__ import annotations

from collections.abc import Mapping

from finetunelib._arguments import is_whole
from finetunelib.data._batches import Batches
from finetunelib.errors import InvalidArgumentError


def check_limits(epochs: int | None, max_steps: int | None) -> None:
    """Check that a `fit` has a limit.

    Raises:
        InvalidArgumentError: If neither limit is given, or one is not a whole number of at least
            1.
    """
    if epochs is None and max_steps is None:
        raise InvalidArgumentError("`fit` needs a limit: pass `epochs`, `max_steps` or both.")
    for name, limit in (("epochs", epochs), ("max_steps", max_steps)):
        if limit is not None and not (is_whole(limit) and limit >= 1):
            raise InvalidArgumentError(
                f"`{name}` must be a whole number of at least 1, got {limit!r}."
            )


def check_replayable(data: Mapping[str, Batches | None], epochs: int | None) -> None:
    """Check that data which can be read only once is not read again.

    Raises:
        InvalidArgumentError: If it is an iterator and `epochs` is not 1.
    """
    for name, batches in data.items():
        if batches is not None and not batches.replayable and epochs != 1:
            raise InvalidArgumentError(
                f"`{name}` is an iterator, which can be read only once, so `epochs` must be 1, "
                f"got {epochs}. Pass a list, a DataLoader or another iterable for more."
            )
