"""Run `examples/reviews.py` with a tiny language model, on a few made-up reviews."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from support_examples import run_example

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "it", "was", "very", "not")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a tiny BERT model."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    torch.manual_seed(0)
    save_file(BertModel(config).state_dict(), folder / "model.safetensors")  # With a pooler.
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A zip file with two tables of reviews, some of which are neutral."""
    texts = {"positive": "it was very good", "negative": "bad", "neutral": "it was"}
    rows = [f'"""{text}"""\t{rating}' for rating, text in texts.items()]
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as archive:
        for part, count in (("Train", 12), ("Test", 4)):
            archive.writestr(f"drugsCom{part}.tsv", "\n".join(["review\trating", *rows * count]))
    return tmp_path / "reviews.zip"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
def test_the_example_compares_and_exports(
    tmp_path: Path, model: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, LoRA and full fine-tuning run, and padding changes no probability of the export."""
    files = ("--model", str(model), "--reviews", str(reviews))
    sizes = ("--train", "12", "--val", "8", "--length", "8", "--epochs", "2")
    results = run_example(monkeypatch, "reviews", tmp_path, *files, *sizes)
    assert results["onnx_verified"] is True
    assert results["padding_changes_probabilities_by"] < 1e-5
    assert (results["test_reviews"], results["majority"]) == (8, 0.5)
    assert results["train_reviews"] == 12
    for run in results["runs"].values():
        assert 0 <= run["balanced_accuracy"] <= 1
        assert 1 <= run["best_epoch"] <= run["epochs"] == 2
    trained = {name: run["trained_parameters"] for name, run in results["runs"].items()}
    assert trained["frozen"] == 2 * 16 + 2
    assert trained["LoRA"] == trained["frozen"] + 2 * 2 * 8 * 16
    assert trained["everything"] > trained["LoRA"]
    assert (tmp_path / "out" / "reviews-curves-dark.png").is_file()
    assert (tmp_path / "out" / "reviews-confusion-dark.png").is_file()
