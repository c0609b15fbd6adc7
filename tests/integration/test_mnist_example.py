"""Run `examples/mnist.py` as a program on both datasets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist.py"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the example in an empty folder and return its output."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def accuracies(output: str) -> list[float]:
    """Return the two accuracies that the example prints."""
    return [float(text) for text in re.findall(r": (\d+\.\d+)%", output)]


@pytest.mark.slow
def test_example_runs_on_the_scikit_learn_digits(tmp_path: Path) -> None:
    """Every step runs on the small digits without MNIST, and all files are written."""
    done = run(tmp_path, "--dataset", "digits", "--epochs", "20", "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert min(accuracies(done.stdout)) > 85.0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "confusion.png",
        "digits.npy",
        "fine_tuned.safetensors",
        "fine_tuned_history.json",
        "history.png",
        "mistakes.png",
        "mnist.onnx",
        "pretrained.safetensors",
        "pretrained_history.json",
    }
    for picture in (tmp_path / "out").glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "7. Drew history.png, mistakes.png, confusion.png" in done.stdout.splitlines()
    model = onnx.load(tmp_path / "out" / "mnist.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.slow
@pytest.mark.mnist
def test_example_learns_mnist(tmp_path: Path, mnist_folder: Path) -> None:
    """After two epochs on MNIST, the accuracy is that of a hand-written loop."""
    done = run(tmp_path, "--dataset", "mnist", "--epochs", "2", FINETUNELIB_DATA=str(mnist_folder))
    assert done.returncode == 0, done.stderr
    pretrained, tuned = accuracies(done.stdout)
    # The hand-written loop reaches 93.7%; other machines may differ by one percentage point.
    assert pretrained > 92.7
    assert tuned > 92.7


@pytest.mark.slow
def test_example_falls_back_if_mnist_cannot_be_downloaded(tmp_path: Path) -> None:
    """If a download fails, `auto` reports it and uses the small digits."""
    done = run(
        tmp_path,
        *("--data-dir", "nowhere", "--epochs", "1"),
        http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
        no_proxy="",
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert "using the scikit-learn digits" in first
    assert "1,437 training images" in second


@pytest.mark.slow
def test_example_without_matplotlib_draws_nothing_and_says_so(tmp_path: Path) -> None:
    """The other steps run, and the output names the package to install."""
    (tmp_path / "hiding").mkdir()
    # Python imports `sitecustomize` at startup, so matplotlib is not found.
    (tmp_path / "hiding" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['matplotlib'] = None\n"
    )
    path = os.pathsep.join([str(tmp_path / "hiding"), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, "--dataset", "digits", "--epochs", "1", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "Drew no pictures. " in done.stdout
    assert 'pip install "finetunelib[plots]"' in done.stdout
    assert not list((tmp_path / "runs" / "mnist").glob("*.png"))


def test_example_refuses_no_epochs(tmp_path: Path) -> None:
    """An invalid option exits with code 2 and names the value."""
    done = run(tmp_path, "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs must be at least 1, got 0" in done.stderr
