"""Causal language models of transformers, on tokens of several lengths with a padded mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conformance.export_models import rows, texts
from finetunelib import export_onnx
from finetunelib.errors import InvalidTypeError
from finetunelib.export import verify_onnx

transformers = pytest.importorskip("transformers")

_LENGTHS = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}


def _gpt2(*, use_cache: bool) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=24,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=use_cache,
    )
    return _seeded(transformers.GPT2LMHeadModel, config)


def _llama(*, use_cache: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=use_cache,
    )
    return _seeded(transformers.LlamaForCausalLM, config)


def _seeded(kind: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = kind(config)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("build", [_gpt2, _llama], ids=["GPT-2", "Llama"])
def test_a_causal_language_model_is_verified_on_tokens_with_a_padded_mask(
    build: Any, tmp_path: Path
) -> None:
    """Batch and length are dynamic, and the file agrees on texts that the export did not use."""
    model, tokens = build(use_cache=False), texts(40)
    report = export_onnx(
        model,
        tmp_path / "lm.onnx",
        rows(tokens, 0, 3),
        dynamic_shapes=_LENGTHS,
        sample_inputs=tokens,
    )
    assert report.verification is not None
    assert (report.verification.status, report.verification.reasons) == ("verified", ())
    assert report.verification.samples > len(tokens["input_ids"])
    assert len(report.verification.sizes["length"]) > 2
    assert [info.shape[:2] for info in report.inputs] == [("batch", "length")] * 2
    unseen = {name: tensor.flip(0)[:5, :9] for name, tensor in tokens.items()}
    assert verify_onnx(report.path, model, [unseen]).status == "verified"


@pytest.mark.parametrize("build", [_gpt2, _llama], ids=["GPT-2", "Llama"])
def test_a_language_model_with_a_cache_is_refused_with_the_remedy(
    build: Any, tmp_path: Path
) -> None:
    """The error says which setting of the model to change."""
    with pytest.raises(InvalidTypeError, match=r"model\.config\.use_cache = False"):
        export_onnx(build(use_cache=True), tmp_path / "lm.onnx", rows(texts(40), 0, 3))
