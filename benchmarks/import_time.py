"""Measures the time that importing the five entry points adds to `import torch`.

python benchmarks/import_time.py [ROUNDS]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

CODE = """
import time
a = time.perf_counter()
import torch
b = time.perf_counter()
from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head, visualize
c = time.perf_counter()
print(b - a, c - b)
"""


def main(rounds: int) -> None:
    """Print the medians and the ratio as JSON."""
    runs = [
        [float(part) for part in subprocess.check_output([sys.executable, "-c", CODE]).split()]
        for _ in range(rounds)
    ]
    ratio = statistics.median(own / torch for torch, own in runs)
    torch_seconds, own_seconds = (statistics.median(column) for column in zip(*runs, strict=True))
    result = {"torch_seconds": torch_seconds, "finetunelib_seconds": own_seconds, "share": ratio}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
