"""The lines of a history plot: which runs, which quantities, and their values per epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.training import History

#: Columns that are not measurements of the model. The last three are drawn on request.
_CLOCKS = ("epoch", "step", "lr", "seconds", "samples_per_second")

#: The parts of the data, by the prefix of their columns.
PARTS = {"train_": "training", "val_": "validation"}


@dataclass(frozen=True, slots=True)
class Line:
    """One column of one run.

    Attributes:
        run: The position of the run among all runs.
        part: `"training"`, `"validation"`, or empty for columns such as `lr`.
        epochs: The numbers of the epochs that have a value.
        values: The values, which may be non-finite.
    """

    run: int
    part: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def runs_of(history: object, most: int) -> dict[str, History]:
    """Return the runs by name. The name of a single history is empty.

    Args:
        history: The argument of the plot.
        most: The largest number of runs.

    Raises:
        InvalidTypeError: If `history` is not a History or a mapping of names to histories.
        EmptyDataError: If there are no runs, or a run has no epochs.
        InvalidArgumentError: If there are more than `most` runs.
    """
    if isinstance(history, History):
        runs = {"": history}
    elif isinstance(history, Mapping):
        runs = dict(history)
    else:
        hint = " Pass `trainer.history`." if hasattr(history, "history") else ""
        raise InvalidTypeError(
            "`history` must be a History, or a mapping of names to histories, got an object of "
            f"type {type(history).__name__}.{hint}"
        )
    if not runs:
        raise EmptyDataError("`history` is an empty mapping. Pass at least one run.")
    for name, run in runs.items():
        _check_run(name, run)
    if len(runs) > most:
        raise InvalidArgumentError(
            f"`history` must contain at most {most} runs, because more cannot be distinguished, "
            f"got {len(runs)}."
        )
    return runs


def quantities_of(runs: Mapping[str, History], metrics: Sequence[str] | None) -> list[str]:
    """Return the names of the quantities to draw, in order.

    Raises:
        InvalidTypeError: If `metrics` is not a sequence of names.
        InvalidArgumentError: If `metrics` is empty or names a quantity that no run measured, or
            if it is `None` and there are no measurements.
    """
    columns = dict.fromkeys(name for run in runs.values() for name in run.names)
    prefixes = tuple(PARTS)
    measured = dict.fromkeys(
        name.removeprefix("train_").removeprefix("val_")
        for name in columns
        if name.startswith(prefixes)
    )
    others = [name for name in columns if not name.startswith(prefixes) and name not in _CLOCKS]
    known = [*measured, *others]
    if metrics is None:
        if not known:
            raise InvalidArgumentError(
                "`history` contains no loss or metric, only "
                f"{', '.join(columns)}. Name one of these in `metrics`."
            )
        return known
    if isinstance(metrics, str | bytes) or not isinstance(metrics, Sequence):
        raise InvalidTypeError(
            f'`metrics` must be a sequence of names, such as ["loss"], got {metrics!r}.'
        )
    if not metrics:
        raise InvalidArgumentError("`metrics` is empty. Leave it out to draw all metrics.")
    drawable = [*known, *(name for name in columns if name in _CLOCKS[2:])]
    for name in metrics:
        if name not in drawable:
            raise InvalidArgumentError(
                f"`metrics` names {name!r}, which no run measured. Choose from "
                f"{', '.join(drawable)}."
            )
    return list(dict.fromkeys(metrics))


def epochs_of(run: History) -> list[float]:
    """Return the number of each epoch, counted from 1 if the history does not store it."""
    return [row.get("epoch", number) for number, row in enumerate(run.rows, start=1)]


def lines_of(runs: Mapping[str, History], quantity: str) -> Iterator[Line]:
    """Yield the lines of one quantity, those of the first run first."""
    columns = {**{f"{prefix}{quantity}": part for prefix, part in PARTS.items()}, quantity: ""}
    for number, run in enumerate(runs.values()):
        for column, part in columns.items():
            points = [
                (epoch, row[column])
                for epoch, row in zip(epochs_of(run), run.rows, strict=True)
                if column in row
            ]
            if points:
                epochs, values = zip(*points, strict=True)
                yield Line(number, part, epochs, values)


def _check_run(name: object, run: object) -> None:
    if not isinstance(name, str) or not isinstance(run, History):
        raise InvalidTypeError(
            "`history` must map names to histories, but maps "
            f"{name!r} to an object of type {type(run).__name__}."
        )
    if not run.rows:
        where = f"`history[{name!r}]`" if name else "`history`"
        raise EmptyDataError(f"{where} contains no epochs. Call `fit` first.")
