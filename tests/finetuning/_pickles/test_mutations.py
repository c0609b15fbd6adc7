"""Hundreds of mutated files, each loaded under a limit on memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux only")
@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_files_are_loaded_or_rejected(seed: int) -> None:
    """No file exceeds the limits, changes a model and is rejected, or raises a raw error."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root / "src"), str(root / "tests")])
    module = "finetuning._pickles.mutations"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            module,
            "--count",
            "250",
            "--seed",
            str(seed),
        ],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rejected" in done.stdout
