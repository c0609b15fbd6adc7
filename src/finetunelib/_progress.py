"""Progress on a terminal or in a notebook, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    """The progress reports of a loop, in phases such as an epoch."""

    def start(self, title: str, total: int | None) -> None:
        """Begin a phase of `total` steps, or of an unknown number if it is `None`."""

    def advance(self) -> None:
        """Report that one step is done."""

    def finish(self, line: str) -> None:
        """End the phase with a line that summarizes it."""

    def abort(self) -> None:
        """End the phase without a line, after an error."""


class SilentProgress:
    """Shows nothing."""

    def start(self, title: str, total: int | None) -> None: ...

    def advance(self) -> None: ...

    def finish(self, line: str) -> None: ...

    def abort(self) -> None: ...


class LineProgress(SilentProgress):
    """Writes one plain line to stderr at the end of a phase, for logs and pipes."""

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
        """Close the bar and write the line in its place."""
        self._bar.close()
        _write_line(line)

    def abort(self) -> None:
        """Close the bar."""
        self._bar.close()


class _Bar(Protocol):
    """The methods of a tqdm bar that are used."""

    def update(self) -> object: ...

    def close(self) -> object: ...


class _NoBar:
    """Does nothing, until a tqdm bar is opened."""

    def update(self) -> object: ...

    def close(self) -> None: ...


def choose_progress(enabled: bool) -> Progress:
    """Return a bar for a terminal or notebook, lines for other output, or nothing."""
    # A program without a console has no stderr.
    if not enabled or sys.stderr is None:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() or in_notebook() else LineProgress()


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _open_bar(title: str, total: int | None) -> _Bar:
    # Imported here, because tqdm.auto searches for notebooks and is slow to import.
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
