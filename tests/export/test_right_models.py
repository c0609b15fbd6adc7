"""A right model is exported and verified."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from export.right_models import RECURRENT, RIGHT
from finetunelib import export_onnx

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_model_is_verified(tmp_path: Path, name: str) -> None:
    """Without a warning, and with a file that has each input and output under its own name."""
    right = RIGHT[name]
    path = tmp_path / "right.onnx"
    report = export_onnx(right.module, path, right.example, **right.options)
    assert report.verification is not None
    assert report.verification.status == "verified", report
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    assert len(set(names)) == len(names)


def test_right_recurrent_models_are_verified(tmp_path: Path) -> None:
    """Their states have the batch as the second axis, and their time may be the first."""
    program = (
        "import sys\n"
        "from finetunelib import export_onnx\n"
        "from export.right_models import RECURRENT\n"
        "for name, right in RECURRENT.items():\n"
        "    report = export_onnx(right.module, sys.argv[1], right.example, **right.options)\n"
        "    print(name, report.verification.status, sep=': ')\n"
    )
    path = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", "-c", program, tmp_path / "r.onnx"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name}: verified" for name in RECURRENT], done.stderr


def test_there_are_many_right_models() -> None:
    """The collection does not shrink unnoticed."""
    assert len(RIGHT) + len(RECURRENT) >= 70
