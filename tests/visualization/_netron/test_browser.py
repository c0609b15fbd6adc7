"""When a browser is opened, and when a script waits for it."""

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
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine with a display and a browser, outside of CI and ssh."""
    for name in ("CI", "SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("browser"))
    return monkeypatch


def test_a_desktop_has_a_browser(desktop: pytest.MonkeyPatch) -> None:
    """A browser is available if there is a display and a browser."""
    assert browser_available()


@pytest.mark.parametrize("name", ["CI", "SSH_CONNECTION"])
def test_ci_and_ssh_have_no_browser(desktop: pytest.MonkeyPatch, name: str) -> None:
    """In CI and over ssh, nobody would see the browser."""
    desktop.setenv(name, "true")
    assert not browser_available()


def test_linux_without_a_display_has_no_browser(desktop: pytest.MonkeyPatch) -> None:
    """Without a display, only text browsers could open, which block the terminal."""
    desktop.delenv("DISPLAY")
    assert not browser_available()


def test_wayland_is_a_display(desktop: pytest.MonkeyPatch) -> None:
    """A Wayland desktop without X has a browser."""
    desktop.delenv("DISPLAY")
    desktop.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert browser_available()


def test_a_mac_needs_no_display_variable(desktop: pytest.MonkeyPatch) -> None:
    """`DISPLAY` is required only on Linux."""
    desktop.delenv("DISPLAY")
    desktop.setattr(sys, "platform", "darwin")
    assert browser_available()


def test_a_desktop_may_lack_a_browser(desktop: pytest.MonkeyPatch) -> None:
    """A browser is not available if `webbrowser` finds none."""

    def get() -> webbrowser.BaseBrowser:
        raise webbrowser.Error("could not locate runnable browser")

    desktop.setattr(webbrowser, "get", get)
    assert not browser_available()


@pytest.mark.parametrize("works", [True, False])
def test_a_page_is_opened_once(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The browser is called once, and its result is returned."""
    opened: list[str] = []

    def open_(url: str, new: int = 0) -> bool:
        opened.append(url)
        return works

    monkeypatch.setattr(webbrowser, "open", open_)
    assert open_page("http://127.0.0.1:1") is works
    assert opened == ["http://127.0.0.1:1"]


def test_a_program_on_a_terminal_is_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program runs as a script if stdin is a terminal and Python is not interactive."""
    monkeypatch.setattr(sys, "stdin", _Terminal())
    assert runs_as_script()


def test_a_prompt_is_not_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """At Python's prompt, the process does not end and need not wait."""
    monkeypatch.setattr(sys, "stdin", _Terminal())
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert not runs_as_script()


@pytest.mark.parametrize("stdin", [io.StringIO(), None], ids=["piped", "absent"])
def test_a_program_without_a_terminal_is_not_a_script(
    monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO | None
) -> None:
    """A background program could not be interrupted with Ctrl-C."""
    monkeypatch.setattr(sys, "stdin", stdin)
    assert not runs_as_script()


class ZMQInteractiveShell:
    """The class name of IPython's shell in a notebook kernel."""


class TerminalInteractiveShell:
    """The class name of IPython's shell on a terminal."""


@pytest.mark.parametrize(
    ("shell", "expected"), [(ZMQInteractiveShell, True), (TerminalInteractiveShell, False)]
)
def test_a_kernel_is_a_notebook(
    monkeypatch: pytest.MonkeyPatch, shell: type, expected: bool
) -> None:
    """IPython is a notebook in a kernel, but not on a terminal."""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=shell))
    assert in_notebook() is expected


def test_a_notebook_opens_no_browser(desktop: pytest.MonkeyPatch) -> None:
    """A notebook shows the page in its cell."""
    desktop.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    assert not browser_available()


def test_a_plain_program_is_not_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without IPython, the process is not a notebook kernel."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
