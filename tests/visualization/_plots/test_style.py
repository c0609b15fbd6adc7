"""All plots: style, and that drawing changes nothing else."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from finetunelib.errors import InvalidTypeError, MissingDependencyError
from finetunelib.training import History
from finetunelib.visualization import plot_confusion, plot_history, plot_predictions
from finetunelib.visualization._plots.style import DARK, LIGHT, Theme, percent, shortened
from support_untouched import changed_since, snapshot
from visualization._plots.plotting import Oracle, data_predicting, texts

HISTORY = History([{"epoch": 1, "train_loss": 2.0, "val_loss": 3.0}])
DATA = data_predicting([0, 1, 2, 1], [0, 1, 2, 0])

PLOTS: dict[str, Callable[..., Figure]] = {
    "history": lambda **options: plot_history(HISTORY, **options),
    "confusion": lambda **options: plot_confusion(Oracle(3), DATA, **options),
    "predictions": lambda **options: plot_predictions(Oracle(3), DATA, **options),
}
each_plot = pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)


def luminance(color: str) -> float:
    """Return the relative luminance of a color, as WCAG defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@each_plot
def test_missing_matplotlib_error_contains_install_command(
    plot: Callable[..., Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message contains the pip command."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError) as caught:
        plot()
    assert 'pip install "finetunelib[plots]"' in str(caught.value)


@each_plot
def test_plot_restores_matplotlib_settings(plot: Callable[..., Figure]) -> None:
    """The library's style applies only to its own figures."""
    before = dict(mpl.rcParams)
    plot(dark=True)
    assert dict(mpl.rcParams) == before


@each_plot
def test_plot_does_not_depend_on_matplotlib_settings(plot: Callable[..., Figure]) -> None:
    """The user's style changes no pixel, even if active when the file is written."""
    plain, styled = io.BytesIO(), io.BytesIO()
    plot().savefig(plain)
    settings: Any = {  # Any: matplotlib types each name
        "axes.facecolor": "red",
        "lines.linewidth": 9,
        "xtick.labelsize": 30,
        "ytick.color": "green",
        "xtick.major.size": 20,
        "text.color": "yellow",
        "image.cmap": "jet",
    }
    with mpl.rc_context(settings):
        plot().savefig(styled)
    assert plain.getvalue() == styled.getvalue()


def test_plotting_never_imports_pyplot() -> None:
    """No backend is chosen, no window opens, and no figure has to be closed."""
    code = """
import sys, io, torch
from finetunelib import build_mlp
from finetunelib.training import History
from finetunelib.visualization import plot_confusion, plot_history, plot_predictions
data = (torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
model = build_mlp(16, [], 3)
for figure in (
    plot_history(History([{"epoch": 1, "train_loss": 2.0}])),
    plot_confusion(model, data),
    plot_predictions(model, data),
):
    figure.savefig(io.BytesIO())
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@each_plot
@pytest.mark.parametrize(("dark", "theme"), [(False, LIGHT), (True, DARK)])
def test_plot_has_the_background_of_the_theme(
    plot: Callable[..., Figure], dark: bool, theme: Theme
) -> None:
    """The whole figure has the background color of the light or dark theme."""
    from matplotlib.colors import to_hex

    assert to_hex(plot(dark=dark).get_facecolor()) == theme.ground


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colors_have_sufficient_contrast(theme: Theme) -> None:
    """Text and the first lines have the contrast that WCAG requires of text and graphics."""
    assert contrast(theme.text, theme.ground) >= 7
    assert contrast(theme.muted, theme.ground) >= 4.5
    assert min(contrast(hue, theme.ground) for hue in theme.series[:3]) >= 3


@each_plot
def test_plot_shows_itself_in_a_notebook(plot: Callable[..., Figure]) -> None:
    """The PNG for IPython has twice the resolution of the size at which it is shown."""
    figure = plot()
    data, size = figure._repr_png_()  # type: ignore[attr-defined]  # IPython asks for it
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == pytest.approx(2 * size["width"], abs=2)
    assert size["width"] == round(figure.get_figwidth() * figure.dpi)


@each_plot
def test_figure_can_be_pickled(plot: Callable[..., Figure]) -> None:
    """An unpickled figure has the same texts."""
    figure = plot(title="kept")
    assert texts(pickle.loads(pickle.dumps(figure))) == texts(figure)


@each_plot
@pytest.mark.parametrize(("argument", "value"), [("dark", "yes"), ("title", 3)])
def test_option_of_wrong_type_is_rejected(
    plot: Callable[..., Figure], argument: str, value: object
) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(InvalidTypeError, match=f"`{argument}`.*{value!r}"):
        plot(**{argument: value})


@pytest.mark.parametrize("plot", [plot_confusion, plot_predictions])
def test_model_is_unchanged(plot: Callable[..., Figure]) -> None:
    """Modes, weights, buffers, gradients, hooks and random states do not change."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
    )
    model[2].eval()
    before = snapshot(model)
    plot(model, DATA)
    assert changed_since(before, model) == []


@pytest.mark.parametrize("plot", [plot_confusion, plot_predictions])
def test_model_is_unchanged_if_data_raises(plot: Callable[..., Figure]) -> None:
    """An error after the first batch restores everything too."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(6, 3))

    def failing() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield DATA
        torch.rand(3)
        raise OSError("the disk is gone")

    before = snapshot(model)
    with pytest.raises(OSError, match="the disk is gone"):
        plot(model, failing())
    assert changed_since(before, model) == []


def test_users_fonts_are_fallbacks() -> None:
    """Characters that the default font lacks come from the user's fonts."""
    with mpl.rc_context({"font.family": ["STIXGeneral"]}):
        figure = plot_history(HISTORY)
    assert figure.axes[0].title.get_fontfamily()[0] == "DejaVu Sans"
    assert "STIXGeneral" in figure.axes[0].title.get_fontfamily()


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0%"),
        (0.001, "<1%"),
        (0.5, "50%"),
        (0.9961, "99.6%"),
        (0.99999, ">99%"),
        (1.0, "100%"),
    ],
)
def test_percent_is_0_or_100_only_if_exact(fraction: float, text: str) -> None:
    """Rounding never hides a single different sample."""
    assert percent(fraction) == text


def test_shortened_cuts_long_texts() -> None:
    """A long text ends in an ellipsis, and line breaks become spaces."""
    assert shortened("two\nlines", 20) == "two lines"
    assert shortened("a long name", 7) == "a long…"
