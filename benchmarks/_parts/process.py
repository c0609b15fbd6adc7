"""The memory of this process as Linux counts it."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")

#: Whether the system counts it in the way that is read here.
IS_COUNTED = _STATUS.exists()


def kilobytes(field: str) -> int:
    """Return an entry of the process's status in KiB, such as `VmRSS` or its peak `VmHWM`."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def forget_peak() -> None:
    """Let the peak of the resident memory start again at its current size."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
