"""Warns about findings, each once for a Trainer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable

from finetunelib.errors import DiagnosisWarning
from finetunelib.training._diagnosis.finding import Finding, check_ignored


class Warnings:
    """Warns about each finding once.

    Args:
        ignore: The codes of findings to leave out.

    Raises:
        InvalidTypeError: If `ignore` is not a list of strings.
        InvalidArgumentError: If a code is unknown, or is that of an error.
    """

    def __init__(self, ignore: Iterable[str]) -> None:
        self.ignored = check_ignored(ignore)
        self._reported: set[str] = set()
        #: Whether the first run of the Trainer was observed; later ones are not.
        self.done = False

    def __call__(self, findings: Iterable[Finding]) -> None:
        """Warn about the findings that are neither ignored nor reported."""
        for finding in findings:
            if finding.code in self.ignored or finding.code in self._reported:
                continue
            self._reported.add(finding.code)
            warnings.warn(
                f"{finding} If this is intended, pass `ignore=[{finding.code!r}]` to the Trainer.",
                DiagnosisWarning,
                stacklevel=_level_of_caller(),
            )


def _level_of_caller() -> int:
    """Return the `stacklevel` of the code that called the library, such as `fit`."""
    frame, level, found = inspect.currentframe(), 0, 1
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("finetunelib."):
            found = level + 1
        frame, level = frame.f_back, level + 1
    return found
