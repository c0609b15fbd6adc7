"""Run `examples/few_images.py` with random weights, on a few digits of scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from finetunelib.export import load_onnx_metadata
from support_examples import run_example, start_example


def random_weights(folder: Path) -> Path:
    """Write the random weights of a network under other names."""
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    file = folder / "other.pth"
    torch.save({f"_{name}": value for name, value in state.items()}, file)
    return file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::finetunelib.errors.DiagnosisWarning")  # a random network
def test_the_example_compares_exports_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights under other names are loaded, and the file that is exported serves raw images."""
    random_weights(tmp_path)
    epochs = ("--epochs", "1", "--lr", "1e-4", "--head-epochs", "2", "--small-epochs", "2")
    sizes = ("--per-class", "1", *epochs, "--size", "32")
    data = ("--dataset", "digits", "--val", "1", "--test", "10", "--weights", "other.pth")
    results = run_example(monkeypatch, "few_images", tmp_path, *sizes, *data)
    assert results["onnx_verified"] is True
    assert set(results["per_class"]["1"]) == {
        "new_head",
        "then_everything",
        "from_scratch",
        "small_network",
    }
    printed = capsys.readouterr().out
    assert "296 of 296 tensors loaded from other.pth" in printed
    assert "Served by onnxruntime alone" in printed
    metadata = load_onnx_metadata(tmp_path / "out" / "digits.onnx")
    assert metadata["labels"] == [str(digit) for digit in range(10)]
    assert (tmp_path / "out" / "few-images-confusion-dark.png").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::finetunelib.errors.DiagnosisWarning")  # a random network
def test_the_example_measures_learning_rates_on_images_that_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other run is made, and the test images are not used."""
    weights = str(random_weights(tmp_path))
    sizes = ("--per-class", "1", "--epochs", "1", "--lr", "1e-4", "--small-epochs", "1")
    data = ("--dataset", "digits", "--size", "32", "--head-epochs", "2", "--weights", weights)
    rates = ("--try-lr", "1e-4", "1e-3")
    assert start_example(monkeypatch, "few_images", tmp_path, *sizes, *data, *rates) == 0
    (file,) = (tmp_path / "out").iterdir()
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["held_out_images"] == 500
    assert results["columns"] == ["new_head", "0.0001", "0.001"]
    assert len(results["accuracy"]["1"]) == 3


@pytest.mark.slow
def test_the_example_needs_a_learning_rate_for_each_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The defaults are for three numbers of images."""
    sizes = ("--per-class", "1", "--epochs", "1", "--small-epochs", "1")
    assert start_example(monkeypatch, "few_images", tmp_path, *sizes) == 2
    assert "--lr must have as many numbers as --per-class" in capsys.readouterr().err
