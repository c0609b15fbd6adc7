"""Freezing warns about tensors that the weights file did not contain."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from finetunelib import freeze_and_replace_head
from finetunelib.finetuning import freeze, load_weights, save_weights, unfreeze


def network() -> nn.Sequential:
    """Return three layers and a norm."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3))


def part_of_a_file(folder: Path, *layers: str) -> Path:
    """Write a file with some of the layers of a network."""
    path = folder / f"{''.join(layers)}.pth"
    state = network().state_dict()
    torch.save({name: value for name, value in state.items() if name[0] in layers}, path)
    return path


def loaded(folder: Path, *layers: str) -> nn.Sequential:
    """Return a network with the weights of such a file."""
    model = network()
    load_weights(model, part_of_a_file(folder, *layers), minimum_match=0.2)
    return model


@pytest.mark.parametrize(
    "call",
    [
        lambda model: freeze(model, ["0", "2"]),
        lambda model: freeze(model, except_="3"),
        lambda model: freeze_and_replace_head(model, num_classes=5),
    ],
    ids=["parts", "except", "new head"],
)
def test_frozen_tensor_that_was_not_loaded_is_named(
    tmp_path: Path, call: Callable[[nn.Module], object]
) -> None:
    """The warning contains the names, and what to call to train them."""
    model = loaded(tmp_path, "0", "1")
    with pytest.warns(UserWarning, match=r"`2\.weight`, `2\.bias`.*unfreeze\(model, \[\"2\"\]\)"):
        call(model)
    unfreeze(model, ["2"])
    assert model[2].weight.requires_grad


def test_statistics_that_were_not_loaded_are_named(tmp_path: Path) -> None:
    """Running statistics count like parameters."""
    model = loaded(tmp_path, "0", "2")
    with pytest.warns(UserWarning, match=r"`1\.running_mean`"):
        freeze(model, "1")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_that_was_converted_after_loading_is_recognized(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Conversion to another dtype does not give a tensor values."""
    with pytest.warns(UserWarning, match=r"`2\.weight`"):
        freeze(loaded(tmp_path, "0", "1").to(dtype), "2")


def test_copy_of_a_model_is_recognized(tmp_path: Path) -> None:
    """A copy contains the record of what was loaded."""
    with pytest.warns(UserWarning, match=r"`2\.weight`"):
        freeze(copy.deepcopy(loaded(tmp_path, "0", "1")), "2")


def test_part_of_a_larger_model_is_recognized(tmp_path: Path) -> None:
    """The record of a submodule counts under its name in the model."""
    model = nn.Sequential(loaded(tmp_path, "0", "1"), nn.Linear(3, 3))
    with pytest.warns(UserWarning, match=r"`0\.2\.weight`"):
        freeze(model, "0.2")


@pytest.fixture
def errors() -> object:
    """Make every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("errors")
def test_no_warning_without_frozen_initial_values(tmp_path: Path) -> None:
    """Loaded parts, and parts that stay trainable, give no warning."""
    freeze(loaded(tmp_path, "0", "1"), ["0", "1"])
    freeze_and_replace_head(loaded(tmp_path, "0", "1", "2"), num_classes=5)
    freeze(network())


@pytest.mark.usefixtures("errors")
def test_second_file_gives_the_rest(tmp_path: Path) -> None:
    """Tensors of an earlier file count as loaded."""
    model = loaded(tmp_path, "0", "1")
    load_weights(model, part_of_a_file(tmp_path, "2", "3"), minimum_match=0.2)
    freeze(model)
    model = loaded(tmp_path, "0", "1", "3")
    load_weights(model[2], save_weights(nn.Linear(6, 6), tmp_path / "layer.safetensors"))
    freeze(model)


@pytest.mark.usefixtures("errors")
def test_tensor_that_was_trained_or_set_by_hand_gives_no_warning(tmp_path: Path) -> None:
    """Its values are no longer the initial ones."""
    model = loaded(tmp_path, "0", "1")
    model[2].load_state_dict(nn.Linear(6, 6).state_dict())
    freeze(model, ["0", "2"])
