"""Run `examples/few_images.py` with random weights, on a few digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from finetunelib.export import load_onnx_metadata
from support_examples import run_example


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::finetunelib.errors.DiagnosisWarning")  # a random network
def test_the_example_compares_exports_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights under other names are loaded, and the file that is exported serves raw images."""
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"_{name}": value for name, value in state.items()}, tmp_path / "other.pth")
    epochs = ("--epochs", "1", "--head-epochs", "2", "--small-epochs", "2")
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
