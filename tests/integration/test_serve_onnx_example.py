"""`examples/serve_onnx.py`: from raw images to labels without PyTorch."""

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
    """Export a classifier of raw digits with all that the example reads."""
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
    """Twenty images of noise, each of another brightness."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(20, 1, 1, 1, generator=generator)
    return (torch.rand(20, 1, 28, 28, generator=generator) * light * 255).to(torch.uint8)


@pytest.mark.slow
def test_example_serves_labels_without_torch(
    tmp_path: Path, raw: Tensor, without_torch: dict[str, str]
) -> None:
    """Raw images go in, and the labels of the model come out with their probabilities."""
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
def test_example_notices_a_file_that_computes_something_else(
    tmp_path: Path, raw: Tensor, without_torch: dict[str, str]
) -> None:
    """The self-test fails where a weight has changed, and nothing is served."""
    path = exported(seeded(lambda: build_mlp(784, [16], 10)), raw, tmp_path)
    model = onnx.load(path)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32), bias.name))
    onnx.save(model, path)
    np.save(tmp_path / "images.npy", raw[:5].numpy())
    done = serve(path, tmp_path / "images.npy", without_torch)
    assert (done.returncode, done.stdout) == (1, "")
    assert "computes different outputs here" in done.stderr


def test_example_is_as_short_as_it_is_said_to_be() -> None:
    """The body of its main function has at most fifteen lines."""
    text = EXAMPLE.read_text("utf-8")
    body = re.search(r"def main.*?\n\n\n", text, re.DOTALL)
    assert body is not None
    assert len(body[0].strip().splitlines()) <= 15
    assert "import torch" not in text


@pytest.mark.slow
@pytest.mark.mnist
def test_raw_digits_get_the_labels_that_predict_gives(tmp_path: Path, mnist_folder: Path) -> None:
    """Of 1,000 test images of MNIST the file and `predict` agree on 1,000."""
    train, test = MNIST(mnist_folder, train=True), MNIST(mnist_folder, train=False)

    def normalised(images: Tensor) -> Tensor:
        return (images.unsqueeze(1).float() / 255 - 0.1307) / 0.3081

    trainer = Trainer(build_mlp(784, [64], 10, seed=0), batch_size=100, progress=False)
    trainer.fit((normalised(train.data[:6000]), train.targets[:6000]), epochs=2)
    raw = test.data[:1000].unsqueeze(1)
    path = exported(trainer.model, raw, tmp_path)

    predicted = trainer.predict(normalised(test.data[:1000])).argmax(1)
    session = onnxruntime.InferenceSession(str(path))
    (scores,) = session.run(None, {session.get_inputs()[0].name: raw.numpy()})
    assert (np.asarray(scores).argmax(1) == predicted.numpy()).sum() == 1000
    assert (predicted == test.targets[:1000]).float().mean() > 0.8
