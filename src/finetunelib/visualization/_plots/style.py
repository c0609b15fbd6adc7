"""The one look of all pictures: colors for light and dark pages, fonts, and how figures are made.

Matplotlib is imported only when something is drawn, so that the library works without it. No
figure is made by pyplot: nothing is shown, no backend is chosen, and nothing has to be closed.
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
    """The colors of one look. Hues are those of Okabe and Ito, which color-blind people tell apart.

    Attributes:
        ground: The page.
        text: What is read first.
        muted: What is read last.
        grid: Lines behind the data.
        empty: A cell that holds nothing.
        right: The hue of what is right; a ramp from `empty` up.
        wrong: The hue of what is wrong; a ramp from `empty` up.
        series: The hues of lines.
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

#: The font that comes with matplotlib, so that pictures are alike on every machine.
_FONT = "DejaVu Sans"

#: What it lacks is taken from the first of these that is installed, as for Chinese class names.
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
    """Draw in the look of the library, whatever the user's own settings, which stay as they are.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    check_drawable(dark)
    style = require("matplotlib.style", extra="plots")
    theme = DARK if dark else LIGHT
    with style.context(["default", _settings(theme)]):
        yield theme


def check_drawable(dark: object) -> None:
    """Raise when a picture cannot be drawn at all, before a model is run for it.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
        InvalidTypeError: `dark` is no bool.
    """
    require("matplotlib", extra="plots")
    if not isinstance(dark, bool):
        raise InvalidTypeError(f"`dark` must be True or False, but is {dark!r}.")


def check_title(title: object) -> None:
    """Raise when a title is none.

    Raises:
        InvalidTypeError: It is neither a string nor `None`.
    """
    if title is not None and not isinstance(title, str):
        raise InvalidTypeError(
            f"`title` must be a string, but is {title!r} ({type(title).__name__})."
        )


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from finetunelib.visualization._plots.figure import SelfShowingFigure

    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.06)
    return SelfShowingFigure(figsize=(width, height), layout=engine)


def headline(figure: Figure, theme: Theme, title: str, subtitle: str = "") -> None:
    """Write a title, and a quiet line under it, at the left edge of a figure."""
    from matplotlib.text import Annotation

    # The empty second line keeps room for the subtitle, which has a size of its own.
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
    """Take away frames and tick marks; numbers on the axes stay."""
    from matplotlib import rcParams

    for spine in axes.spines.values():
        spine.set_visible(False)
    # Named here although the settings say so too: an axis may make its ticks when it is drawn,
    # and the user's own settings are back by then.
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
    """Return a text of at most `most` characters on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def percent(share: float) -> str:
    """Return a share as text that is 0% and 100% only where it is so exactly."""
    text = f"{share:.0%}"
    if text == "100%" and share < 1:
        return ">99%" if share >= 0.999 else f"{share:.1%}"
    if text == "0%" and share > 0:
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
        # A dollar sign in a class's name is no formula.
        "text.parse_math": False,
    }


def _fonts() -> list[str]:
    """Return our font, and where what it lacks is found: the user's fonts first."""
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    chosen = [*rcParams["font.family"], *rcParams["font.sans-serif"]]
    others = [name for name in (*chosen, *_FALLBACKS) if name in installed and name != _FONT]
    return [_FONT, *dict.fromkeys(others)]
