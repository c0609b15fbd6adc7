"""The lines of a history plot: which runs, which quantities, and their values per epoch or step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        part: `"training"`, `"validation"`, a validation set such as `"validation, clean"`, or empty
            for columns such as `lr`.
        positions: The numbers of the epochs or steps that have a value.
        values: The values, which may be non-finite.
        set_number: The position of the validation set among several.
    """

    run: int
    part: str
    positions: tuple[float, ...]
    values: tuple[float, ...]
    set_number: int = 0


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
    prefixes, sets = tuple(PARTS), _columns_of_sets(columns)
    measured = dict.fromkeys(
        name.removeprefix("train_").removeprefix("val_")
        for name in columns
        if name.startswith(prefixes) and name not in sets
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


def axis_of(runs: Mapping[str, History]) -> str:
    """Return the column of the horizontal axis: the epochs if each row is about one of them.

    Rows that follow steps (`validate_every_n_steps`) are drawn over these.
    """
    by_epochs = all(
        after - before == 1
        for run in runs.values()
        for before, after in itertools.pairwise(epochs_of(run))
    )
    have_steps = all("step" in row for run in runs.values() for row in run.rows)
    return "epoch" if by_epochs or not have_steps else "step"


def positions_of(run: History, axis: str) -> list[float]:
    """Return the position of each row on an axis."""
    return epochs_of(run) if axis == "epoch" else [row["step"] for row in run.rows]


def lines_of(runs: Mapping[str, History], quantity: str, axis: str = "epoch") -> Iterator[Line]:
    """Yield the lines of one quantity over an axis, those of the first run first."""
    columns = {**{f"{prefix}{quantity}": part for prefix, part in PARTS.items()}, quantity: ""}
    of_sets = _columns_of_sets(dict.fromkeys(name for run in runs.values() for name in run.names))
    sets = list(dict.fromkeys(name for _, name in of_sets.values()))
    numbers = {}
    for column, (measured, name) in of_sets.items():
        if measured == quantity:
            columns[column], numbers[column] = f"validation, {name}", sets.index(name)
    for number, run in enumerate(runs.values()):
        for column, part in columns.items():
            points = [
                (position, row[column])
                for position, row in zip(positions_of(run, axis), run.rows, strict=True)
                if column in row
            ]
            if points:
                positions, values = zip(*points, strict=True)
                yield Line(number, part, positions, values, numbers.get(column, 0))


def parts_of(lines: Iterable[Line]) -> list[Line]:
    """Return one line of each part of the data, in the order of the legend."""
    parts = {line.part: line for line in lines if line.part}
    order = [*PARTS.values()]
    return sorted(
        parts.values(),
        key=lambda line: (
            order.index(line.part) if line.part in order else len(order),
            line.set_number,
        ),
    )


def _columns_of_sets(columns: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the quantity and the name of the set for the columns of several validation sets.

    The training columns tell where the name of a set ends: `val_clean_loss` belongs to `loss` if
    there is `train_loss` and no `train_clean_loss`.
    """
    names = list(columns)
    measured = [name.removeprefix("train_") for name in names if name.startswith("train_")]
    measured.sort(key=len, reverse=True)
    found: dict[str, tuple[str, str]] = {}
    for column in names:
        name = column.removeprefix("val_")
        if name == column or name in measured:
            continue
        quantity = next((each for each in measured if name.endswith(f"_{each}")), None)
        if quantity is not None:
            found[column] = quantity, name.removesuffix(f"_{quantity}")
    # The loss of each set is measured.
    return {column: of for column, of in found.items() if f"val_{of[1]}_loss" in found}


def _check_run(name: object, run: object) -> None:
    if not isinstance(name, str) or not isinstance(run, History):
        raise InvalidTypeError(
            "`history` must map names to histories, but maps "
            f"{name!r} to an object of type {type(run).__name__}."
        )
    if not run.rows:
        where = f"`history[{name!r}]`" if name else "`history`"
        raise EmptyDataError(f"{where} contains no epochs. Call `fit` first.")
