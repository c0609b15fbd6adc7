"""Compares `export_onnx`, which verifies the file, with `torch.onnx.export`.

    python benchmarks/export.py [--rounds 7]

Both export the 784-500-10 MLP with a dynamic batch size into the same folder, alternately, after
one warm-up call each. Prints the median seconds of both, and the median and quartiles of their
ratios, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from finetunelib import build_mlp, export_onnx


def bare(model: nn.Module, inputs: torch.Tensor, folder: Path) -> float:
    """Return the seconds of `torch.onnx.export`, without its warnings and output."""
    started = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (inputs,),
            folder / "bare.onnx",
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    return time.perf_counter() - started


def verified(model: nn.Module, inputs: torch.Tensor, folder: Path) -> float:
    """Return the seconds of `export_onnx`."""
    started = time.perf_counter()
    report = export_onnx(model, folder / "verified.onnx", inputs)
    assert report.verification is not None
    assert report.verification.status == "verified"
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    model, inputs = build_mlp(784, [500], 10, seed=0).eval(), torch.rand(2, 1, 28, 28)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare(model, inputs, folder)
        verified(model, inputs, folder)
        pairs = []
        for number in range(rounds):
            # The order alternates.
            first, second = (bare, verified) if number % 2 else (verified, bare)
            one, two = first(model, inputs, folder), second(model, inputs, folder)
            pairs.append((one, two) if first is bare else (two, one))
    ratios = [ours / torchs for torchs, ours in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        json.dumps(
            {
                "model": "784-500-10",
                "rounds": rounds,
                "bare_seconds": round(statistics.median(p[0] for p in pairs), 3),
                "verified_seconds": round(statistics.median(p[1] for p in pairs), 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
