"""Find and replace the heads of many models, and record the outcomes.

    python tests/conformance/heads.py [--again] [--only NAME]

Covers all classification models of torchvision, models of all families of timm, and classifiers of
images, texts, tokens and audio of transformers. The results are written after each model, so an
interrupted run can be continued; `--again` starts from scratch. Times are in CPU seconds.
Needs the `test` extra; takes minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from conformance.head_models import (
    HeadModel,
    timm_models,
    torchvision_models,
    transformers_models,
)
from finetunelib.errors import HeadError
from finetunelib.finetuning import find_head, replace_head

RESULTS = Path(__file__).parent / "results" / "heads.json"
CLASSES = 7


def main() -> int:
    """Run the missing models, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Find and replace the heads of many models.")
    parser.add_argument("--again", action="store_true", help="also run models that have a result")
    parser.add_argument("--only", help="run only the models with this text in their names, again")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # The libraries report missing weights.
    models = [*torchvision_models(), *timm_models(), *transformers_models()]
    known = {f"{model.library}/{model.name}" for model in models}
    stored = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    results = {} if options.again else {key: stored[key] for key in stored if key in known}
    for model in models:
        key = f"{model.library}/{model.name}"
        if options.only and options.only not in key:
            continue
        if key not in results or options.only:
            results[key] = outcome_of(model)
            write(results)
            print(key, results[key], flush=True)  # noqa: T201 - a script's own output
        gc.collect()
    write(results)
    summaries = json.loads(RESULTS.read_text())["libraries"]
    print(json.dumps(summaries, indent=2))  # noqa: T201 - a script's own output
    return int(any(summary["failed"] for summary in summaries.values()))


def outcome_of(case: HeadModel) -> dict[str, Any]:
    """Return the outcome for one model ("found", "correctly refused" or "failed") with details."""
    torch.manual_seed(0)
    model = case.build().eval()
    declared = case.declared(model)
    start = time.process_time()
    try:
        head = find_head(model)
    except HeadError as error:
        seconds = time.process_time() - start
        right = len(declared) != 1
        return {
            "outcome": "correctly refused" if right else "failed",
            "error": type(error).__name__,
            "message": str(error),
            "seconds": round(seconds, 3),
        }
    seconds = time.process_time() - start
    result = {
        "outcome": "failed",
        "head": head.name,
        "found_by": head.found_by,
        "seconds": round(seconds, 3),
    }
    if len(declared) != 1 or head.module is not declared[0]:
        return {**result, "message": f"{len(declared)} layers are declared, but not this one"}
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Auxiliary heads are removed.
        replace_head(model, CLASSES)
    result["seconds_to_replace"] = round(time.process_time() - start, 3)
    shape = list(outputs(model, case.example(model)).shape)
    if CLASSES in (shape[1], shape[-1]) and head.out_features not in (shape[1], shape[-1]):
        return {**result, "outcome": "found"}
    return {**result, "message": f"with the new head the outputs have the shape {shape}"}


def outputs(model: nn.Module, example: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a model for a batch."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model(example) if isinstance(example, Tensor) else model(**example)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def write(results: dict[str, dict[str, Any]]) -> None:
    """Write all results so far, with a summary for each library."""
    libraries = {}
    for library in ("torchvision", "timm", "transformers"):
        models = {key: value for key, value in results.items() if key.startswith(f"{library}/")}
        if not models:
            continue
        outcomes = [value["outcome"] for value in models.values()]
        slowest = max(models, key=lambda key: float(models[key]["seconds"]))
        libraries[library] = {
            "version": version(library),
            "tried": len(models),
            "found": outcomes.count("found"),
            "correctly refused": outcomes.count("correctly refused"),
            "failed": outcomes.count("failed"),
            "seconds": round(sum(float(value["seconds"]) for value in models.values()), 1),
            "slowest": {slowest: models[slowest]["seconds"]},
        }
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "cores": os.cpu_count(),
        "libraries": libraries,
        "models": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    scratch = RESULTS.with_suffix(".partial")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    scratch.replace(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
