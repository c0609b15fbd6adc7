"""Detects whether a browser can be opened on this machine, and whether anyone would see it."""

from __future__ import annotations

import os
import sys
import webbrowser

from finetunelib._progress import in_notebook
from finetunelib.visualization._netron.remote import over_ssh


def browser_available() -> bool:
    """Return whether to open a browser: not in CI, ssh or notebooks, nor without a display."""
    if os.environ.get("CI") or over_ssh() or in_notebook():
        return False
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def open_page(url: str) -> bool:
    """Open a page in a new tab, and return whether the browser accepted it."""
    return webbrowser.open(url, new=2)


def runs_as_script() -> bool:
    """Return whether this is a script on a terminal, whose end would close the viewer."""
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    return not interactive and sys.stdin is not None and sys.stdin.isatty()
