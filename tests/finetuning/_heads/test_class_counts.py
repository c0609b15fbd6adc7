"""Copies of the number of classes in the configs of transformers models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DetrConfig,
    DetrForObjectDetection,
    HubertConfig,
    HubertForCTC,
    ResNetConfig,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    YolosConfig,
    YolosForObjectDetection,
)

from finetunelib import freeze_and_replace_head
from finetunelib.errors import HeadError
from finetunelib.finetuning import find_head, replace_head

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
WAVES: dict[str, Any] = {
    **SMALL,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def _ignore_warnings_of_transformers() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bert(kind: Any = BertForSequenceClassification, **options: Any) -> Any:
    """Return a small model with three labels."""
    settings: dict[str, Any] = {"vocab_size": 40, "num_labels": 3, **SMALL} | options
    return kind(BertConfig(**settings))


def detr() -> Any:
    """Return a small detector with three classes, and one for no object."""
    stages: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    stages["out_indices"] = [2]
    settings: dict[str, Any] = {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": ResNetConfig(**stages),
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 4,
        "num_labels": 3,
    }
    return DetrForObjectDetection(DetrConfig(**settings))


def yolos() -> Any:
    """Return a small detector with three classes, and one for no object."""
    settings: dict[str, Any] = {
        **SMALL,
        "image_size": [32, 32],
        "patch_size": 16,
        "num_labels": 3,
        "num_detection_tokens": 4,
    }
    return YolosForObjectDetection(YolosConfig(**settings))


@pytest.mark.parametrize(
    ("kind", "config"), [(Wav2Vec2ForCTC, Wav2Vec2Config), (HubertForCTC, HubertConfig)]
)
def test_vocabulary_of_a_ctc_model_is_updated(kind: Any, config: Any) -> None:
    """The loss accepts the new tokens."""
    torch.manual_seed(0)
    model = kind(config(vocab_size=12, **WAVES))
    freeze_and_replace_head(model, num_classes=20, example_input=torch.randn(2, 400))
    assert model.config.vocab_size == 20
    model(torch.randn(2, 2000), labels=torch.tensor([[15, 18], [1, 19]])).loss.backward()


def test_vocabulary_of_the_inputs_is_not_updated() -> None:
    """A number of labels that equals the size of the embedding is a coincidence."""
    model = bert(num_labels=40)
    replace_head(model, num_classes=5)
    assert (model.config.vocab_size, model.config.num_labels) == (40, 5)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@pytest.mark.parametrize("classes", [1, 3, 5])
def test_kind_of_problem_is_reset(problem: str, classes: int) -> None:
    """The loss follows the new targets."""
    model = bert(problem_type=problem)
    freeze_and_replace_head(model, num_classes=classes)
    assert model.config.problem_type is None
    ids = torch.randint(3, 30, (2, 8), generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0.5, 1.0]) if classes == 1 else torch.tensor([0, 2])
    assert model(ids, labels=targets).loss.isfinite()
    assert model.config.problem_type == (
        "regression" if classes == 1 else "single_label_classification"
    )


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
@pytest.mark.parametrize("classes", [3, 5])
def test_label_names_are_reset(kind: Any, classes: int) -> None:
    """The old names do not describe the new classes, even if there are as many."""
    model = bert(kind, id2label={0: "cat", 1: "dog", 2: "owl"})
    replace_head(model, num_classes=classes)
    assert model.config.id2label == {number: f"LABEL_{number}" for number in range(classes)}
    assert model.config.label2id == {f"LABEL_{number}": number for number in range(classes)}
    assert model.config.num_labels == classes


def test_label_names_are_restored_after_an_error() -> None:
    """A refused head leaves the config unchanged."""
    model = bert(id2label={0: "cat", 1: "dog", 2: "owl"}, problem_type="regression")
    before = model.config.to_dict()
    with pytest.raises(HeadError):
        replace_head(model, head=nn.Linear(9, 3))
    assert model.config.to_dict() == before


@pytest.mark.parametrize("build", [detr, yolos])
@pytest.mark.parametrize("at", [None, "class_labels_classifier"])
def test_detector_is_refused(build: Any, at: str | None) -> None:
    """Its loss depends on a number of classes that its head exceeds by one."""
    model = build()
    old = model.class_labels_classifier
    with pytest.raises(HeadError, match="num_labels="):
        freeze_and_replace_head(model, num_classes=5, at=at)
    with pytest.raises(HeadError):
        find_head(model)
    assert model.class_labels_classifier is old
    assert model.config.num_labels == 3
