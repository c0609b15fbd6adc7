"""Names, sizes and other errors as they appear in messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetunelib._escapes import one_line

_SHOWN = 8


def listed(names: Sequence[str]) -> str:
    """Return the first eight names, separated by commas, and the number of the remaining ones."""
    shown = ", ".join(map(one_line, names[:_SHOWN]))
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def quoted(names: Sequence[str]) -> str:
    """Return the names as `listed` does, each in backquotes."""
    return listed([f"`{name}`" for name in names])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that a misspelled or shortened one most probably means, or `None`.

    A name that begins with the misspelled one comes first: `val_acc` means `val_accuracy`.
    """
    candidates = list(names)
    longer = [candidate for candidate in candidates if candidate.startswith(name)]
    if name and longer:
        return min(longer, key=len)
    import difflib  # Needed for messages only.

    return next(iter(difflib.get_close_matches(name, candidates, n=1)), None)


def type_and_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, if it has one."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error) else kind


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def readable_size(size: int) -> str:
    """Return a number of bytes in the largest decimal unit that is at most this size."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text, such as `2x3x224x224`, or `scalar` if it has no dimensions."""
    return "x".join(map(str, shape)) or "scalar"
