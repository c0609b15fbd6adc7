"""The memory of this process, read from Linux's files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

reads_memory = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def kilobytes(field: str) -> int:
    """Return an entry of the process's memory in KiB, such as the peak `VmHWM`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
