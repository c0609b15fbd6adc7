"""Kinds of differences between a file and a model, and the message about each."""

from __future__ import annotations

import ast
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from finetunelib import build_mlp
from finetunelib.errors import WeightsMismatchError
from finetunelib.finetuning import load_weights
from finetuning._weights.small_weights import (
    Tied,
    equal_states,
    mlp,
    same_bits,
    state_of,
    with_prefix,
    write,
)

State = dict[str, Tensor]


class Tutorial(nn.Module):
    """The network of many tutorials on handwritten digits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 500)
        self.fc2 = nn.Linear(500, classes)


def refused(model: nn.Module, state: object, folder: Path) -> str:
    """Load a state dict that does not fit, check that no bit changes, and return the message."""
    before = state_of(model)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(model, write(state, folder))
    assert same_bits(before, model.state_dict())
    return str(caught.value)


def rename_in(message: str) -> dict[str, str]:
    """Return the `rename` in a message."""
    found = re.search(r"`rename=(\{.*?\})`", message)
    assert found is not None, message
    value: dict[str, str] = ast.literal_eval(found[1])
    return value


def minimum_match_in(message: str) -> float:
    """Return the `minimum_match` in a message."""
    found = re.search(r"`minimum_match=([0-9.]+)`", message)
    assert found is not None, message
    return float(found[1])


def renamed(state: State, old: str, new: str) -> State:
    """Return a state dict with one part of its names replaced."""
    return {name.replace(old, new): tensor for name, tensor in state.items()}


def without(state: State, part: str) -> State:
    """Return a state dict without the names that contain a part."""
    return {name: tensor for name, tensor in state.items() if part not in name}


# Names that differ only by a wrapper: loaded, and reported


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_prefix_of_the_file_is_ignored(tmp_path: Path, prefix: str) -> None:
    """Kinds 1 and 2: a file saved from data parallelism or torch.compile is complete."""
    saved, loaded = mlp(1), mlp(2)
    report = load_weights(loaded, write(with_prefix(prefix, state_of(saved)), tmp_path))
    assert equal_states(saved, loaded)
    assert report.match == 1.0
    assert all(f"`{part}.`" in str(report) for part in prefix.split(".") if part)


@pytest.mark.parametrize(
    "wrap",
    [pytest.param(torch.compile, marks=pytest.mark.slow), nn.DataParallel],
    ids=["torch.compile", "DataParallel"],
)
def test_plain_file_is_loaded_into_a_wrapped_model(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Kind 3: the model is wrapped, and the file is not."""
    saved, loaded = mlp(1), mlp(2)
    report = load_weights(wrap(loaded), write(state_of(saved), tmp_path))
    assert equal_states(saved, loaded)
    assert set(report.loaded) == set(loaded.state_dict())


def test_compiled_block_inside_a_file_is_ignored(tmp_path: Path) -> None:
    """Kind 4: a part of the model was compiled by itself before saving."""
    saved, loaded = mlp(1), mlp(2)
    state = renamed(state_of(saved), "backbone.1.", "backbone.1._orig_mod.")
    load_weights(loaded, write(state, tmp_path))
    assert equal_states(saved, loaded)


# Other names for the same tensors: refused, with a renaming

RENAMINGS: dict[str, tuple[Callable[[State], State], dict[str, str]]] = {
    "prefix of Lightning": (lambda state: with_prefix("model.", state), {"model.": ""}),
    "prefix of two parts": (lambda state: with_prefix("net.q.", state), {"net.q.": ""}),
    "prefix in a wrapped file": (
        lambda state: with_prefix("module.model.", state),
        {"module.model.": ""},
    ),
    "no backbone": (
        lambda state: renamed(state, "backbone.", ""),
        {"1": "backbone.1", "2": "backbone.2"},
    ),
    "misspelt leaf": (
        lambda state: renamed(state, "head.weight", "head.weigth"),
        {"head.weigth": "head.weight"},
    ),
    "another head's name": (lambda state: renamed(state, "head.", "fc."), {"fc": "head"}),
    "names of TensorFlow": (
        lambda state: renamed(renamed(state, "2.weight", "2.gamma"), "2.bias", "2.beta"),
        {"backbone.2.gamma": "backbone.2.weight", "backbone.2.beta": "backbone.2.bias"},
    ),
    "other numbers": (
        lambda state: renamed(renamed(state, "backbone.2", "backbone.3"), "backbone.1", "body.0"),
        {"backbone.3": "backbone.2", "body.0": "backbone.1"},
    ),
}


@pytest.mark.parametrize("kind", list(RENAMINGS))
def test_renaming_is_suggested_and_loads_the_file(tmp_path: Path, kind: str) -> None:
    """Kinds 5 to 12: passing the renaming in the message loads everything."""
    change, expected = RENAMINGS[kind]
    saved, loaded = mlp(1), mlp(2)
    state = change(state_of(saved))
    rename = rename_in(refused(loaded, state, tmp_path))
    assert rename == expected
    report = load_weights(loaded, write(state, tmp_path), rename=rename)
    assert report.match == 1.0
    assert equal_states(saved, loaded)


def test_prefix_that_the_whole_file_lacks_is_suggested(tmp_path: Path) -> None:
    """Kind 13: the model has another module around the saved one."""
    saved = nn.Sequential(OrderedDict(encoder=nn.Linear(4, 3)))
    message = refused(saved, state_of(nn.Linear(4, 3)), tmp_path)
    assert rename_in(message) == {"": "encoder."}
    load_weights(saved, tmp_path / "a.pth", rename={"": "encoder."})


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tutorials_file_is_matched_to_a_built_mlp(tmp_path: Path, ending: str) -> None:
    """Kind 14: the shapes are equal in order, and all names differ."""
    saved, loaded = Tutorial(), build_mlp(784, [500], 10, seed=0)
    path = tmp_path / f"a{ending}"
    (torch.save if ending == ".pth" else save_file)(state_of(saved), path)
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(loaded, path)
    assert '`rename={"fc1": "backbone.1", "fc2": "head"}`' in str(caught.value)
    load_weights(loaded, path, rename={"fc1": "backbone.1", "fc2": "head"})
    assert torch.equal(loaded.head.get_parameter("weight"), saved.fc2.weight)
    assert torch.equal(loaded.backbone.get_parameter("1.bias"), saved.fc1.bias)


def test_tutorials_file_of_other_classes_is_matched_too(tmp_path: Path) -> None:
    """Kind 15: names and the class count differ, and both are explained in turn."""
    loaded = build_mlp(784, [500], 5, seed=0)
    rename = rename_in(refused(loaded, state_of(Tutorial()), tmp_path))
    assert rename == {"fc1": "backbone.1", "fc2": "head"}
    with pytest.raises(WeightsMismatchError) as caught:
        load_weights(loaded, tmp_path / "a.pth", rename=rename)
    assert "`head` has 10 classes in the file and 5 in the model" in str(caught.value)
    share = minimum_match_in(str(caught.value))
    report = load_weights(loaded, tmp_path / "a.pth", rename=rename, minimum_match=share)
    assert report.loaded == ("backbone.1.weight", "backbone.1.bias")


def test_wrong_renaming_is_not_suggested(tmp_path: Path) -> None:
    """Kind 16: if nothing fits, neither a renaming nor `minimum_match` is suggested."""
    state = {"embed.tokens": torch.ones(7, 2), "embed.positions": torch.ones(3, 2)}
    message = refused(mlp(), state, tmp_path)
    assert "rename=" not in message
    assert "minimum_match=" not in message
    assert "another model" in message


# Heads


def test_head_of_another_class_count_is_expected_and_named(tmp_path: Path) -> None:
    """Kind 17: the shapes of a replaced head differ, and `minimum_match` is suggested."""
    loaded = mlp(2, classes=5)
    message = refused(loaded, state_of(mlp(1, classes=10)), tmp_path)
    assert "`head` has 10 classes in the file and 5 in the model: expected" in message
    report = load_weights(loaded, tmp_path / "a.pth", minimum_match=minimum_match_in(message))
    assert set(report.wrong_shape) == {"head.weight", "head.bias"}


def test_head_of_another_structure_is_named_on_both_sides(tmp_path: Path) -> None:
    """Kind 18: the head was replaced by several layers."""
    loaded = mlp(2)
    loaded.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    message = refused(loaded, state_of(mlp(1)), tmp_path)
    assert "The file has `head` with another structure: expected" in message
    assert "rename=" not in message
    report = load_weights(loaded, tmp_path / "a.pth", minimum_match=minimum_match_in(message))
    assert {name.partition(".")[0] for name in report.missing} == {"head"}


def test_head_behind_a_dropout_is_found(tmp_path: Path) -> None:
    """The same layer inside another module differs by its name alone."""
    saved, loaded = mlp(1), mlp(2)
    loaded.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(5, 3))
    assert rename_in(refused(loaded, state_of(saved), tmp_path)) == {"head": "head.1"}


def test_head_that_is_not_in_the_model_is_named(tmp_path: Path) -> None:
    """Kind 19: the file of a complete model is loaded into a backbone."""
    loaded = mlp(2)
    loaded.head = nn.Identity()
    message = refused(loaded, state_of(mlp(1)), tmp_path)
    assert "The model has no `head`" in message
    load_weights(loaded, tmp_path / "a.pth", minimum_match=minimum_match_in(message))
    assert same_bits(without(state_of(mlp(1)), "head"), loaded.state_dict())


def test_head_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    """Kind 20: the file was saved without a head."""
    loaded = mlp(2)
    message = refused(loaded, without(state_of(mlp(1)), "head"), tmp_path)
    assert "The file has no `head`: expected" in message
    assert load_weights(
        loaded, tmp_path / "a.pth", minimum_match=minimum_match_in(message)
    ).missing == (
        "head.weight",
        "head.bias",
    )


# Shapes, sizes and dtypes


def test_transposed_weights_are_reported(tmp_path: Path) -> None:
    """Kind 21: TensorFlow stores the inputs first."""
    state = {
        name: tensor.t().contiguous() if tensor.dim() == 2 else tensor
        for name, tensor in state_of(mlp(1)).items()
    }
    message = refused(mlp(2), state, tmp_path)
    assert "Transposed in the file" in message
    assert "backbone.1.weight, head.weight" in message
    assert ".T" in message


def test_transposed_convolution_is_reported(tmp_path: Path) -> None:
    """Kind 21, of a convolution: (height, width, in, out) is a kernel of TensorFlow."""
    state = {"weight": torch.ones(3, 3, 2, 4), "bias": torch.ones(4)}
    assert "permute(3, 2, 0, 1)" in refused(nn.Conv2d(2, 4, 3), state, tmp_path)


def test_reshaped_weights_are_reported(tmp_path: Path) -> None:
    """Kind 22: a linear head was saved as a convolution of size one."""
    state = state_of(mlp(1))
    state["head.weight"] = state["head.weight"][:, :, None, None]
    message = refused(mlp(2), state, tmp_path)
    assert "The same number of values in another shape: head.weight" in message
    assert "reshape" in message


def test_other_widths_are_reported(tmp_path: Path) -> None:
    """Kind 23: another width is not called another number of classes."""
    message = refused(mlp(2), state_of(mlp(1, hidden=(6,))), tmp_path)
    assert "Build the model with the sizes of the file" in message
    assert "classes" not in message


def test_other_input_channels_are_reported(tmp_path: Path) -> None:
    """Kind 24: the first layer is for other channels."""
    message = refused(nn.Conv2d(1, 4, 3), state_of(nn.Conv2d(3, 4, 3)), tmp_path)
    assert "weight (file [4, 3, 3, 3], model [4, 1, 3, 3])" in message
    assert "input channels" in message


@pytest.mark.parametrize(("file", "model"), [((5, 5), (5,)), ((5,), (5, 5))])
def test_other_depth_is_reported(
    tmp_path: Path, file: tuple[int, ...], model: tuple[int, ...]
) -> None:
    """Kind 25: the message names the layers that only one side has."""
    message = refused(
        build_mlp(4, model, 3, seed=0), build_mlp(4, file, 3, seed=1).state_dict(), tmp_path
    )
    assert "`backbone.3`" in message
    assert "layers than the saved one" in message


def test_narrower_dtype_is_loaded_and_reported(tmp_path: Path) -> None:
    """Kind 26: values of double precision are rounded into a model of single precision."""
    report = load_weights(mlp(2), write(mlp(1).double().state_dict(), tmp_path))
    assert report.cast["head.weight"] == (torch.float64, torch.float32)
    assert "Rounded" in str(report)
    assert "head.weight (file torch.float64, model torch.float32)" in str(report) or (
        "more" in str(report)
    )


def test_wider_dtype_is_not_reported(tmp_path: Path) -> None:
    """Half precision is exact in single precision, so nothing is reported."""
    report = load_weights(nn.Linear(2, 3), write(nn.Linear(2, 3).half().state_dict(), tmp_path))
    assert report.cast == {}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_incompatible_dtype_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """Kind 27: complex values do not become real, nor floats integers."""
    model = nn.Module()
    model.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
    message = refused(model, {"steps": torch.ones(2, dtype=dtype)}, tmp_path)
    assert f"steps (file {dtype}, model torch.int64)" in message


# Older files, ties and empty files


def test_missing_batch_counters_do_not_affect_the_match(tmp_path: Path) -> None:
    """Kind 28: files from before PyTorch 0.4.1 have no `num_batches_tracked`."""
    saved, loaded = mlp(1), mlp(2)
    report = load_weights(loaded, write(without(state_of(saved), "num_batches"), tmp_path))
    assert report.match == 1.0
    assert report.counters == report.missing == ("backbone.2.num_batches_tracked",)
    assert "1 BatchNorm counters" in str(report)
    assert torch.equal(loaded.head.get_parameter("weight"), saved.head.get_parameter("weight"))


def test_counter_of_a_missing_norm_is_missing(tmp_path: Path) -> None:
    """If a whole norm is not in the file, its counter counts as missing."""
    report = load_weights(
        mlp(2), write(without(state_of(mlp(1)), "backbone.2"), tmp_path), minimum_match=0.4
    )
    assert report.match == 4 / 9
    assert report.counters == ()


def test_names_of_an_older_vision_transformer_are_matched(tmp_path: Path) -> None:
    """Kind 29: names that the module upgrades in `load_state_dict` are matched."""

    def small() -> nn.Module:
        model: nn.Module = models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3)
        return model

    saved, loaded = small(), small()
    state = renamed(renamed(state_of(saved), "mlp.0", "mlp.linear_1"), "mlp.3", "mlp.linear_2")
    report = load_weights(loaded, write(with_prefix("module.", state), tmp_path))
    assert report.unexpected == report.missing == ()
    assert equal_states(saved, loaded)


def test_old_weight_norm_is_matched(tmp_path: Path) -> None:
    """Kind 30: `weight_g` and `weight_v` are the tensors of the parametrization."""
    saved = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    loaded = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    names = {"original0": "g", "original1": "v"}
    state = {
        f"weight_{names[name[-9:]]}" if "original" in name else name: tensor
        for name, tensor in state_of(saved).items()
    }
    load_weights(loaded, write(state, tmp_path))
    assert equal_states(saved, loaded)


def test_names_of_an_older_densenet_are_matched(tmp_path: Path) -> None:
    """Kind 31: torchvision's files have `norm.1` for `norm1` of the model."""

    def small() -> nn.Module:
        model: nn.Module = models.DenseNet(4, (2, 1, 1, 1), 8, num_classes=3)
        return model

    saved, loaded = small(), small()
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in state_of(saved).items()
    }
    load_weights(loaded, write(state, tmp_path))
    assert equal_states(saved, loaded)


def test_tied_tensor_that_differs_in_the_file_is_reported(tmp_path: Path) -> None:
    """Kind 32: a file of an untied model has two values for one tensor."""
    state = {"embedding.weight": torch.ones(7, 4), "head.weight": torch.zeros(7, 4)}
    message = refused(Tied(), state, tmp_path)
    assert "`head.weight` and `embedding.weight` are one tensor in the model" in message


def test_file_without_tensors_is_reported(tmp_path: Path) -> None:
    """Kind 33: an empty state dict is a file without weights."""
    assert "contains no tensors" in refused(mlp(), {}, tmp_path)


def test_refusal_does_not_say_that_anything_was_loaded(tmp_path: Path) -> None:
    """The message counts what would fit and says that the model is unchanged."""
    message = refused(mlp(2, classes=5), state_of(mlp(1)), tmp_path)
    assert "7 of 9 tensors would fit" in message
    assert "unchanged" in message
    assert "loaded" not in message
