"""Names in a message: enough of them to act on, and how many are left out."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 8


def listed(names: Sequence[str]) -> str:
    """Return the names after one another, and only the number of those beyond the first eight."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def quoted(names: Sequence[str]) -> str:
    """Return the names as `listed` does, each in backquotes."""
    return listed([f"`{name}`" for name in names])
