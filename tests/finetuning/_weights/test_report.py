"""Digests of loaded weights, renaming, and models on the meta device."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetunelib.errors import (
    CorruptFileError,
    InvalidArgumentError,
    InvalidTypeError,
    WeightsMismatchError,
)
from finetunelib.finetuning import load_weights, save_weights
from finetunelib.finetuning._digests import digest, loaded_digests
from finetuning._weights.small_weights import (
    Tied,
    equal_states,
    mlp,
    same_bits,
    state_of,
    with_prefix,
    write,
)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model on the meta device."""
    with torch.device("meta"):
        return make()


# Digests


def test_digests_are_those_of_the_tensors_in_the_model(tmp_path: Path) -> None:
    """Each loaded name has the digest of the model's tensor."""
    model = mlp(2).double()
    report = load_weights(model, save_weights(mlp(1), tmp_path / "a.safetensors"))
    assert report.digests == {name: digest(part) for name, part in model.state_dict().items()}


def test_model_keeps_the_digests_of_what_was_loaded(tmp_path: Path) -> None:
    """The model and its copies keep them."""
    model = mlp(2, classes=5)
    report = load_weights(model, write(state_of(mlp(1)), tmp_path), minimum_match=0.5)
    assert set(report.digests) == set(report.loaded)
    assert loaded_digests(copy.deepcopy(model)) == report.digests


def test_refused_file_leaves_no_digests(tmp_path: Path) -> None:
    """A model keeps no digests of a refused file."""
    model = mlp(2, classes=5)
    with pytest.raises(WeightsMismatchError):
        load_weights(model, write(state_of(mlp(1)), tmp_path))
    assert loaded_digests(model) == {}


def test_tied_names_share_a_digest(tmp_path: Path) -> None:
    """One tensor under two names has one digest under both."""
    report = load_weights(Tied(2), save_weights(Tied(1), tmp_path / "a.safetensors"))
    assert set(report.digests) == {"embedding.weight", "head.weight"}
    assert len(set(report.digests.values())) == 1


def test_complete_file_needs_no_suggestion(tmp_path: Path) -> None:
    """If everything fits, there are no suggestions."""
    report = load_weights(mlp(2), save_weights(mlp(1), tmp_path / "a.safetensors"))
    assert report.suggestions == ()
    assert str(report) == "9 of 9 tensors loaded from a.safetensors."


# Renaming


@pytest.mark.parametrize(
    "rename",
    [
        {"fc": "head"},
        {"fc.": "head."},
        {"fc.weight": "head.weight", "fc.bias": "head.bias"},
        {"fc": "elsewhere", "fc.weight": "head.weight", "fc.bias": "head.bias"},
    ],
    ids=["part", "part with its dot", "whole names", "longest first"],
)
def test_rename_accepts_parts_and_complete_names(tmp_path: Path, rename: dict[str, str]) -> None:
    """Beginnings up to a dot and complete names are renamed, by the longest entry."""
    saved, loaded = mlp(1), mlp(2)
    state = {name.replace("head.", "fc."): tensor for name, tensor in state_of(saved).items()}
    if "fc" in rename and len(rename) > 1:
        state["fc.extra"] = torch.ones(1)
    load_weights(loaded, write(state, tmp_path), rename=rename, minimum_match=0.99)
    assert equal_states(saved, loaded)


def test_rename_ends_at_a_dot(tmp_path: Path) -> None:
    """`fc1` is not a beginning of `fc10`."""
    state = {"fc1.weight": torch.ones(2, 2), "fc10.weight": torch.zeros(2, 2)}
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "fc10": nn.Linear(2, 2, bias=False)})
    load_weights(model, write(state, tmp_path), rename={"fc1": "a"})
    assert torch.equal(model.get_parameter("a.weight"), torch.ones(2, 2))


@pytest.mark.parametrize("rename", [{"module.model.": ""}, {"model": ""}])
def test_rename_removes_prefixes(tmp_path: Path, rename: dict[str, str]) -> None:
    """The entry may be written with or without the wrapper's part and the dot."""
    saved, loaded = mlp(1), mlp(2)
    state = with_prefix("module.model.", state_of(saved))
    load_weights(loaded, write(state, tmp_path), rename=rename)
    assert equal_states(saved, loaded)


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        ({"haed": "head"}, ["haed", "`head`"]),
        ({"head.weights": "head.weight"}, ["head.weights", "`head.weight`"]),
        ({"hea": "head"}, ["hea"]),
        ({"head": "backbone.1"}, ["`head.weight`", "`backbone.1.weight`"]),
    ],
    ids=["misspelt part", "misspelt name", "no whole part", "two become one"],
)
def test_invalid_rename_is_an_error(
    tmp_path: Path, rename: dict[str, str], named: list[str]
) -> None:
    """The message names an entry that matches nothing, or names that become equal."""
    model = mlp(2)
    before = state_of(model)
    with pytest.raises(InvalidArgumentError) as caught:
        load_weights(model, write(state_of(mlp(1)), tmp_path), rename=rename, minimum_match=0.0)
    assert all(part in str(caught.value) for part in ["`rename`", *named])
    assert same_bits(before, model.state_dict())


@pytest.mark.parametrize("rename", [["fc"], {"fc": 1}, "fc"])
def test_rename_of_a_wrong_type_is_an_error(tmp_path: Path, rename: Any) -> None:
    """`rename` maps strings to strings."""
    with pytest.raises(InvalidTypeError, match="`rename`"):
        load_weights(mlp(2), write(state_of(mlp(1)), tmp_path), rename=rename)


# Models on the meta device


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_model_on_the_meta_device_gets_the_files_tensors(tmp_path: Path, ending: str) -> None:
    """The model is equal to the saved one and on the CPU."""
    saved, path = mlp(1), tmp_path / f"a{ending}"
    if ending == ".pth":
        write(state_of(saved), tmp_path)
    else:
        save_weights(saved, path)
    model = on_meta(mlp)
    report = load_weights(model, path)
    assert equal_states(saved, model)
    assert report.digests == {name: digest(part) for name, part in model.state_dict().items()}


def test_meta_parameters_keep_requires_grad_dtype_and_attributes(tmp_path: Path) -> None:
    """A frozen parameter stays frozen, and another dtype is converted."""
    model = on_meta(lambda: nn.Linear(4, 3, dtype=torch.float16))
    model.get_parameter("weight").requires_grad_(False)
    vars(model.get_parameter("bias"))["no_decay"] = True
    load_weights(model, write(state_of(nn.Linear(4, 3)), tmp_path))
    parameters = dict(model.named_parameters())
    assert {name: part.requires_grad for name, part in parameters.items()} == {
        "weight": False,
        "bias": True,
    }
    assert {part.dtype for part in parameters.values()} == {torch.float16}
    assert vars(parameters["bias"])["no_decay"] is True


def test_tied_meta_parameters_stay_tied(tmp_path: Path) -> None:
    """One tensor of the file is used for both names."""
    path = save_weights(Tied(1), tmp_path / "a.safetensors")
    # The class copies values in its constructor, which fails on the meta device.
    model = copy.deepcopy(Tied(2)).to("meta")
    model.head.weight = model.embedding.weight
    load_weights(model, path)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, Tied(1).head.weight)


def test_slices_of_one_tensor_become_separate_tensors(tmp_path: Path) -> None:
    """Weights that share memory in a file do not share it in the model."""
    whole = torch.ones(2, 4)
    path = write({"0.weight": whole[:1], "1.weight": whole[1:]}, tmp_path)
    model = on_meta(lambda: nn.Sequential(*(nn.Linear(4, 1, bias=False) for _ in range(2))))
    load_weights(model, path)
    storages = {part.untyped_storage().data_ptr() for part in model.parameters()}
    assert len(storages) == 2


def test_recurrent_layer_on_the_meta_device_runs_afterwards(tmp_path: Path) -> None:
    """Its list of parameters contains the new ones."""
    saved, inputs = nn.LSTM(3, 4), torch.ones(2, 1, 3)
    model = on_meta(lambda: nn.LSTM(3, 4))
    load_weights(model, save_weights(saved, tmp_path / "a.safetensors"))
    assert torch.equal(model(inputs)[0], saved(inputs)[0])


def test_names_that_would_stay_on_the_meta_device_are_an_error(tmp_path: Path) -> None:
    """The message names a part without values, and how to give it some."""
    model = on_meta(lambda: mlp(classes=5))
    path = save_weights(mlp(1), tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgumentError) as caught:
        load_weights(model, path, minimum_match=0.5)
    assert "2 tensors" in str(caught.value)
    assert "head.weight, head.bias" in str(caught.value)
    assert 'model.head.to_empty(device="cpu")' in str(caught.value)
    assert all(part.is_meta for part in model.parameters())


def test_remedy_for_the_meta_device_works(tmp_path: Path) -> None:
    """If the new head has values, the rest is loaded."""
    model = mlp(classes=5).to("meta")
    head = model.get_submodule("head").to_empty(device="cpu")
    assert isinstance(head, nn.Linear)
    head.reset_parameters()
    load_weights(model, save_weights(mlp(1), tmp_path / "a.safetensors"), minimum_match=0.5)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_buffer_outside_the_state_dict_counts_as_without_values(tmp_path: Path) -> None:
    """A file cannot contain a buffer that is not persistent."""

    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("positions", torch.zeros(3), persistent=False)
        return model

    with pytest.raises(InvalidArgumentError, match="positions"):
        load_weights(on_meta(make), save_weights(make(), tmp_path / "a.safetensors"))


def test_counter_that_is_not_in_an_old_file_starts_at_zero(tmp_path: Path) -> None:
    """A norm on the meta device can be loaded from a file without counters."""
    state = {name: part for name, part in state_of(mlp(1)).items() if "num_batches" not in name}
    model = on_meta(mlp)
    load_weights(model, write(state, tmp_path))
    assert model.get_buffer("backbone.2.num_batches_tracked").item() == 0


MEASURE = """
import pathlib, sys
import torch
from torch import nn
from finetunelib.finetuning import load_weights, save_weights

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

small = nn.Linear(2, 2)
load_weights(small, save_weights(small, sys.argv[1] + ".small.safetensors"))  # What is imported.
with torch.device("meta"):
    model = nn.Linear(4096, 8192, bias=False)
before = peak()
load_weights(model, sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_model_on_the_meta_device_is_loaded_without_a_second_copy(
    tmp_path: Path, ending: str
) -> None:
    """The peak memory grows by the model's 128 MiB, and by less than 1.5 times that."""
    model, path = nn.Linear(4096, 8192, bias=False), tmp_path / f"a{ending}"
    if ending == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model, path)
    command = [sys.executable, "-c", MEASURE, str(path)]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 100 * 1024 < int(grown) < 192 * 1024


# Models that cannot be written to: refused before anything changes


def expanded() -> nn.Module:
    """Return a model with an expanded parameter."""
    model = nn.Linear(2, 3)
    model.bias = nn.Parameter(torch.zeros(1).expand(3))
    return model


def of_inference_mode() -> nn.Module:
    """Return a model that was created in inference mode."""
    with torch.inference_mode():
        return nn.Linear(2, 3)


class Copying(nn.Linear):
    """A layer whose state dict contains copies."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return copies."""
        state = super().state_dict(*args, **kwargs)
        return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (expanded, "`bias` is expanded"),
        (of_inference_mode, "`weight` was created in inference mode"),
        (lambda: Copying(2, 3), "`weight` is a copy"),
        (lambda: nn.LazyLinear(3), "`weight` is lazy"),
    ],
    ids=["expanded", "inference mode", "copies", "lazy"],
)
def test_model_that_cannot_be_written_to_is_an_error_that_names_the_tensor(
    tmp_path: Path, make: Callable[[], nn.Module], named: str
) -> None:
    """Nothing is written before the error."""
    with pytest.raises(InvalidArgumentError) as caught:
        load_weights(make(), write(state_of(nn.Linear(2, 3)), tmp_path))
    assert named in str(caught.value)


@pytest.mark.slow
def test_compiled_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    """The file contains the names inside the wrapper."""
    compiled: Any = torch.compile(mlp())
    path = save_weights(compiled, tmp_path / "a.safetensors")
    assert load_file(path).keys() == mlp().state_dict().keys()


def test_file_that_shrinks_while_it_is_read_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that another program truncates does not give arbitrary values."""
    from finetunelib.finetuning._weights import formats

    path = save_weights(nn.Linear(2, 3), tmp_path / "a.safetensors")
    entry = formats.read_safetensors(path)["weight"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptFileError, match="shorter"):
        entry.read()
