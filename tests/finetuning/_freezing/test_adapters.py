"""Models with adapters of peft."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetunelib import freeze_and_replace_head
from finetunelib.errors import WeightsMismatchError
from finetunelib.finetuning import fingerprint, freeze, load_weights, save_weights

peft = pytest.importorskip("peft")

TARGETS = ["0", "2"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(target_modules=TARGETS, lora_dropout=0.3),
    "dora": lambda: peft.LoraConfig(target_modules=TARGETS, use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["2"]),
    "loha": lambda: peft.LoHaConfig(target_modules=TARGETS),
}


def network() -> nn.Sequential:
    """Return a network of three layers."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def adapted(kind: str) -> nn.Module:
    """Return that network with adapters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about its own arguments.
        model = peft.get_peft_model(network(), CONFIGS[kind]())
    assert isinstance(model, nn.Module)
    return model


def trainable(model: nn.Module) -> set[str]:
    """Return the names of the trainable parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_stay_trainable_around_a_new_head(kind: str) -> None:
    """A warning names them, and every parameter of the base model is frozen."""
    model = adapted(kind)
    adapters = trainable(model)
    assert adapters
    with pytest.warns(UserWarning, match="adapters"):
        freeze_and_replace_head(model, num_classes=5)
    head = {f"base_model.model.4.{name}" for name in ("weight", "bias")}
    assert trainable(model) == adapters | head


def test_adapters_are_trained_and_the_base_model_is_not() -> None:
    """The dropout of the adapters follows `train()`, and frozen tensors stay bit for bit."""
    torch.manual_seed(0)
    model = adapted("lora")
    with pytest.warns(UserWarning, match="adapters"):
        freeze_and_replace_head(model, num_classes=5)
    before = fingerprint(model)
    assert "base_model.model.0.base_layer.weight" in before
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    states = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    assert fingerprint(model) == before
    assert all(not torch.equal(model.get_parameter(name), old) for name, old in states.items())
    assert model.get_submodule("base_model.model.0.lora_dropout.default").training


def test_adapters_are_frozen_as_the_warning_says() -> None:
    """`freeze(model, except_=head)` leaves the head alone trainable."""
    model = adapted("lora")
    with pytest.warns(UserWarning, match=r'except_="base_model\.model\.4"'):
        freeze_and_replace_head(model, num_classes=5)
    freeze(model, except_="base_model.model.4")
    assert trainable(model) == {"base_model.model.4.weight", "base_model.model.4.bias"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_file_of_the_base_model_is_refused_with_the_order_that_works(
    tmp_path: Path, kind: str
) -> None:
    """The message says to load before `get_peft_model`, and suggests no renaming."""
    path = save_weights(network(), tmp_path / "base.safetensors")
    with pytest.raises(WeightsMismatchError, match="before `get_peft_model`") as caught:
        load_weights(adapted(kind), path)
    assert caught.value.rename == {}


def test_file_of_the_adapted_model_is_loaded(tmp_path: Path) -> None:
    """Weights saved with adapters fit a model with the same adapters."""
    path = save_weights(adapted("lora"), tmp_path / "adapted.safetensors")
    assert load_weights(adapted("lora"), path).match == 1.0


def trained(seed: int = 0) -> nn.Module:
    """Return a tied language model with adapters and a trained head, none of them zero."""
    model = language_model(seed)
    torch.manual_seed(seed + 1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return model


def language_model(seed: int = 0) -> nn.Module:
    """Return a tied language model with adapters and a trainable copy of its head."""
    torch.manual_seed(seed)
    base = nn.Sequential()
    base.embedding = nn.Embedding(7, 4)
    base.layer = nn.Linear(4, 4)
    base.lm_head = nn.Linear(4, 7, bias=False)
    base.lm_head.weight = base.embedding.weight
    config = peft.LoraConfig(target_modules=["layer"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(base, config)
    assert isinstance(model, nn.Module)
    return model


def test_adapters_are_saved_alone_and_loaded_onto_the_same_base(tmp_path: Path) -> None:
    """With a tied head in `modules_to_save`, whose own copy is trained; another base is refused."""
    path = save_weights(trained(), tmp_path / "adapters.safetensors", trainable_only=True)
    model = language_model()
    assert set(load_weights(model, path, trainable_only=True).loaded) == trainable(model)
    inputs = torch.arange(7)
    torch.testing.assert_close(model(inputs), trained()(inputs), rtol=0, atol=0)
    embedding = model.get_parameter("base_model.model.embedding.weight")
    assert model.get_parameter("base_model.model.lm_head.original_module.weight") is embedding
    with pytest.raises(WeightsMismatchError, match=r"`base_model\.model\.embedding\.weight`"):
        load_weights(language_model(5), path, trainable_only=True)


def test_adapters_that_the_model_does_not_have_are_explained(tmp_path: Path) -> None:
    """The message says to call `get_peft_model`, and suggests no renaming."""
    path = save_weights(adapted("lora"), tmp_path / "adapters.safetensors", trainable_only=True)
    with pytest.raises(WeightsMismatchError, match="call `get_peft_model`") as caught:
        load_weights(network(), path, trainable_only=True)
    assert caught.value.rename == {}
