"""The heads of models of torchvision, timm and transformers, built without weights."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conformance.head_models import (
    HeadModel,
    timm_models,
    torchvision_models,
    transformers_models,
)
from finetunelib import freeze_and_replace_head
from finetunelib.errors import AmbiguousHeadError, HeadError
from finetunelib.finetuning import find_head, replace_head

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[2] / "conformance" / "results" / "heads.json"

#: Different families: heads that are convolutions, inside blocks, or after norms.
TIMM = [
    "beit_base_patch16_224",
    "convnext_atto",
    "deit_tiny_patch16_224",
    "dla34",
    "dpn48b",
    "edgenext_xx_small",
    "efficientvit_m0",
    "ghostnet_050",
    "hrnet_w18_small",
    "inception_v3",
    "mixer_s16_224",
    "mobilenetv3_small_050",
    "mvitv2_tiny",
    "naflexvit_base_patch16_gap",
    "pit_xs_224",
    "pvt_v2_b0",
    "regnetx_002",
    "resnet18",
    "resnetv2_18",
    "starnet_s050",
    "swin_tiny_patch4_window7_224",
    "test_mambaout",
    "test_nfnet",
    "test_vit",
    "tiny_vit_5m_224",
    "tresnet_m",
]
TIMM_REFUSED = [
    "crossvit_tiny_240",
    "deit_tiny_distilled_patch16_224",
    "efficientformerv2_s0",
    "levit_128",
    "repvit_m0_9",
    "volo_d1_224",
]
TRANSFORMERS_REFUSED = ["DeiTForImageClassificationWithTeacher"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbid downloads, and ignore the warnings of the libraries."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def model_name(model: HeadModel) -> str:
    """Return the id of a test."""
    return model.name


def width_of_outputs(case: HeadModel, model: nn.Module) -> int:
    """Return the number of classes in a model's outputs."""
    example = case.example(model)
    with torch.no_grad():
        outputs: Any = model.eval()(**example) if isinstance(example, dict) else model(example)
    logits: torch.Tensor = getattr(outputs, "logits", outputs)
    return logits.shape[-1 if logits.dim() == 3 else 1]


def check_replacing(case: HeadModel) -> None:
    """Check that the declared classifier is found, and that the new one computes the outputs."""
    model = case.build().eval()
    (declared,) = case.declared(model)
    names = {module: name for name, module in model.named_modules()}
    replace_head(model, num_classes=7)
    assert declared not in set(model.modules())
    assert type(model.get_submodule(names[declared])) in (nn.Linear, nn.Conv2d)
    assert width_of_outputs(case, model) == 7


def test_every_classification_model_of_torchvision_is_listed() -> None:
    """The list comes from torchvision."""
    assert len(torchvision_models()) >= 80


@pytest.mark.parametrize("case", torchvision_models(), ids=model_name)
def test_head_of_torchvision_model_is_replaced(case: HeadModel) -> None:
    """The head is found on the meta device."""
    check_replacing(case)


@pytest.mark.parametrize("case", timm_models(TIMM), ids=model_name)
def test_head_of_timm_model_is_replaced(case: HeadModel) -> None:
    """The head is found on the meta device."""
    check_replacing(case)


@pytest.mark.parametrize(
    "case",
    [case for case in transformers_models() if case.name not in TRANSFORMERS_REFUSED],
    ids=model_name,
)
def test_head_of_transformers_model_is_replaced(case: HeadModel) -> None:
    """The head is found without an example."""
    check_replacing(case)


@pytest.mark.parametrize(
    "case",
    timm_models(TIMM_REFUSED)
    + [case for case in transformers_models() if case.name in TRANSFORMERS_REFUSED],
    ids=model_name,
)
def test_model_with_several_heads_is_refused_with_their_names(case: HeadModel) -> None:
    """The error lists the layers that compute the outputs, and no others."""
    model = case.build()
    names = {module: name for name, module in model.named_modules()}
    with pytest.raises(AmbiguousHeadError) as caught:
        find_head(model)
    for layer in case.declared(model):
        assert f"`{names[layer]}`" in str(caught.value)
    assert f"{len(case.declared(model))} layers" in str(caught.value)


def test_model_without_a_head_is_refused() -> None:
    """A model that returns features has no head."""
    (case,) = timm_models(["sam2_hiera_tiny"])
    with pytest.raises(HeadError, match="head="):
        find_head(case.build())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_model_with_auxiliary_heads_trains_with_the_new_head_alone(name: str) -> None:
    """In train mode, the model returns only the outputs of the new head."""
    (case,) = [case for case in torchvision_models() if case.name == name]
    model = case.build()
    with pytest.warns(UserWarning, match="(?i)aux"):
        freeze_and_replace_head(model, num_classes=7)
    outputs = model.train()(case.example(model))
    assert outputs.shape == (2, 7)
    assert not any("aux" in key.lower() for key in model.state_dict())


def test_number_of_labels_in_a_transformers_config_is_updated() -> None:
    """Model and config agree, so the loss and saving still work."""
    (case,) = [
        case for case in transformers_models() if case.name == "BertForSequenceClassification"
    ]
    model: Any = case.build()
    replace_head(model, num_classes=7)
    assert model.num_labels == 7
    assert model.config.num_labels == 7
    assert len(model.config.id2label) == 7


def test_config_of_a_refused_transformers_model_is_restored() -> None:
    """It has its label names again."""
    (case,) = [
        case for case in transformers_models() if case.name == "BertForSequenceClassification"
    ]
    model: Any = case.build()
    model.config.id2label = dict(enumerate("abcde"))
    before = model.config.to_dict()
    with pytest.raises(HeadError):
        replace_head(model, head=nn.Linear(3, 7))
    assert model.config.to_dict() == before
    assert model.num_labels == 5


def test_text_may_be_passed_by_name() -> None:
    """`input_ids` and a mask find the same head."""
    (case,) = [
        case for case in transformers_models() if case.name == "RobertaForSequenceClassification"
    ]
    ids = torch.arange(3, 9).expand(2, 6)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert find_head(case.build(), example).name == "classifier.out_proj"


def test_sweep_results_contain_every_model_and_no_failure() -> None:
    """The hit rates in the docs come from a run over all models."""
    results = json.loads(RESULTS.read_text())
    models = [*torchvision_models(), *timm_models(), *transformers_models()]
    assert {f"{model.library}/{model.name}" for model in models} == results["models"].keys()
    assert all(value["outcome"] != "failed" for value in results["models"].values())
    assert results["libraries"]["torchvision"]["found"] == len(torchvision_models())
    assert time.strptime(results["date"], "%Y-%m-%d")
