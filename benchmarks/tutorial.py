"""Compares the time of examples/mnist.py with that of a tutorial script, as a ratio of paired runs.

    FINETUNELIB_DATA=... python benchmarks/tutorial.py [--epochs 10] [--rounds 1]

The scripts run alternately on the same data, each as a program with its imports, with one thread.
Prints JSON. The times are processor times, which exclude time during which other programs use the
core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(*command: str) -> float:
    """Return the processor time of a program in seconds."""
    started = _of_children()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr, env=environment)
    return _of_children() - started


def _of_children() -> float:
    """Return the processor time of all programs that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run both scripts `rounds` times alternately and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    data = os.environ.get("FINETUNELIB_DATA", "data")
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            script = str(ROOT / "benchmarks" / "tutorial_script.py")
            theirs.append(seconds(script, data, folder, str(options.epochs)))
            example = str(ROOT / "examples" / "mnist.py")
            arguments = ("--dataset", "mnist", "--data-dir", data, "--output-dir", folder)
            ours.append(seconds(example, *arguments, "--epochs", str(options.epochs)))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    numbers = {
        "epochs": options.epochs,
        "rounds": options.rounds,
        "tutorial_seconds": statistics.median(theirs),
        "example_seconds": statistics.median(ours),
        "ratio": statistics.median(ratios),
    }
    date = datetime.now(UTC).date().isoformat()
    print(json.dumps({"date": date, **{name: round(v, 3) for name, v in numbers.items()}}))


if __name__ == "__main__":
    main()
