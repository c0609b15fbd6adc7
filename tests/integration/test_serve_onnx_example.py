"""Run `examples/serve_onnx.py`, which predicts labels of raw images without PyTorch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.datasets import MNIST

from finetunelib import Trainer, build_mlp, export_onnx
from support_models import seeded

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which PyTorch cannot be imported."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('there is no torch here')", "utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


def serve(
    model: Path, images: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the example."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), str(model), str(images)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def exported(model: nn.Module, raw: Tensor, folder: Path) -> Path:
    """Export a classifier of raw digits with all metadata that the example reads."""
    report = export_onnx(
        model,
        folder / "digits.onnx",
        raw[:2],
        sample_inputs=raw,
        preprocessing=(0.1307, 0.3081),
        softmax=True,
        labels=[f"digit {number}" for number in range(10)],
        self_test=True,
    )
    return report.path


@pytest.fixture
def raw() -> Tensor:
    """Twenty images of noise with different brightness."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(20, 1, 1, 1, generator=generator)
    return (torch.rand(20, 1, 28, 28, generator=generator) * light * 255).to(torch.uint8)


@pytest.mark.slow
def test_example_serves_labels_without_torch(
    tmp_path: Path, raw: Tensor, without_torch: dict[str, str]
) -> None:
    """For raw images, the example prints the labels of the model with their probabilities."""
    model = seeded(lambda: build_mlp(784, [16], 10))
    path = exported(model, raw, tmp_path)
    np.save(tmp_path / "images.npy", raw[:5].numpy())
    done = serve(path, tmp_path / "images.npy", without_torch)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        scores = model.eval()((raw[:5].float() / 255 - 0.1307) / 0.3081).softmax(1)
    expected = [f"digit {row.argmax()} {row.max():.1%}" for row in scores]
    assert done.stdout.splitlines() == expected


@pytest.mark.slow
def test_example_detects_a_modified_file(
    tmp_path: Path, raw: Tensor, without_torch: dict[str, str]
) -> None:
    """If a weight has changed, the self-test fails and no label is printed."""
    path = exported(seeded(lambda: build_mlp(784, [16], 10)), raw, tmp_path)
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32), bias.name))
    onnx.save(model, path)
    np.save(tmp_path / "images.npy", raw[:5].numpy())
    done = serve(path, tmp_path / "images.npy", without_torch)
    assert (done.returncode, done.stdout) == (1, "")
    assert "computes different outputs here" in done.stderr


def test_example_is_short() -> None:
    """The main function has at most 15 lines, as the documentation says."""
    text = EXAMPLE.read_text("utf-8")
    body = re.search(r"def main.*?\n\n\n", text, re.DOTALL)
    assert body is not None
    assert len(body[0].strip().splitlines()) <= 15
    assert "import torch" not in text


@pytest.mark.slow
@pytest.mark.mnist
def test_labels_of_raw_digits_equal_those_of_predict(tmp_path: Path, mnist_folder: Path) -> None:
    """The file and `predict` agree on all of 1,000 test images of MNIST."""
    train, test = MNIST(mnist_folder, train=True), MNIST(mnist_folder, train=False)

    def normalized(images: Tensor) -> Tensor:
        return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081

    trainer = Trainer(build_mlp(784, [64], 10, seed=0), batch_size=100, progress=False)
    trainer.fit((normalized(train.data[:6000]), train.targets[:6000]), epochs=2)
    raw = test.data[:1000].unsqueeze(1)
    path = exported(trainer.model, raw, tmp_path)

    predicted = trainer.predict(normalized(test.data[:1000])).argmax(1)
    session = onnxruntime.InferenceSession(str(path))
    (scores,) = session.run(None, {session.get_inputs()[0].name: raw.numpy()})
    assert (np.asarray(scores).argmax(1) == predicted.numpy()).sum() == 1000
    assert (predicted == test.targets[:1000]).float().mean() > 0.8
