"""When a browser is opened, and when a program waits for it."""

from __future__ import annotations

import io
import sys
import types
import webbrowser

import pytest

from finetunelib._progress import in_notebook
from finetunelib.visualization._netron.browser import (
    browser_available,
    open_page,
    runs_as_script,
)


class _Terminal(io.StringIO):
    """A standard input that somebody types on."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine with a display and a browser, and nothing that speaks against it."""
    for name in ("CI", "SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("browser"))
    return monkeypatch


def test_a_desktop_has_a_browser(desktop: pytest.MonkeyPatch) -> None:
    """With a display and a browser a page is seen."""
    assert browser_available()


@pytest.mark.parametrize("name", ["CI", "SSH_CONNECTION"])
def test_nobody_sits_before_ci_or_the_far_end_of_ssh(
    desktop: pytest.MonkeyPatch, name: str
) -> None:
    """A display there is nobody's."""
    desktop.setenv(name, "true")
    assert not browser_available()


def test_linux_without_a_display_has_no_browser(desktop: pytest.MonkeyPatch) -> None:
    """A server has browsers at most in a terminal, which would block."""
    desktop.delenv("DISPLAY")
    assert not browser_available()


def test_wayland_is_a_display_too(desktop: pytest.MonkeyPatch) -> None:
    """A desktop without X has a browser."""
    desktop.delenv("DISPLAY")
    desktop.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert browser_available()


def test_a_mac_needs_no_display_variable(desktop: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux the variable says nothing."""
    desktop.delenv("DISPLAY")
    desktop.setattr(sys, "platform", "darwin")
    assert browser_available()


def test_a_desktop_without_a_browser_has_none(desktop: pytest.MonkeyPatch) -> None:
    """Where Python finds no browser, none is opened."""

    def get() -> webbrowser.BaseBrowser:
        raise webbrowser.Error("could not locate runnable browser")

    desktop.setattr(webbrowser, "get", get)
    assert not browser_available()


@pytest.mark.parametrize("works", [True, False])
def test_a_page_is_opened_once(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The address reaches the browser, and its answer comes back."""
    opened: list[str] = []

    def open_(url: str, new: int = 0) -> bool:
        opened.append(url)
        return works

    monkeypatch.setattr(webbrowser, "open", open_)
    assert open_page("http://127.0.0.1:1") is works
    assert opened == ["http://127.0.0.1:1"]


def test_a_program_on_a_terminal_is_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is a terminal, and Python does not read commands from it."""
    monkeypatch.setattr(sys, "stdin", _Terminal())
    assert runs_as_script()


def test_a_prompt_is_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """At Python's prompt the page stays, as the process does."""
    monkeypatch.setattr(sys, "stdin", _Terminal())
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert not runs_as_script()


@pytest.mark.parametrize("stdin", [io.StringIO(), None], ids=["piped", "absent"])
def test_a_program_without_a_terminal_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO | None
) -> None:
    """Nobody could end the waiting of a program in the background, or of a notebook."""
    monkeypatch.setattr(sys, "stdin", stdin)
    assert not runs_as_script()


class ZMQInteractiveShell:
    """What a notebook's kernel runs in, by its name."""


class TerminalInteractiveShell:
    """What IPython runs in on a terminal, by its name."""


@pytest.mark.parametrize(
    ("shell", "expected"), [(ZMQInteractiveShell, True), (TerminalInteractiveShell, False)]
)
def test_a_kernel_is_a_notebook(
    monkeypatch: pytest.MonkeyPatch, shell: type, expected: bool
) -> None:
    """IPython is a notebook in a kernel, and none on a terminal."""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=shell))
    assert in_notebook() is expected


def test_a_notebook_needs_no_tab(desktop: pytest.MonkeyPatch) -> None:
    """A notebook shows the page in a frame, and a second one beside it is one too many."""
    desktop.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    assert not browser_available()


def test_a_program_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without IPython there is none."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
