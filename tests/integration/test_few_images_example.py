"""Run `examples/few_images.py` with random weights, on a few digits of scikit-learn."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import timm
import torch

from finetunelib.export import load_onnx_metadata
from support_examples import EXAMPLES, run_example, start_example


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
    epochs = ("--epochs", "1", "1", "--lr", "1e-4", "1e-4", "--head-epochs", "2")
    sizes = ("--per-class", "1", "2", *epochs, "--small-epochs", "1", "1", "--size", "32")
    data = ("--dataset", "digits", "--val", "1", "--test", "10", "--weights", "other.pth")
    results = run_example(monkeypatch, "few_images", tmp_path, *sizes, *data)
    assert results["onnx_verified"] is True
    ways = {"new_head", "then_everything", "small_network"}
    assert set(results["per_class"]["1"]) == ways
    assert set(results["per_class"]["2"]) == ways | {"from_scratch"}
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
    sizes = ("--per-class", "1", "--epochs", "1", "--held-out", "2", "--val", "1")
    data = ("--dataset", "digits", "--size", "32", "--head-epochs", "2", "--weights", weights)
    rates = ("--try-lr", "1e-4", "1e-4", "1e-2")
    assert start_example(monkeypatch, "few_images", tmp_path, *sizes, *data, *rates) == 0
    (file,) = (tmp_path / "out").iterdir()
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["held_out_images"] == 20
    assert results["columns"] == ["new head", "0.0001", "0.0001", "0.01"]
    # Each rate starts from the same network, and the same rate gives the same result.
    assert results["accuracy"]["1"][1] == results["accuracy"]["1"][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1e-4"], "--lr must have as many numbers as --per-class"),
        (["--try-lr", "1e-4", "--epochs", "1"], "--epochs must have as many numbers"),
        (["--from-scratch", "50"], "--from-scratch must contain only values of --per-class"),
        (["--try-lr", "-1"], "the learning rates must be greater than 0"),
    ],
)
def test_the_example_rejects_options_that_do_not_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Nothing is trained before the options are checked."""
    assert start_example(monkeypatch, "few_images", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_held_out_images_are_no_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a class are taken from a number on, and too few are an error."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    few_images = importlib.import_module("few_images")
    samples = (torch.arange(40), torch.arange(40) % 10)
    few, held_out = few_images.part(samples, 0, 1), few_images.part(samples, 1, 3)
    assert sorted([*few[0].tolist(), *held_out[0].tolist()]) == list(range(40))
    with pytest.raises(SystemExit, match="4 training images of each class are needed, and one has"):
        few_images.part((samples[0][1:], samples[1][1:]), 1, 3)
