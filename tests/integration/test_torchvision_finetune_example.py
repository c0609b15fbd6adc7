"""`examples/torchvision_finetune.py` as a program."""

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
    """Run the example in an empty folder and return what it said."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_images(folder: Path, *classes: str) -> None:
    """Write four grey images of each class."""
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in range(4):
            noise = torch.rand(3, 40, 40, generator=generator) * 0.2
            to_pil_image(noise + 0.7 * number).save(folder / name / f"{row}.png")


def test_example_fine_tunes_on_the_digits(tmp_path: Path) -> None:
    """From images of one half of the digits to a verified model of the other half."""
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
    # Chance is 20%, and short runs that were looked at reached 60% and more.
    assert after > max(35.0, before)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "classes.txt",
        "fine_tuned.safetensors",
        "model.onnx",
        "pretrained.safetensors",
    }
    classes = (tmp_path / "out" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert classes == ["eight", "five", "nine", "seven", "six"]


def test_example_takes_a_folder_of_images(tmp_path: Path) -> None:
    """Images of one's own and a small model, whose random weights are called so."""
    write_images(tmp_path / "images" / "train", "dark", "light")
    write_images(tmp_path / "images" / "val", "dark", "light")
    done = run(
        tmp_path,
        *("--images", "images", "--model", "squeezenet1_1", "--epochs", "1"),
        *("--output-dir", "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "the backbone is random" in done.stdout
    assert "8 to train on, 8 to measure on, 2 classes" in done.stdout
    assert "in this order: dark, light." in done.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_example_with_a_random_backbone_is_the_same_each_time(tmp_path: Path) -> None:
    """The seed decides the backbone's weights too, where no file does."""
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


def test_example_names_models_like_the_one_asked_for(tmp_path: Path) -> None:
    """A name that torchvision does not know ends with code 2 and similar names."""
    done = run(tmp_path, "--model", "resnet19")
    assert done.returncode == 2
    assert "'resnet19'" in done.stderr
    assert "resnet18" in done.stderr


def test_example_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    """A folder without train/ ends with code 1 and its name, and no traceback."""
    done = run(tmp_path, "--images", "nowhere")
    assert done.returncode == 1
    assert "`nowhere/train`" in done.stderr
    assert "Traceback" not in done.stderr


def test_example_refuses_weights_of_another_model(tmp_path: Path) -> None:
    """Weights that do not fit end with code 1 and the library's report, and no traceback."""
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    done = run(tmp_path, "--dataset", "digits", "--weights", "other.pth")
    assert done.returncode == 1
    assert "WeightsMismatchError" in done.stderr
    assert "Traceback" not in done.stderr
