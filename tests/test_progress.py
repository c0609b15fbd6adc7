"""Bars on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace

import pytest

from finetunelib import _bars
from finetunelib._progress import (
    BarProgress,
    LineProgress,
    Progress,
    SilentProgress,
    choose_progress,
)
from support_terminal import open_terminal


def make_bars_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tqdm draw every step; by default it waits for a tenth of a second."""
    monkeypatch.setattr(_bars, "INTERVAL", 0.0)


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


def test_bar_progress_shows_values_and_where_a_phase_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed phase starts in its middle; the values replace the steps per second."""
    terminal = open_terminal(monkeypatch)
    make_bars_eager(monkeypatch)
    progress = BarProgress()
    seen = iter(["", "loss 0.5", "loss 0.25"])
    progress.start("epoch 1", 4, done=2, values=lambda: next(seen))
    assert "2/4" in terminal.getvalue()
    progress.advance()
    progress.advance()
    bars = terminal.getvalue().split("\r")
    assert [bar.rpartition(", ")[2].rstrip() for bar in bars[-2:]] == ["loss 0.5]", "loss 0.25]"]
    assert "step/s" not in terminal.getvalue()
    progress.abort()


def test_values_are_read_only_when_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in quick succession cost no reading, and neither does another kind of progress."""
    calls: list[int] = []

    def values() -> str:
        calls.append(threading.get_ident())
        return ""

    monkeypatch.setattr(_bars, "INTERVAL", 1000.0)
    open_terminal(monkeypatch)
    for progress in (BarProgress(), LineProgress(), SilentProgress()):
        progress.start("epoch 1", 100, values=values)
        for _ in range(100):
            progress.advance()
        progress.finish("done")
    assert len(calls) == 1


def test_values_are_read_by_the_thread_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tqdm draws a late bar from another thread, with the last values."""
    open_terminal(monkeypatch)
    calls: list[int] = []

    def values() -> str:
        calls.append(threading.get_ident())
        return f"reading {len(calls)}"

    bar = _bars.ValuesBar("epoch 1", 3, 0, values, file=sys.stderr)
    thread = threading.Thread(target=bar.refresh)
    thread.start()
    thread.join()
    bar.close()
    assert set(calls) == {threading.get_ident()}


def test_notebook_shows_nothing_in_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notebooks show stderr in red, so the bar and the line are on stdout, without a warning.

    No widgets are needed.
    """
    enter_notebook(monkeypatch, ZMQInteractiveShell())
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    progress = choose_progress(True)
    progress.start("epoch 1", 2, values=lambda: "loss 0.5")
    assert "epoch 1" in (shown := capsys.readouterr()).out
    assert "loss 0.5" in shown.out
    progress.finish("epoch 1 is done")
    after = capsys.readouterr()
    assert after.out.endswith("\repoch 1 is done\n")
    assert shown.err == after.err == ""
