"""Compares this library with other trainers and with a hand-written loop, on the same work.

    FINETUNELIB_DATA=... python benchmarks/peers.py [--parts steps epoch ...] [--peers skorch ...]
                                                    [--rounds 3] [--output FILE]
    python benchmarks/peers.py --table

`pip install "finetunelib[bench]"` installs the others; those that are missing are left out. All run
on the processor with one thread, from the same weights, with SGD and momentum. They take turns, and
ratios are those of processor times in the same round, as medians with quartiles. `hand_again`, a
second hand-written loop, shows the noise.

- `steps`: a step of a Linear of 2 x 2 (batch 4) and of an MLP 784-500-10 (batch 100), without a
  metric, with accuracy, and with accuracy and progress bar; ratios are to a step without a metric
- `epoch`: one epoch of MNIST from arrays, and the accuracy
- `dataset`: the same from torchvision's dataset
- `head`: ten epochs of a new head on a frozen MLP, and on a frozen ResNet-18 (images of 64 x 64)
- `inference`: `evaluate` and `predict`
- `imports`: the import, in addition to `import torch`
- `checkpoint`: saving and restoring a model with its optimizer, 100 MB
- `growth`: time and memory for more rows, larger batches, more epochs, layers and callbacks

Results are added to the file part by part: a later run of one part keeps the others. `--table` only
writes the table in the READMEs again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from _parts.table import CHINESE, ENGLISH, replaced
from _peers.names import PEERS, version_of

#: The parts, and the rounds of each for one `--rounds`.
PARTS = {
    "steps": 20,
    "epoch": 1,
    "dataset": 1,
    "head": 1,
    "inference": 2,
    "imports": 1,
    "checkpoint": 2,
    "growth": 1,
}

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "peers.json"


def measure(part: str, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return the rows of a part for the trainers that are installed."""
    run: Callable[[Sequence[str], int, Path], dict[str, Any]]
    run = import_module(f"_parts.{part}").measure
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(names, rounds, Path(folder))


def merge(result: dict[str, Any], part: str, rows: dict[str, Any], about: dict[str, Any]) -> None:
    """Add the rows of a part to a result. Rows of trainers that were not measured stay."""
    known = result.setdefault(part, {"rows": {}})
    for row, found in rows.items():
        known["rows"].setdefault(row, {}).update(found)
    known.update(about)


def write_tables(result: dict[str, Any]) -> None:
    """Write the table in both READMEs."""
    for name, texts in (("README.md", ENGLISH), ("README.zh-CN.md", CHINESE)):
        page = ROOT / name
        text = replaced(page.read_text(encoding="utf-8"), result, texts)
        page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure the parts, and write the result after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        write_tables(json.loads(options.output.read_text(encoding="utf-8")))
        return
    torch.set_num_threads(1)
    names = [name for name in PEERS if name in options.peers and version_of(name)]
    result: dict[str, Any] = {}
    if options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
    for part in options.parts:
        print(part, file=sys.stderr)
        rows = measure(part, names, options.rounds * PARTS[part])
        command = f"python benchmarks/peers.py --parts {part} --rounds {options.rounds}"
        date = datetime.now(UTC).date().isoformat()
        versions = {name: version_of(name) for name in names}
        merge(result, part, rows, {"date": date, "command": command, "versions": versions})
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
