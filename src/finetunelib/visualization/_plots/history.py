"""`plot_history`: how the loss and the metrics of trainings went, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from finetunelib._public import public
from finetunelib.errors import EmptyDataError, InvalidArgumentError, InvalidTypeError
from finetunelib.training import History
from finetunelib.visualization._plots.style import (
    LIGHT,
    Theme,
    check_drawable,
    check_title,
    drawing,
    headline,
    new_figure,
    quiet_axes,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Columns that say when and how fast, and are drawn only where they are asked for.
_CLOCKS = ("epoch", "step", "lr", "seconds", "samples_per_second")

#: The parts of the data, by what their columns begin with.
_PARTS = {"train_": "training", "val_": "validation"}

#: Where a run has more epochs than this, not each of them gets a dot.
_DOTTED = 15

#: The shapes of dots, for runs beyond the number of hues.
_MARKERS = ("o", "s", "^", "D")

_PANELS_A_ROW = 3

_Place: TypeAlias = Literal["outside lower left", "outside lower right"]

#: The characters of a run's name that a legend shows.
_LONGEST = 32


@dataclass(frozen=True, slots=True)
class _Line:
    """One column of one run.

    Attributes:
        epochs: The numbers of the epochs that measured it.
        values: What they measured, which may not be finite.
    """

    run: int
    part: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


@public("finetunelib.visualization")
def plot_history(
    history: History | Mapping[str, History],
    *,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw the loss and the metrics of one training, or of several to compare them.

    Each quantity has a panel. Training is dashed and validation is solid; with several runs each
    has a color of its own. A dot ends each line, so that a run that stopped early shows where. A
    value that is not finite leaves a gap, with a cross under it. Mind that the training values of
    an epoch are means over the epoch, while the model was getting better, and the validation
    values are of its end.

    Args:
        history: What `fit` returned, or what `History.from_json` read; or several of them by
            name, in the order of the legend. At most 24.
        metrics: What to draw, without `train_` and `val_`, such as `["loss", "accuracy"]`. `None`
            is the loss and every metric that a run measured; `"lr"`, `"seconds"` and
            `"samples_per_second"` are drawn where they are named.
        title: A line above the panels.
        dark: Whether the picture is for a dark page.

    Returns:
        A figure that no window shows. In a notebook it is the last line of a cell; elsewhere
        `figure.savefig("history.png")` writes it. Its axes are the panels in order.

    Raises:
        MissingDependencyError: Matplotlib is not installed: `pip install "finetunelib[plots]"`.
        InvalidTypeError: `history` holds something else than histories, or another argument is of
            the wrong kind.
        InvalidArgumentError: A metric was not measured, or there are more runs than can be told
            apart.
        EmptyDataError: There is no run, or no epoch in one.

    Example:
        >>> from finetunelib.training import History
        >>> from finetunelib.visualization import plot_history
        >>> history = History([{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}])
        >>> figure = plot_history({"first try": history})
        >>> figure.axes[0].get_title("left")
        'Loss'
    """
    check_drawable(dark)
    check_title(title)
    runs = _runs(history)
    quantities = _quantities(runs, metrics)
    with drawing(dark) as theme:
        columns = min(len(quantities), _PANELS_A_ROW)
        rows = math.ceil(len(quantities) / columns)
        figure = new_figure(max(4.2 * columns, 5.0), 2.9 * rows + 0.5)
        if title:
            headline(figure, theme, shortened(title, 30 * columns))
        last_epoch = max(_epochs(run)[-1] for run in runs.values())
        first_epoch = min(_epochs(run)[0] for run in runs.values())
        dotted = max(map(len, runs.values())) <= _DOTTED
        broken = False
        for position, name in enumerate(quantities):
            axes = figure.add_subplot(rows, columns, position + 1)
            lines = list(_lines(runs, name))
            broken |= _draw_panel(axes, theme, lines, single=len(runs) == 1, dotted=dotted)
            axes.set_title(_heading(name))
            _style_panel(axes, theme, first_epoch, last_epoch)
        parts = [part for part in _PARTS.values() if _has_part(runs, quantities, part)]
        _draw_legends(figure, theme, list(runs), parts, broken=broken)
    return figure


def _runs(history: object) -> dict[str, History]:
    """Return the runs by name; a single one has no name."""
    if isinstance(history, History):
        runs = {"": history}
    elif isinstance(history, Mapping):
        runs = dict(history)
    else:
        hint = " Pass `trainer.history`." if hasattr(history, "history") else ""
        raise InvalidTypeError(
            "`history` must be a History, or a mapping of names to histories, but is of type "
            f"{type(history).__name__}.{hint}"
        )
    if not runs:
        raise EmptyDataError("`history` is an empty mapping. Pass at least one run.")
    for name, run in runs.items():
        if not isinstance(name, str) or not isinstance(run, History):
            raise InvalidTypeError(
                "`history` must map names to histories, but maps "
                f"{name!r} to an object of type {type(run).__name__}."
            )
        if not run.rows:
            where = f"`history[{name!r}]`" if name else "`history`"
            raise EmptyDataError(f"{where} holds no epoch. Call `fit` first.")
    most = len(LIGHT.series) * len(_MARKERS)
    if len(runs) > most:
        raise InvalidArgumentError(
            f"`history` must hold at most {most} runs, which is what can be told apart, but holds "
            f"{len(runs)}."
        )
    return runs


def _quantities(runs: Mapping[str, History], metrics: Sequence[str] | None) -> list[str]:
    """Return what to draw, in order."""
    columns = dict.fromkeys(name for run in runs.values() for name in run.names)
    parts = tuple(_PARTS)
    measured = dict.fromkeys(
        name.removeprefix("train_").removeprefix("val_")
        for name in columns
        if name.startswith(parts)
    )
    others = [name for name in columns if not name.startswith(parts) and name not in _CLOCKS]
    known = [*measured, *others]
    if metrics is None:
        if not known:
            raise InvalidArgumentError(
                f"`history` holds nothing to draw but {', '.join(columns)}. Name one in `metrics`."
            )
        return known
    if isinstance(metrics, str | bytes) or not isinstance(metrics, Sequence):
        raise InvalidTypeError(
            f'`metrics` must be a sequence of names, such as ["loss"], but is {metrics!r}.'
        )
    if not metrics:
        raise InvalidArgumentError("`metrics` is empty. Leave it out to draw everything.")
    drawable = [*known, *(name for name in columns if name in _CLOCKS[2:])]
    for name in metrics:
        if name not in drawable:
            raise InvalidArgumentError(
                f"`metrics` names {name!r}, which no run has measured. There are "
                f"{', '.join(drawable)}."
            )
    return list(dict.fromkeys(metrics))


def _epochs(run: History) -> list[float]:
    return [row.get("epoch", number) for number, row in enumerate(run.rows, start=1)]


def _lines(runs: Mapping[str, History], name: str) -> Iterator[_Line]:
    """Yield what each run measured of one quantity."""
    names = {**{f"{prefix}{name}": part for prefix, part in _PARTS.items()}, name: ""}
    for number, run in enumerate(runs.values()):
        for column, part in names.items():
            points = [
                (epoch, row[column])
                for epoch, row in zip(_epochs(run), run.rows, strict=True)
                if column in row
            ]
            if points:
                epochs, values = zip(*points, strict=True)
                yield _Line(number, part, epochs, values)


def _has_part(runs: Mapping[str, History], quantities: Sequence[str], part: str) -> bool:
    return any(line.part == part for name in quantities for line in _lines(runs, name))


def _draw_panel(
    axes: Axes, theme: Theme, lines: Sequence[_Line], *, single: bool, dotted: bool
) -> bool:
    """Draw the lines of one quantity, and return whether a value of theirs was not finite."""
    broken = False
    for line in lines:
        color, marker = _look(theme, line, single=single)
        values = [value if math.isfinite(value) else math.nan for value in line.values]
        (drawn,) = axes.plot(line.epochs, values, color=color, **_dashes(line.part, single=single))
        drawn.set_gid(f"{line.run}:{line.part}")
        drawn.set(marker=marker, markersize=4.5, markevery=_dots(values, every=dotted))
        gaps = [
            epoch
            for epoch, value in zip(line.epochs, line.values, strict=True)
            if not math.isfinite(value)
        ]
        if gaps:
            broken = True
            axes.plot(
                gaps,
                [0.0] * len(gaps),
                linestyle="none",
                marker="x",
                markersize=5.5,
                markeredgewidth=1.4,
                color=color,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
    return broken


def _look(theme: Theme, line: _Line, *, single: bool) -> tuple[str, str]:
    """Return the color and the shape of the dots of a line."""
    hues = len(theme.series)
    if single:
        return theme.series[1 if line.part == "training" else 0], _MARKERS[0]
    return theme.series[line.run % hues], _MARKERS[line.run // hues]


def _dashes(part: str, *, single: bool) -> dict[str, Any]:
    if part != "training":
        return {"linewidth": 1.9, "zorder": 3}
    return {
        "linewidth": 1.5,
        "linestyle": (0, (3.2, 1.6)),
        "zorder": 2,
        "alpha": 1.0 if single else 0.75,
    }


def _dots(values: Sequence[float], *, every: bool) -> list[int]:
    """Return which values get a dot: every one, or the last and those that stand alone."""
    finite = [number for number, value in enumerate(values) if not math.isnan(value)]
    if every:
        return finite
    known = set(finite)
    alone = [n for n in finite if n - 1 not in known and n + 1 not in known]
    return sorted({*alone, *finite[-1:]})


def _heading(name: str) -> str:
    if name == "lr":
        return "Learning rate"
    words = name.replace("_", " ")
    return shortened(words[:1].upper() + words[1:], 40)


def _style_panel(axes: Axes, theme: Theme, first: float, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    quiet_axes(axes, theme)
    axes.grid(axis="y")
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(theme.muted)
    margin = max(0.03 * (last - first), 0.15) if last > first else 0.6
    axes.set_xlim(first - min(margin, 0.6), last + margin)  # There is no epoch 0 to be shown.
    axes.xaxis.set_major_locator(
        MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    )
    axes.set_xlabel("epoch")


def _draw_legends(
    figure: Figure, theme: Theme, runs: Sequence[str], parts: Sequence[str], *, broken: bool
) -> None:
    """Write under the panels which color is which run, and which line is which part."""
    single = len(runs) == 1
    named = [] if single else list(_run_entries(theme, runs))
    others = list(_part_entries(theme, parts, runs[0] if single else "", single, broken))
    if named and others and _columns(figure, named + others) >= len(named + others):
        _draw_legend(figure, named, "outside lower left")
        _draw_legend(figure, others, "outside lower right")
    elif named or others:
        _draw_legend(figure, named + others, "outside lower left")


def _columns(figure: Figure, entries: Sequence[tuple[Line2D, str]]) -> int:
    """Return how many entries of a legend fit side by side."""
    widest = max(len(shortened(name, _LONGEST)) for _, name in entries)
    return max(1, int(figure.get_figwidth() / (0.65 + 0.085 * widest)))  # inches


def _draw_legend(figure: Figure, entries: Sequence[tuple[Line2D, str]], place: _Place) -> None:
    # Names are written in afterwards: a legend leaves those out that begin with an underscore.
    legend = figure.legend(
        [handle for handle, _ in entries],
        ["name"] * len(entries),
        loc=place,
        ncols=min(len(entries), _columns(figure, entries)),
        handlelength=2.4,
        borderaxespad=0.2,
    )
    for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(shortened(name, _LONGEST))


def _run_entries(theme: Theme, runs: Sequence[str]) -> Iterator[tuple[Line2D, str]]:
    from matplotlib.lines import Line2D

    for number, name in enumerate(runs):
        color, marker = _look(theme, _Line(number, "", (), ()), single=False)
        yield Line2D([], [], color=color, marker=marker, markersize=4.5, linewidth=1.9), name


def _part_entries(
    theme: Theme, parts: Sequence[str], run: str, single: bool, broken: bool
) -> Iterator[tuple[Line2D, str]]:
    from matplotlib.lines import Line2D

    for part in parts:
        color = theme.muted
        if single:
            color, _ = _look(theme, _Line(0, part, (), ()), single=True)
        handle = Line2D([], [], color=color)
        handle.set(**_dashes(part, single=single))
        yield handle, f"{run}, {part}" if run else part
    if broken:
        cross = Line2D([], [], color=theme.muted, marker="x", markersize=5.5, linestyle="none")
        yield cross, "not finite"
