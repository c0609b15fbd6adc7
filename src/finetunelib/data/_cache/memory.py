"""How much memory is left for data."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

#: The fraction of the available memory that data may take unless the user asked for it.
SHARE = 0.25

#: The bytes that it may take if the available memory is unknown.
_UNKNOWN = 2**30


def available_memory() -> float:
    """Return the bytes of memory that programs can still use, or infinity if unknown."""
    return min(_of_machine(), _of_container())


def memory_for_data() -> float:
    """Return the bytes that data may take without being asked for."""
    available = available_memory()
    return _UNKNOWN if math.isinf(available) else SHARE * available


def _of_machine() -> float:
    with contextlib.suppress(OSError):  # of a system other than Linux
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _of_container() -> float:
    """Return what is left below the limit of a container (cgroup v2), or infinity."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = float((folder / "memory.max").read_text(encoding="ascii"))  # It may be "max".
        used = float((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        pages = dict(line.split() for line in lines)
    except (OSError, ValueError):
        return math.inf
    return max(0.0, limit - used + float(pages.get("inactive_file", 0)))
