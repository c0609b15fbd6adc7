"""The time and peak memory of `export_onnx`, which verifies the file, and of `visualize`.

    python benchmarks/export.py [--rounds 3] [--models mlp resnet50 vit_b_16 bert]

Each model is exported by `torch.onnx.export` and by `export_onnx`, with a dynamic batch size, and
its temporary file for the viewer is written. Times are processor times of one process, taken
alternately after a warm-up with a small model. Memory is the peak of the resident memory during one
call, in a process of its own, above that before the call; it is also measured for an export without
verification. The resident memory contains files that are mapped into memory, which the system can
drop at any time; the private memory, read every few milliseconds, does not. Linux only. Prints JSON
with medians of the times and of their paired ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _parts.process import forget_peak, kilobytes
from finetunelib import build_mlp, export_onnx
from finetunelib.visualization._netron.temporary_onnx import write_temporary_onnx

#: The arguments of a model by name.
Inputs = dict[str, Tensor]

#: What is timed: exporting as torch does, as this library does, and for the viewer.
TIMED = ("bare", "verified", "viewer")

#: Whose memory is measured: also that of an export without verification.
MEASURED = ("bare", "saved", "verified")


def mlp() -> tuple[nn.Module, Inputs]:
    """Return the 784-500-10 MLP."""
    return build_mlp(784, [500], 10, seed=0), {"inputs": torch.rand(2, 1, 28, 28)}


def resnet50() -> tuple[nn.Module, Inputs]:
    """Return ResNet-50 with random weights, and two images."""
    import torchvision

    return torchvision.models.resnet50(), {"x": torch.randn(2, 3, 224, 224)}


def vit_b_16() -> tuple[nn.Module, Inputs]:
    """Return ViT-B/16 with a random head, and two images."""
    import torchvision

    model = torchvision.models.vit_b_16()
    head = model.get_submodule("heads.head")
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.02)  # Zeros would prove nothing.
    return model, {"x": torch.randn(2, 3, 224, 224)}


def bert() -> tuple[nn.Module, Inputs]:
    """Return a BERT of 12 layers that classifies texts of 64 tokens."""
    import transformers

    model: nn.Module = transformers.BertForSequenceClassification(transformers.BertConfig())
    tokens = torch.randint(1, 30_000, (2, 64))
    mask = torch.ones_like(tokens)
    mask[1, 40:] = 0
    return model, {"input_ids": tokens, "attention_mask": mask}


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "mlp": mlp,
    "resnet50": resnet50,
    "vit_b_16": vit_b_16,
    "bert": bert,
}


def call(kind: str, model: nn.Module, inputs: Inputs, folder: Path) -> None:
    """Export a model once."""
    if kind == "saved":
        export_onnx(model, folder / "saved.onnx", inputs, verify=False)
    elif kind == "verified":
        report = export_onnx(model, folder / "verified.onnx", inputs)
        assert report.verification is not None
        assert report.verification.status == "verified"
    elif kind == "viewer":
        write_temporary_onnx(model, inputs, folder / "viewer.onnx")
    else:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (),
                folder / "bare.onnx",
                kwargs=inputs,
                dynamic_shapes={name: {0: "batch"} for name in inputs},
                dynamo=True,
                verbose=False,
            )


def built(name: str, kinds: Sequence[str]) -> tuple[nn.Module, Inputs]:
    """Return a model in eval mode, after a warm-up with a small one."""
    torch.manual_seed(0)
    small, inputs = mlp()
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            call(kind, small.eval(), inputs, Path(folder))
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.eval(), inputs


def times(name: str, rounds: int) -> dict[str, Any]:
    """Return the medians of the processor times and of their ratios to the bare export."""
    model, inputs = built(name, TIMED)
    seconds: dict[str, list[float]] = {kind: [] for kind in TIMED}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # Each is first in some rounds.
            for kind in TIMED[number % 3 :] + TIMED[: number % 3]:
                gc.collect()
                started = time.process_time()
                call(kind, model, inputs, Path(folder))
                seconds[kind].append(time.process_time() - started)
    ratios = [ours / bare for ours, bare in zip(seconds["verified"], seconds["bare"], strict=True)]
    return {
        **{f"{kind}_seconds": round(statistics.median(seconds[kind]), 2) for kind in TIMED},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def memory(name: str, kind: str) -> dict[str, int]:
    """Return the peaks of the memory of one call in this process above that before it."""
    model, inputs = built(name, [kind])
    gc.collect()
    forget_peak()
    before, private = kilobytes("VmRSS"), kilobytes("RssAnon")
    with tempfile.TemporaryDirectory() as folder, _sampling("RssAnon") as seen:
        call(kind, model, inputs, Path(folder))
    return {
        f"{kind}_megabytes": round((kilobytes("VmHWM") - before) / 1000),
        f"{kind}_private_megabytes": round((max(seen) - private) / 1000),
    }


@contextlib.contextmanager
def _sampling(field: str) -> Iterator[list[int]]:
    """Read a number of kilobytes every few milliseconds during the block."""
    seen = [kilobytes(field)]
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.003):
            seen.append(kilobytes(field))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _memory_in_own_process(name: str, kind: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--models", name, "--memory", kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--memory", choices=MEASURED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(memory(options.models[0], options.memory)))
        return
    found = {}
    for name in options.models:
        found[name] = times(name, options.rounds)
        for kind in MEASURED:
            found[name] |= _memory_in_own_process(name, kind)
    date = datetime.now(UTC).date().isoformat()
    print(json.dumps({"date": date, "rounds": options.rounds, "models": found}, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
