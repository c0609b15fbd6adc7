"""What an example measured, and how it is written: JSON, and pictures, light and dark."""

from __future__ import annotations

import datetime as dt
import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

import finetunelib
from finetunelib.training import History


@dataclass(frozen=True, slots=True)
class Run:
    """A trained model, its history, and its accuracy on the test samples.

    Attributes:
        seconds: The processor time of the training, with the validation after each epoch.
    """

    model: nn.Module
    history: History
    accuracy: float
    seconds: float


def rounded(runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Return the results of runs as numbers."""
    return {
        name.replace(" ", "_"): {
            "accuracy": round(run.accuracy, 4),
            "val_accuracy": round(run.history.rows[-1]["val_accuracy"], 4),
            "processor_seconds": round(run.seconds, 1),
            "epochs": run.history.rows[-1]["epoch"],
        }
        for name, run in runs.items()
    }


def write_json(path: Path, results: Mapping[str, object], *packages: str) -> None:
    """Write results together with the command, the date and the versions of packages."""
    options = " ".join(sys.argv[1:])
    about = {
        "command": f"python examples/{Path(sys.argv[0]).name} {options}".strip(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "finetunelib": finetunelib.__version__}
        | {name: version(name) for name in ("torch", *packages)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | dict(results), indent=2) + "\n", encoding="utf-8")


def save(path: Path, plot: Callable[..., Figure]) -> None:
    """Save a figure as `NAME.png` and `NAME-dark.png`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plot().savefig(path, dpi=130)
    plot(dark=True).savefig(path.with_stem(f"{path.stem}-dark"), dpi=130)
