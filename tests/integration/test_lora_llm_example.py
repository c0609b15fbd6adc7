"""Run `examples/lora_llm.py` as a program, with a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from release_version import ROOT


@pytest.mark.slow
def test_killed_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """The adapters of both runs are equal, the file is small, and the export is verified."""
    for name in ("peft", "transformers"):
        pytest.importorskip(name)
    script = ROOT / "examples" / "lora_llm.py"
    command = [sys.executable, str(script), "--params", "1e6", "--dtype", "float32"]
    command += ["--tokens", "8", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "CI": "true"}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["resumed_has_the_same_bits"]
    assert result["export_verified"]
    assert result["steps"] == 4
    assert 0 < result["adapter_bytes"] < 1_000_000
    assert result["merge_difference"] < 1e-5


@pytest.mark.slow
def test_all_weights_are_trained_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--full`, the file contains each weight, and no adapters are added."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("CI", "true")
    import lora_llm

    (tmp_path / "base").mkdir()
    lora_llm.write_shards(lora_llm.config_of(1e6), tmp_path / "base", torch.float32)
    options = Namespace(params=1e6, dtype="float32", tokens=4, folder=tmp_path, full=True)
    options.run = "whole"
    lora_llm.estimate(options)
    lora_llm.train(options)
    estimated, trained = map(json.loads, capsys.readouterr().out.splitlines())
    assert trained["steps"] == 4
    assert trained["weights_bytes"] > 4 * estimated["parameters"]
    assert estimated["estimated_bytes"] > 16 * estimated["parameters"]
