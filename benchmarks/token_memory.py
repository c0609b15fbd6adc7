"""Compares the peak memory of a training step of a language model with and without chunks.

    python benchmarks/token_memory.py [--tokens 512] [--vocabulary 128000]

On the CPU. The memory is what the tensors of one step take at most, as PyTorch's profiler records
their allocations; the model itself is not counted. Prints JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from finetunelib.training import TokenTask

ROWS = 2
WIDTH = 64
CHUNKS = (None, 512, 128, 32)


class Model(nn.Module):
    """An embedding and a head with the same weight."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.mix(self.words(tokens)))
        return logits


def step(task: TokenTask, model: Model, tokens: Tensor) -> Tensor:
    """Run one step, and return the gradient of the shared weight."""
    model.zero_grad()
    torch.autograd.backward(task.step(model, (tokens, tokens)).loss)
    gradient = model.words.weight.grad
    assert gradient is not None
    return gradient


def peak_of(run: Callable[[], object]) -> float:
    """Return how much memory tensors took at most, in MB, beyond those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results: Any = recorded.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    used = accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()))
    return float(max(used)) / 2**20


def measure(vocabulary: int, tokens: int, chunk_size: int | None) -> dict[str, Any]:
    """Return the memory, the time and the gradient of a variant."""
    model = Model(vocabulary)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randint(0, vocabulary, (ROWS, tokens // ROWS), generator=generator)
    task = TokenTask(shift=True, chunk_size=chunk_size)
    start = time.perf_counter()
    gradient = step(task, model, batch).clone()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return {
        "peak_mb": peak_of(lambda: step(task, model, batch)),
        "seconds": seconds,
        "gradient": gradient,
    }


def main() -> None:
    """Measure all variants and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    options = parser.parse_args()
    found = [measure(options.vocabulary, options.tokens, size) for size in CHUNKS]
    plain = found[0]["gradient"]
    rows = [
        {
            "chunk_size": size,
            "peak_mb": round(each["peak_mb"]),
            "seconds": round(each["seconds"], 2),
            "relative_difference_of_gradient": float(
                (each["gradient"] - plain).abs().max() / plain.abs().max()
            ),
        }
        for size, each in zip(CHUNKS, found, strict=True)
    ]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "vocabulary": options.vocabulary,
        "tokens": options.tokens,
        "logits_mb": round(options.vocabulary * options.tokens * 4 / 2**20),
        "rows": rows,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
