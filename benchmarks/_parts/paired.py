"""Times of trainers that take turns, and their ratios within each round."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: The hand-written loop, this library, and a second hand-written loop that shows the noise.
HAND, OURS, NOISE = "hand", "finetunelib", "hand_again"

#: What a run returns: the function to time, prepared.
Prepared = Callable[[], object]


def spread(values: Sequence[float], name: str, digits: int = 3) -> dict[str, Any]:
    """Return the median of values, and their quartiles if there are several."""
    if len(values) < 2:
        return {name: round(values[0], digits)}
    lower, middle, upper = (round(value, digits) for value in statistics.quantiles(values))
    return {name: middle, f"{name}_quartiles": [lower, upper]}


def alternate(
    prepare: Mapping[str, Callable[[], Prepared]],
    rounds: int,
    warm_up: Mapping[str, Callable[[], Prepared]] | None = None,
) -> dict[str, Any]:
    """Run functions in turns, in another order in each round, and compare their processor times.

    Args:
        prepare: For each name, a function that returns the function to time.
        rounds: The number of rounds, after one that is not counted.
        warm_up: Functions for that round, if those to time take long.

    Returns:
        For each name: seconds, the ratio to the hand-written loop and to this library; or the
        error that stopped it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in prepare}
    failed: dict[str, Any] = {}
    for number in range(rounds + 1):
        names = [name for name in prepare if name not in failed]
        shift = number % len(names)
        gc.collect()
        for name in [*names[shift:], *names[:shift]]:
            try:
                taken = processor_time((prepare if number else warm_up or prepare)[name]())
            except Exception as error:  # noqa: BLE001 - a trainer that cannot do this is reported
                failed[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
                continue
            if number:
                seconds[name].append(taken)
            print(f"  {name}: {taken:.3f} s", file=sys.stderr)
    return {name: failed.get(name) or _compared(name, seconds, failed) for name in prepare}


def processor_time(run: Prepared) -> float:
    """Return the processor time of a function in seconds."""
    started = time.process_time()
    run()
    return time.process_time() - started


def _compared(
    name: str, seconds: Mapping[str, list[float]], failed: Mapping[str, Any]
) -> dict[str, Any]:
    found = spread(seconds[name], "seconds", 4)
    for other, key in ((HAND, "to_hand"), (OURS, "to_finetunelib")):
        if other in seconds and other not in failed:
            pairs = zip(seconds[name], seconds[other], strict=True)
            found |= spread([own / theirs for own, theirs in pairs], key)
    return found


def with_noise(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the label and the trainer of each row, with a second hand-written loop."""
    return [(name, name) for name in names] + ([(NOISE, HAND)] if HAND in names else [])
