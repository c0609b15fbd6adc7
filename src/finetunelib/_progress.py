"""Progress on a terminal or in a notebook, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """The progress reports of a loop, in phases such as an epoch."""

    def start(
        self,
        title: str,
        total: int | None,
        *,
        done: int = 0,
        values: Callable[[], str] | None = None,
    ) -> None:
        """Begin a phase.

        Args:
            title: What is done.
            total: The number of steps, or `None` if it is unknown.
            done: The number of steps that are already done.
            values: Returns what is known so far as text. It is only called to draw a bar.
        """

    def advance(self) -> None:
        """Report that one step is done."""

    def finish(self, line: str) -> None:
        """End the phase with a line that summarizes it."""

    def abort(self) -> None:
        """End the phase without a line, after an error."""


class SilentProgress:
    """Shows nothing."""

    def start(
        self,
        title: str,
        total: int | None,
        *,
        done: int = 0,
        values: Callable[[], str] | None = None,
    ) -> None: ...

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

    def start(
        self,
        title: str,
        total: int | None,
        *,
        done: int = 0,
        values: Callable[[], str] | None = None,
    ) -> None:
        """Open a bar."""
        from finetunelib._bars import ValuesBar, no_values  # tqdm takes time to import.

        # A notebook is as wide as its window, and shows a stream without knowing its width.
        self._bar = ValuesBar(
            title,
            total,
            done,
            values or no_values,
            file=_stream(),
            dynamic_ncols=not in_notebook(),
        )

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
    return BarProgress() if _is_terminal(sys.stderr) or in_notebook() else LineProgress()


#: The errors of a stream that was closed, is a broken pipe, cannot encode a character, or lacks a
#: method of a file. Output is not worth a training run, so they end the output only.
_STREAM_ERRORS = (OSError, ValueError, AttributeError, TypeError)


class _Output:
    """Writes to a stream, and discards what cannot be written."""

    def __init__(self, stream: Any) -> None:  # Any: a program may replace it by any object.
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text if possible, and return its length."""
        with contextlib.suppress(*_STREAM_ERRORS):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        with contextlib.suppress(*_STREAM_ERRORS):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; one that was closed or has no `isatty` is not."""
    try:
        return bool(stream.isatty())
    except _STREAM_ERRORS:
        return False


def _write_line(line: str) -> None:
    stream = _stream()
    stream.write(f"{line}\n")
    stream.flush()


def _stream() -> _Output:
    """Return the stream for progress: stderr, or stdout in notebooks, which show stderr in red."""
    return _Output(sys.stdout if in_notebook() else sys.stderr)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    # Only a kernel has this shell. Looking the module up imports nothing.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
