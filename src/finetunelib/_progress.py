"""Progress on a terminal or in a notebook, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    """What a loop tells about its progress."""

    def start(self, title: str, total: int | None) -> None:
        """Begin a stretch of `total` steps (None: unknown)."""

    def advance(self) -> None:
        """Note that one step is done."""

    def finish(self, line: str) -> None:
        """End the stretch with one line that says how it went."""

    def abort(self) -> None:
        """End the stretch without a line, because something was raised."""


class SilentProgress:
    """Says nothing."""

    def start(self, title: str, total: int | None) -> None: ...

    def advance(self) -> None: ...

    def finish(self, line: str) -> None: ...

    def abort(self) -> None: ...


class LineProgress(SilentProgress):
    """Writes one plain line to stderr at the end of a stretch, for logs and pipes."""

    def finish(self, line: str) -> None:
        """Write the line."""
        _write_line(line)


class BarProgress:
    """Shows a tqdm bar that is replaced by the closing line."""

    def __init__(self) -> None:
        self._bar: _Bar = _NoBar()

    def start(self, title: str, total: int | None) -> None:
        """Open a bar."""
        self._bar = _open_bar(title, total)

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def finish(self, line: str) -> None:
        """Close the bar and leave the line in its place."""
        self._bar.close()
        _write_line(line)

    def abort(self) -> None:
        """Close the bar."""
        self._bar.close()


class _Bar(Protocol):
    """The two calls of a tqdm bar that are used."""

    def update(self) -> object: ...

    def close(self) -> object: ...


class _NoBar:
    """Stands where a tqdm bar will be."""

    def update(self) -> object: ...

    def close(self) -> None: ...


def choose_progress(enabled: bool) -> Progress:
    """Return the kind of progress that fits where the program runs."""
    # A program without a console has no stderr.
    if not enabled or sys.stderr is None:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() or in_notebook() else LineProgress()


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _open_bar(title: str, total: int | None) -> _Bar:
    # Imported here: tqdm.auto looks for notebooks, which costs time that an import must not.
    if in_notebook():
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    bar: _Bar = tqdm(total=total, desc=title, leave=False, unit="step", dynamic_ncols=True)
    return bar


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    # Only a kernel has this shell. Looking the module up imports nothing.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
