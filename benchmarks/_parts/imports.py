"""The processor time of an import, in addition to `import torch`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _parts.paired import HAND, OURS, spread
from _peers.names import peer_of

_CODE = """
import time
started = time.process_time()
import torch
between = time.process_time()
{statement}
print(between - started, time.process_time() - between)
"""


def measure(names: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:  # noqa: ARG001
    """Return the seconds, and their ratio to the seconds of `import torch` in the same process."""
    statements = {name: peer_of(name).statement for name in names if name != HAND}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            command = [sys.executable, "-W", "ignore", "-c", _CODE.format(statement=statement)]
            torch_seconds, own = map(float, subprocess.check_output(command).split())
            runs[name].append((torch_seconds, own))
    rows = {}
    for name, pairs in runs.items():
        rows[name] = spread([own for _, own in pairs], "seconds") | spread(
            [own / torch_seconds for torch_seconds, own in pairs], "to_torch"
        )
        if OURS in runs:
            ours = [own for _, own in runs[OURS]]
            ratios = [own / other for (_, own), other in zip(pairs, ours, strict=True)]
            rows[name] |= spread(ratios, "to_finetunelib", 2)
    return {"import": rows}
