"""Whether a lower or a higher value of a measure is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from finetunelib._typing import Mode


def directions(
    metrics: Mapping[str, object], columns: Iterable[str], val_sets: Iterable[str] = ()
) -> dict[str, Mode]:
    """Return the direction of each column whose direction is known.

    A lower loss is better. A metric declares its direction with `higher_is_better`, as those of
    torchmetrics do; a metric function may have such an attribute too.

    Args:
        metrics: The metrics by name.
        columns: The columns of the history, with `train_` or `val_` before the name. A metric with
            several values has several columns, whose names begin with its own.
        val_sets: The names of several sets of validation data, which follow `val_`.
    """
    prefixes = tuple(f"val_{name}_" for name in val_sets)
    known: dict[str, Mode] = {}
    for column in columns:
        prefix = next(filter(column.startswith, prefixes), "")
        name = column.removeprefix(prefix) if prefix else column.partition("_")[2]
        if name == "loss":
            known[column] = "min"
            continue
        owners = [metric for metric in metrics if name == metric or name.startswith(f"{metric}_")]
        if owners:
            higher = getattr(metrics[max(owners, key=len)], "higher_is_better", None)
            if isinstance(higher, bool):
                known[column] = "max" if higher else "min"
    return known
