"""A correct file is verified."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from finetunelib import export_onnx
from support_right_models import RECURRENT, RIGHT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RIGHT)
def test_a_correct_model_is_verified(tmp_path: Path, name: str) -> None:
    """No warning is shown, and the inputs and outputs of the file have different names."""
    right = RIGHT[name]
    path = tmp_path / "right.onnx"
    report = export_onnx(right.module, path, right.example, **right.options)
    assert report.verification is not None
    assert report.verification.status == "verified", report
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_correct_recurrent_model_is_verified(tmp_path: Path, name: str) -> None:
    """The batch may be the second axis, of the state and of the inputs."""
    program = (
        "import sys\n"
        "from finetunelib import export_onnx\n"
        "from support_right_models import RECURRENT\n"
        "right = RECURRENT[sys.argv[1]]\n"
        "report = export_onnx(right.module, sys.argv[2], right.example, **right.options)\n"
        "print(report.verification.status)\n"
    )
    path = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", program, name, str(tmp_path / "recurrent.onnx")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "verified", done.stderr


def test_there_are_many_correct_models() -> None:
    """Removing models from the collection does not go unnoticed."""
    assert len(RIGHT) + len(RECURRENT) >= 70
