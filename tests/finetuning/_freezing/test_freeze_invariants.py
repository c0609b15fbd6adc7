"""Frozen torchvision models stay bit for bit, in a hand-written loop and in the Trainer.

These tests use the smallest model of each family and check the stored results of
`tests/conformance/freezing.py`, which covers all of them.
"""

from __future__ import annotations

import json

import pytest

from conformance.freezing import RESULTS, check, names

SMALLEST = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Run PyTorch on one thread, which is faster for such small images."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_training_moves_the_head_and_nothing_else(name: str) -> None:
    """Three steps in each loop leave the frozen part and its features unchanged."""
    outcome = check(name)
    assert (outcome.loop, outcome.trainer) == ("", "")


def test_stored_results_cover_every_model() -> None:
    """The results cover all torchvision models, and no frozen tensor changed."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    assert set(names()) <= stored.keys()
    assert {name for name, found in stored.items() if found["loop"] or found["trainer"]} == set()
