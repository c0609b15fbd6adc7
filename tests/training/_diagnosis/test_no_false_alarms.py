"""Nothing is found in ordinary models with random weights on normalized images."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from finetunelib import Trainer
from finetunelib.training import diagnose

#: Ten models of different kinds, and the size of their images.
MODELS = {
    "alexnet": 64,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_found_in_a_model_of_torchvision(name: str, one_thread: None) -> None:
    """In one step, on which most findings are based, with the default optimizer."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=10)
    images = torch.randn(4, 3, MODELS[name], MODELS[name])
    trainer = Trainer(model, device="cpu", batch_size=4, progress=False)
    found = diagnose(trainer, (images, torch.arange(4)), steps=1)
    assert found.ok, str(found)
