"""The digests of frozen tensors."""

from __future__ import annotations

import copy

import torch
from torch import nn

from finetunelib.finetuning import fingerprint, freeze, load_weights, save_weights


def net() -> nn.Sequential:
    """Return a model with parameters and buffers."""
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_model_that_is_not_frozen_has_no_fingerprint() -> None:
    """Trainable tensors are not included."""
    assert fingerprint(net()) == {}


def test_names_are_those_of_frozen_parameters_and_buffers() -> None:
    """The buffers of frozen modules are included."""
    model = net()
    freeze(model, "1")
    assert list(fingerprint(model)) == [
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]


def test_parameter_that_was_frozen_by_hand_has_a_digest() -> None:
    """The buffers of its module have none, since the module is not frozen."""
    model = net()
    model.get_submodule("1").requires_grad_(False)
    assert list(fingerprint(model)) == ["1.weight", "1.bias"]


def test_buffer_outside_the_state_dict_has_a_digest() -> None:
    """A buffer that is not saved can change too."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("index", torch.arange(3), persistent=False)
    freeze(model)
    assert "index" in fingerprint(model)


def test_copy_has_the_same_fingerprint() -> None:
    """Equal bits have equal digests."""
    model = net()
    freeze(model)
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)


def test_smallest_change_is_noticed() -> None:
    """Changing one bit changes the digest of that tensor alone."""
    model = net()
    before = freeze(model)
    with torch.no_grad():
        bias = model.get_parameter("0.bias")
        bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
    after = fingerprint(model)
    assert {name for name in before if before[name] != after[name]} == {"0.bias"}


def test_shared_tensor_has_one_digest() -> None:
    """It is listed under its first name."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    assert list(freeze(model)) == ["a.weight", "a.bias"]


def test_shared_buffer_has_one_digest() -> None:
    """A shared buffer is listed under its first name too."""
    model = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    model["b"].running_mean = model["a"].running_mean
    assert "b.running_mean" not in freeze(model)


def test_digests_are_those_of_the_loaded_tensors(tmp_path: object) -> None:
    """The digests of `load_weights` and `freeze` can be compared."""
    model = net()
    path = save_weights(model, f"{tmp_path}/net.safetensors")
    report = load_weights(model, path)
    assert freeze(model) == report.digests
