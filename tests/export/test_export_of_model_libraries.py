"""Exports of models of torchvision and transformers, and of two other kinds of models.

The tests export the smallest model of each torchvision family. The script
`tests/conformance/export.py` exports all models, and its stored results are checked here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.export import PAGE, RESULTS, check, key, models, page
from conformance.export_models import (
    ExportModel,
    images,
    own_models,
    torchvision_models,
    transformers_models,
)

SMALLEST = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_16",
)

TRANSFORMERS = (
    "BertForSequenceClassification",
    "ViTForImageClassification",
    "SwinForImageClassification",
)

SAMPLE = [
    *(case for case in torchvision_models() if case.name in SMALLEST),
    *(case for case in transformers_models() if case.name in TRANSFORMERS),
    *own_models(),
]


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Run torch on one thread: images this small are slower on several."""


@pytest.mark.slow
@pytest.mark.parametrize("case", SAMPLE, ids=key)
def test_export_is_dynamic_and_verified(case: ExportModel, tmp_path: Path) -> None:
    """The file agrees with the model, also on samples that the export did not use."""
    outcome = check(case, tmp_path)
    assert (outcome["status"], outcome.get("error")) == ("verified", None)


class _Fixed(nn.Module):
    """A model with a part that accepts only batches of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _Reshape()
        self.head = nn.Linear(3 * 32 * 32, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits


class _Reshape(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(3, -1)


@pytest.mark.slow
def test_check_reports_a_fixed_batch(tmp_path: Path) -> None:
    """A model that accepts only one batch size fails, and the error names the module."""
    case = _case(lambda: _Fixed().eval())
    outcome = check(case, tmp_path)
    assert outcome["status"] == "failed"
    assert "`body` (_Reshape)" in outcome["error"]


@pytest.mark.slow
def test_check_reports_constant_outputs(tmp_path: Path) -> None:
    """A model with a head of zeros fails, because it would agree with many files."""

    def untrained() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]  # it is a tensor
        return model.eval()

    outcome = check(_case(untrained), tmp_path)
    assert outcome["status"] == "failed"
    assert "Inconclusive" in outcome["error"]


def _case(build: Any) -> ExportModel:
    return ExportModel("torch", "own", "own", "3 x 32 x 32", lambda: (build(), images(32)))


def test_images_differ_in_their_means() -> None:
    """The mean of each channel, which remains after pooling, varies from image to image."""
    means = images(64).mean(dim=(2, 3))
    assert float(means.std(dim=0).min()) > 0.3
    assert torch.equal(images(64), images(64))


def test_sample_contains_the_smallest_model_of_each_family() -> None:
    """No torchvision family is missing."""
    sizes: dict[str, dict[str, int]] = {}
    for name, result in _stored().items():
        if name.startswith("torchvision/"):
            family = sizes.setdefault(result["family"], {})
            family[name.partition("/")[2]] = result["parameters"]
    assert {min(family, key=lambda name: family[name]) for family in sizes.values()} == set(
        SMALLEST
    )


def test_stored_results_cover_every_model_and_all_are_verified() -> None:
    """The stored results are complete and have a date."""
    stored = _stored()
    left = json.loads(RESULTS.read_text(encoding="utf-8"))["not_tried"]
    assert {key(case) for case in models()} == {*stored, *left}
    assert len([name for name in stored if name.startswith("torchvision/")]) >= 80
    assert {name for name, result in stored.items() if result["status"] != "verified"} == set()
    assert time.strptime(json.loads(RESULTS.read_text(encoding="utf-8"))["date"], "%Y-%m-%d")


def test_page_shows_the_stored_results() -> None:
    """The table in the documentation matches the stored results."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(content)


def _stored() -> dict[str, dict[str, Any]]:
    stored: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    return stored
