"""Run `examples/speakers.py` with random weights on melodies, and check its features."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from finetunelib.export import load_onnx_metadata
from support_examples import EXAMPLES, run_example


@pytest.fixture
def speakers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("speakers")


@pytest.mark.slow
def test_the_example_compares_exports_and_serves(
    speakers: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The encoder is read from a checkpoint, and the file that is exported takes recordings."""
    torch.manual_seed(0)
    # Larger weights than the initial ones, so that the outputs vary.
    state = {name: 4 * value for name, value in speakers.SpeakerEncoder().state_dict().items()}
    checkpoint = {"step": 1, "model_state": {**state, "similarity_weight": torch.ones(1)}}
    torch.save(checkpoint, tmp_path / "encoder.pt")
    sizes = ("--words", "1", "--epochs", "1", "--head-epochs", "20", "--seconds", "0.2")
    options = ("--voices", "melodies", "--weights", "encoder.pt")
    results = run_example(monkeypatch, "speakers", tmp_path, *sizes, *options)
    assert results["onnx_status"] == "verified"
    assert set(results["words"]["1"]) == {
        "average_spectrum",
        "new_head",
        "then_everything",
        "from_scratch",
    }
    printed = capsys.readouterr().out
    assert "14 of 14 tensors loaded from encoder.pt" in printed
    assert "Served by onnxruntime alone" in printed
    metadata = load_onnx_metadata(tmp_path / "out" / "speakers.onnx")
    assert metadata["labels"] == list(speakers.SPEAKERS)
    assert (tmp_path / "out" / "speakers-confusion-dark.png").is_file()


def test_the_spectrogram_is_that_of_another_implementation(speakers: ModuleType) -> None:
    """The mel bands and energies are those that the encoder was trained with."""
    wave = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    wave *= 10 ** (-30 / 20) / wave.square().mean().sqrt()
    bands = mel_filter_bank(201, 40, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(speakers.mel_bands(40, 400).numpy().T, bands, atol=1e-9)
    expected = spectrogram(
        wave.double().numpy(),
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        power=2.0,
        pad_mode="constant",
        mel_filters=bands,
    )
    found = speakers.Spectrogram()(wave[None])[0].T.numpy()
    # Single precision: sums of 400 products.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_resampling_keeps_a_tone(speakers: ModuleType) -> None:
    """A tone of 1,000 Hz at 22,050 samples per second is the same tone at 16,000."""
    times = [torch.arange(rate, dtype=torch.float64) / rate for rate in (22050, 16000)]
    original, expected = ((2 * torch.pi * 1000 * time).sin() for time in times)
    torch.testing.assert_close(speakers.resample(original, 22050), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "apt install espeak-ng"), (("--words", "6"), "only 5 words")],
    ids=["no espeak-ng", "too many words"],
)
def test_what_cannot_run_is_an_error_at_once(
    speakers: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """Without espeak-ng or enough words, the program stops before it downloads anything."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["speakers.py", *arguments])
    with pytest.raises(SystemExit):
        speakers.main()
    assert said in capsys.readouterr().err
