"""The progress of a comparison, shown only if it takes long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from finetunelib._progress import Progress, choose_progress

#: The number of seconds after which a comparison shows its progress.
_LONG = 15.0


@contextlib.contextmanager
def long_comparison() -> Iterator[Callable[[int], None]]:
    """Yield a function that counts samples, and show their number if the block takes long."""
    started = time.monotonic()
    shown: list[Progress] = []
    samples = 0

    def count(more: int) -> None:
        nonlocal samples
        samples += more
        if not shown and time.monotonic() - started > _LONG:
            shown.append(choose_progress(enabled=True))
            shown[0].start("Comparing the file with the model", None)
        for progress in shown:
            progress.advance()

    try:
        yield count
    except BaseException:
        for progress in shown:
            progress.abort()
        raise
    for progress in shown:
        seconds = time.monotonic() - started
        progress.finish(
            f"Compared the file with the model on {samples} samples in {seconds:.0f} s."
        )
