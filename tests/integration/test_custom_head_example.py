"""Run `examples/custom_head.py` as a program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_head.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example in an empty folder and return its output."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_example_trains_and_exports_three_heads(tmp_path: Path) -> None:
    """Each head learns the new digits, the backbone is unchanged, and the file is verified."""
    done = run(tmp_path, "--dataset", "digits", "--steps", "60", "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(r"(\d+\.\d)% +(\d+\.\d)%  (\d+) tensors bit for bit +verified", done.stdout)
    assert len(rows) == 3
    for before, after, frozen in rows:
        # Chance is 20%; observed runs reached 64% or more.
        assert float(after) > max(40.0, float(before))
        assert int(frozen) == 18
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"cosine.onnx", "two_layers.onnx", "no_pooling.onnx"}


@pytest.mark.slow
def test_example_refuses_no_shots(tmp_path: Path) -> None:
    """An invalid option exits with code 2 and names the value."""
    done = run(tmp_path, "--shots", "0")
    assert done.returncode == 2
    assert "--shots must be at least 1, got 0" in done.stderr


@pytest.mark.slow
def test_example_names_the_folder_if_mnist_is_missing(tmp_path: Path) -> None:
    """If MNIST is missing, the example fails and downloads nothing."""
    done = run(tmp_path, "--dataset", "mnist", "--data-dir", "nowhere")
    assert done.returncode == 1
    assert "MNIST is not in nowhere" in done.stderr
