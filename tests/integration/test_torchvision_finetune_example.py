"""Run `examples/torchvision_finetune.py` as a program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchvision_finetune.py"

pytestmark = pytest.mark.slow


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


def write_images(folder: Path, *classes: str) -> None:
    """Write four gray images for each class."""
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in range(4):
            noise = torch.rand(3, 40, 40, generator=generator) * 0.2
            to_pil_image(noise + 0.7 * number).save(folder / name / f"{row}.png")


def test_example_fine_tunes_on_the_digits(tmp_path: Path) -> None:
    """A model pretrained on five digits learns the other five, and its export is verified."""
    done = run(
        tmp_path,
        *("--dataset", "digits", "--size", "32", "--output-dir", "out"),
        *("--pretrain-epochs", "1", "--epochs", "4"),
    )
    assert done.returncode == 0, done.stderr
    assert "120 of 122 tensors loaded from pretrained.safetensors" in done.stdout
    assert "122 of 122 tensors loaded from fine_tuned.safetensors" in done.stdout
    (found,) = re.findall(r"(\d+\.\d)% before training, (\d+\.\d)% after", done.stdout)
    before, after = map(float, found)
    # Chance is 20%; observed short runs reached 60% or more.
    assert after > max(35.0, before)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "classes.txt",
        "fine_tuned.safetensors",
        "model.onnx",
        "pretrained.safetensors",
    }
    classes = (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert classes == ["eight", "five", "nine", "seven", "six"]


def test_example_accepts_a_folder_of_images(tmp_path: Path) -> None:
    """A custom folder and a small model work, and the output says that the weights are random."""
    write_images(tmp_path / "images" / "train", "dark", "light")
    write_images(tmp_path / "images" / "val", "dark", "light")
    done = run(
        tmp_path,
        *("--images", "images", "--model", "squeezenet1_1", "--epochs", "1"),
        *("--output-dir", "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "the backbone is random" in done.stdout
    assert "8 for training, 8 for validation, 2 classes" in done.stdout
    assert "in this order: dark, light." in done.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_example_with_a_random_backbone_is_reproducible(tmp_path: Path) -> None:
    """Without a weights file, the seed determines the weights of the backbone."""
    write_images(tmp_path / "images" / "train", "dark", "light")
    write_images(tmp_path / "images" / "val", "dark", "light")
    written = []
    for name in ("first", "second"):
        done = run(
            tmp_path,
            *("--images", "images", "--model", "squeezenet1_1", "--epochs", "1"),
            *("--size", "32", "--output-dir", name),
        )
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / name / "fine_tuned.safetensors").read_bytes())
    assert written[0] == written[1]


def test_example_suggests_similar_model_names(tmp_path: Path) -> None:
    """An unknown model name exits with code 2 and lists similar names."""
    done = run(tmp_path, "--model", "resnet19")
    assert done.returncode == 2
    assert "'resnet19'" in done.stderr
    assert "resnet18" in done.stderr


def test_example_names_the_missing_folder(tmp_path: Path) -> None:
    """A folder without `train/` exits with code 1 and names the folder, without a traceback."""
    done = run(tmp_path, "--images", "nowhere")
    assert done.returncode == 1
    assert "`nowhere/train`" in done.stderr
    assert "Traceback" not in done.stderr


def test_example_refuses_weights_of_another_model(tmp_path: Path) -> None:
    """Weights of another model exit with code 1 and a library error, without a traceback."""
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    done = run(tmp_path, "--dataset", "digits", "--weights", "other.pth")
    assert done.returncode == 1
    assert "WeightsMismatchError" in done.stderr
    assert "Traceback" not in done.stderr
