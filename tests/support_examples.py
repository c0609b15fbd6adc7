"""Run an example as a program, in this process: importing PyTorch again would take seconds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *arguments: str) -> Any:
    """Run an example in a folder, and return the results that it wrote to `out/NAME.json`."""
    assert start_example(monkeypatch, name, folder, *arguments) == 0
    return json.loads((folder / "out" / f"{name}.json").read_text(encoding="utf-8"))


def start_example(
    monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *arguments: str
) -> object:
    """Run an example in a folder, and return its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CI", "true")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--output-dir", "out"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return exit_.value.code
