"""Bars on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tqdm

from finetunelib._progress import (
    BarProgress,
    LineProgress,
    Progress,
    SilentProgress,
    choose_progress,
)


class Terminal(io.StringIO):
    """A text stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr by a terminal whose text can be read.

    Not a fixture, because pytest replaces stderr between the setup of a test and its call.
    """
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def make_bars_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tqdm draw every step; by default it waits for a tenth of a second."""
    lazy = tqdm.tqdm

    def eager(**options: Any) -> Any:
        return lazy(**options, mininterval=0, miniters=1)

    monkeypatch.setattr(tqdm, "tqdm", eager)


class ZMQInteractiveShell:
    """Has the name of the shell of a notebook kernel."""

    def __init__(self) -> None:
        self.config: dict[str, object] = {}


def enter_notebook(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    """Pretend that IPython is loaded and runs in `shell`."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def report_a_phase(progress: Progress) -> None:
    """Report a phase of two steps."""
    progress.start("epoch 1", 2)
    progress.advance()
    progress.advance()
    progress.finish("epoch 1 is done")


# choose_progress


def test_choose_progress_is_silent_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`progress=False` shows nothing, even on a terminal."""
    open_terminal(monkeypatch)
    assert type(choose_progress(False)) is SilentProgress


def test_choose_progress_takes_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows a bar."""
    open_terminal(monkeypatch)
    assert type(choose_progress(True)) is BarProgress


def test_choose_progress_takes_lines_if_stderr_is_not_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log file or a pipe gets plain lines."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(choose_progress(True)) is LineProgress


def test_choose_progress_takes_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook shows a bar, although its stderr is not a terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    enter_notebook(monkeypatch, ZMQInteractiveShell())
    assert type(choose_progress(True)) is BarProgress


@pytest.mark.parametrize("shell", [None, object()], ids=["no shell", "another shell"])
def test_choose_progress_distinguishes_a_notebook_from_ipython(
    monkeypatch: pytest.MonkeyPatch, shell: object
) -> None:
    """There is no bar if IPython is imported without a notebook."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    enter_notebook(monkeypatch, shell)
    assert type(choose_progress(True)) is LineProgress


def test_progress_works_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a console, whose stderr is None, shows nothing."""
    monkeypatch.setattr(sys, "stderr", None)
    report_a_phase(choose_progress(True))


class WritesOnly:
    """Lacks every method of a stream except `write`."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


class Failing(io.StringIO):
    """Raises an error when it is written to, like a broken pipe or a stream of ASCII."""

    def __init__(self, terminal: bool, kind: type[Exception], *values: object) -> None:
        super().__init__()
        self.terminal, self.kind, self.values = terminal, kind, values

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise self.kind(*self.values)


def test_stream_without_isatty_and_flush_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger's stream that only has `write` receives the closing line."""
    stream = WritesOnly()
    monkeypatch.setattr(sys, "stderr", stream)
    report_a_phase(choose_progress(True))
    assert stream.text == "epoch 1 is done\n"


def test_closed_stream_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was closed before or during a phase raises nothing."""
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    report_a_phase(choose_progress(True))
    make_bars_eager(monkeypatch)
    closed_later = open_terminal(monkeypatch)
    progress = choose_progress(True)
    progress.start("epoch 1", 2)
    closed_later.close()
    progress.advance()
    progress.finish("epoch 1 is done")
    progress.start("epoch 2", None)
    progress.abort()


@pytest.mark.parametrize("terminal", [True, False], ids=["bar", "lines"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [(BrokenPipeError, (32, "broken")), (UnicodeEncodeError, ("ascii", "\u2588", 0, 1, "no"))],
    ids=["pipe", "encoding"],
)
def test_error_of_the_stream_ends_the_output_only(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    values: tuple[object, ...],
    terminal: bool,
) -> None:
    """A stream that cannot be written to raises nothing, in any phase."""
    make_bars_eager(monkeypatch)
    monkeypatch.setattr(sys, "stderr", Failing(terminal, kind, *values))
    progress = choose_progress(True)
    report_a_phase(progress)
    progress.start("epoch 2", None)
    progress.abort()


# The three classes


def test_silent_progress_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Both streams stay empty."""
    report_a_phase(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_line_progress_writes_the_closing_line_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A phase is one line on stderr, and nothing on stdout."""
    report_a_phase(LineProgress())
    assert capsys.readouterr() == ("", "epoch 1 is done\n")


def test_line_progress_writes_nothing_when_aborted(capsys: pytest.CaptureFixture[str]) -> None:
    """A phase that failed has no closing line."""
    progress = LineProgress()
    progress.start("epoch 1", 2)
    progress.advance()
    progress.abort()
    assert capsys.readouterr() == ("", "")


def test_bar_progress_shows_the_title_and_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar appears before the first step."""
    terminal = open_terminal(monkeypatch)
    progress = BarProgress()
    progress.start("epoch 1", 2)
    assert "epoch 1" in terminal.getvalue()
    assert "0/2" in terminal.getvalue()
    progress.abort()


def test_bar_progress_moves_by_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step that is reported moves the bar by one."""
    terminal = open_terminal(monkeypatch)
    make_bars_eager(monkeypatch)
    progress = BarProgress()
    progress.start("epoch 1", 3)
    progress.advance()
    assert "1/3" in terminal.getvalue()
    progress.advance()
    assert "2/3" in terminal.getvalue()
    progress.abort()


def test_bar_progress_counts_steps_of_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data without a length gets a bar that counts."""
    terminal = open_terminal(monkeypatch)
    make_bars_eager(monkeypatch)
    progress = BarProgress()
    progress.start("epoch 1", None)
    progress.advance()
    assert "1step" in terminal.getvalue()
    progress.abort()


def test_bar_progress_leaves_the_closing_line_in_place_of_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bar is overwritten with blanks."""
    terminal = open_terminal(monkeypatch)
    report_a_phase(BarProgress())
    assert terminal.getvalue().endswith(" \repoch 1 is done\n")


def test_bar_progress_removes_the_bar_when_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error no incomplete bar is shown before the traceback."""
    terminal = open_terminal(monkeypatch)
    progress = BarProgress()
    progress.start("epoch 1", 2)
    progress.abort()
    assert terminal.getvalue().endswith(" \r")


def test_bar_progress_shows_one_bar_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same object shows several phases."""
    terminal = open_terminal(monkeypatch)
    progress = BarProgress()
    report_a_phase(progress)
    progress.start("epoch 2", 5)
    assert "epoch 2" in terminal.getvalue()
    assert "0/5" in terminal.getvalue()
    progress.abort()


def test_bar_progress_may_be_aborted_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error before the first phase writes nothing."""
    terminal = open_terminal(monkeypatch)
    progress = BarProgress()
    progress.advance()
    progress.abort()
    assert terminal.getvalue() == ""


def test_bar_progress_shows_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar has the title, even if notebook widgets are not installed."""
    terminal = open_terminal(monkeypatch)
    enter_notebook(monkeypatch, ZMQInteractiveShell())
    progress = BarProgress()
    progress.start("epoch 1", 2)
    assert "epoch 1" in terminal.getvalue()
    progress.abort()
