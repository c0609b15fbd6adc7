"""The style of all plots: colors for light and dark pages, fonts, titles, and new figures.

Matplotlib is imported only when something is drawn, because it is optional. Pyplot is not used:
no window opens, no backend is chosen, and no figure has to be closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetunelib._optional import require
from finetunelib.errors import InvalidTypeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Theme:
    """A color theme, with the color-blind safe hues of Okabe and Ito.

    Attributes:
        ground: The background.
        text: Titles and names.
        muted: Secondary text.
        grid: Lines behind the data.
        empty: Cells without samples.
        right: The color scale of correct predictions, from `empty` up.
        wrong: The color scale of mistakes, from `empty` up.
        series: The colors of lines.
    """

    ground: str
    text: str
    muted: str
    grid: str
    empty: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    series: tuple[str, ...]


LIGHT = Theme(
    ground="#ffffff",
    text="#1b1f24",
    muted="#59636e",
    grid="#e4e7eb",
    empty="#f3f5f7",
    right=("#f3f5f7", "#c3dcef", "#4a9ccd", "#0072b2", "#075685"),
    wrong=("#f3f5f7", "#fbd9bd", "#f0a066", "#d55e00", "#a84900"),
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
)
DARK = Theme(
    ground="#14171c",
    text="#eceff3",
    muted="#9da7b3",
    grid="#2c323a",
    empty="#1e232a",
    right=("#1e232a", "#173f5c", "#1b6ea3", "#3f9fd8", "#7cc8f4"),
    wrong=("#1e232a", "#55301a", "#9c4c16", "#e2702a", "#ff9d63"),
    series=("#56b4e9", "#f58b4c", "#2fbf95", "#e08fbe", "#f0e442", "#aebbff"),
)

#: The font that comes with matplotlib, which makes figures the same on every machine.
_FONT = "DejaVu Sans"

#: The first installed font of these draws the characters that `_FONT` lacks, such as Chinese.
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti TC",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)

SMALL = 8.0
TEXT = 9.0
TITLE = 10.5
HEADLINE = 12.0


@contextlib.contextmanager
def drawing(dark: bool) -> Iterator[Theme]:
    """Apply the library's style within the block. The user's settings are ignored and restored.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    check_drawable(dark)
    style = require("matplotlib.style", extra="plots")
    theme = DARK if dark else LIGHT
    with style.context(["default", _settings(theme)]):
        yield theme


def check_drawable(dark: object) -> None:
    """Check that a plot can be drawn, before a model runs for it.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
        InvalidTypeError: If `dark` is not a bool.
    """
    require("matplotlib", extra="plots")
    if not isinstance(dark, bool):
        raise InvalidTypeError(f"`dark` must be True or False, got {dark!r}.")


def check_title(title: object) -> None:
    """Check that a title is a string or `None`.

    Raises:
        InvalidTypeError: If it is not.
    """
    if title is not None and not isinstance(title, str):
        raise InvalidTypeError(f"`title` must be a string, got {title!r} ({type(title).__name__}).")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure. The size is in inches."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from finetunelib.visualization._plots.figure import SelfShowingFigure

    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.06)
    return SelfShowingFigure(figsize=(width, height), layout=engine)


def headline(figure: Figure, theme: Theme, title: str, subtitle: str = "") -> None:
    """Write a title and a subtitle at the upper left of a figure."""
    from matplotlib.text import Annotation

    # The empty second line reserves space for the subtitle, whose font is smaller.
    lines = f"{title}\n" if subtitle else title
    top = figure.suptitle(
        lines, x=0.1 / figure.get_figwidth(), ha="left", fontsize=HEADLINE, fontweight="bold"
    )
    if subtitle:
        below = Annotation(
            subtitle,
            xy=(0, 0),
            xycoords=top,
            va="bottom",
            ha="left",
            fontsize=TEXT,
            color=theme.muted,
        )
        below.set_in_layout(False)
        figure.add_artist(below)


def quiet_axes(axes: Axes, theme: Theme) -> None:
    """Remove the frame and tick marks of axes, but not their tick labels."""
    from matplotlib import rcParams

    for spine in axes.spines.values():
        spine.set_visible(False)
    # Repeats some of `_settings`, because matplotlib may create ticks when a figure is saved, after
    # the user's settings have been restored.
    axes.tick_params(
        which="both",
        length=0,
        labelsize=SMALL,
        labelcolor=theme.muted,
        labelfontfamily=rcParams["font.family"],
        grid_color=theme.grid,
        grid_linewidth=0.8,
    )


def shortened(text: str, most: int) -> str:
    """Return a text on one line, cut to at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage, which is 0% or 100% only if the fraction is 0 or 1."""
    text = f"{fraction:.0%}"
    if text == "100%" and fraction < 1:
        return ">99%" if fraction >= 0.999 else f"{fraction:.1%}"
    if text == "0%" and fraction > 0:
        return "<1%"
    return text


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "figure.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "text.color": theme.text,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.text,
        "axes.titlelocation": "left",
        "axes.titlesize": TITLE,
        "axes.titleweight": "bold",
        "axes.labelsize": TEXT,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "font.family": _fonts(),
        "font.size": TEXT,
        "legend.frameon": False,
        "legend.fontsize": TEXT,
        "legend.labelcolor": theme.text,
        # A dollar sign in a class name does not start a formula.
        "text.parse_math": False,
    }


def _fonts() -> list[str]:
    """Return `_FONT`, then fonts for the characters that it lacks, the user's first."""
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    chosen = [*rcParams["font.family"], *rcParams["font.sans-serif"]]
    others = [name for name in (*chosen, *_FALLBACKS) if name in installed and name != _FONT]
    return [_FONT, *dict.fromkeys(others)]
