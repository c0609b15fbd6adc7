"""Files with the trainable tensors alone, and the digests of the frozen ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from finetunelib import freeze_and_replace_head
from finetunelib.errors import CorruptFileError, InvalidArgumentError, WeightsMismatchError
from finetunelib.finetuning import fingerprint, freeze, load_weights, save_weights, unfreeze
from finetunelib.models import MLP
from finetuning._weights.small_weights import Tied, equal_states, mlp, same_bits, state_of

LEFT_OUT = "finetunelib.left_out"


def adapted(seed: int = 0, *, head: float = 0.0) -> MLP:
    """Return a frozen model with a new head, whose weights may all have one value."""
    model = freeze_and_replace_head(mlp(seed), head=lambda features: nn.Linear(features, 2))
    with torch.no_grad():
        model.get_parameter("head.weight").fill_(head)
        model.get_parameter("head.bias").zero_()
    return model


def saved(folder: Path) -> Path:
    """Return a file with the trained head of `adapted()`, whose base is that of seed 0."""
    return save_weights(adapted(head=0.5), folder / "head.safetensors", trainable_only=True)


def test_file_contains_the_trainable_tensors_and_digests_of_the_others(tmp_path: Path) -> None:
    """Names are those of the state dict; the digests are those of `fingerprint`."""
    path = saved(tmp_path)
    assert set(safetensors.torch.load_file(path)) == {"head.weight", "head.bias"}
    with safetensors.safe_open(path, "pt") as file:
        left_out = json.loads(file.metadata()[LEFT_OUT])
    own = fingerprint(adapted())
    assert {name: digest for name, (_, _, digest) in left_out.items()} == own
    assert left_out["backbone.1.weight"][:2] == ["float32", [5, 4]]


def test_file_is_loaded_onto_the_same_base(tmp_path: Path) -> None:
    """All tensors of the model are then those of the saved one; the report says which are new."""
    model = adapted()
    report = load_weights(model, saved(tmp_path), trainable_only=True)
    assert equal_states(model, adapted(head=0.5))
    assert set(report.loaded) == {"head.weight", "head.bias"}
    assert set(report.verified) == set(fingerprint(model))
    assert report.match == 1.0
    assert not report.missing
    assert not report.unexpected
    assert "2 of 9 tensors loaded" in str(report)
    assert f"{len(report.verified)} verified" in repr(report)
    assert set(report.digests) == {"head.weight", "head.bias"}


def with_nan(model: nn.Module) -> None:
    """Change one value of the base."""
    with torch.no_grad():
        model.get_parameter("backbone.1.bias")[0] = torch.nan


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: adapted(1), "`backbone.1.weight` differs, it has other values"),
        (lambda: adapted().double(), "`backbone.1.weight` differs, it is torch.float64"),
        (lambda: changed(with_nan), "`backbone.1.bias` differs"),
        (
            lambda: changed(lambda m: m.get_buffer("backbone.2.running_mean").add_(1)),
            "running_mean",
        ),
    ],
    ids=["seed", "dtype", "parameter", "buffer"],
)
def test_another_base_is_refused_with_the_first_tensor_that_differs(
    tmp_path: Path, make: Callable[[], nn.Module], named: str
) -> None:
    """The model stays as it is."""
    model = make()
    before = state_of(model)
    with pytest.raises(WeightsMismatchError, match=named):
        load_weights(model, saved(tmp_path), trainable_only=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    """Return the model with another base."""
    model = adapted()
    change(model)
    return model


def test_a_tensor_that_is_frozen_on_one_side_only_is_named(tmp_path: Path) -> None:
    """In both directions, and nothing is loaded."""
    path = saved(tmp_path)
    frozen, trainable = adapted(), adapted()
    freeze(frozen, "head")
    unfreeze(trainable, "backbone.1")
    for model, name in ((frozen, "head.weight"), (trainable, "backbone.1.weight")):
        before = state_of(model)
        with pytest.raises(WeightsMismatchError, match=f"`{name}`.*Freeze the model in the same"):
            load_weights(model, path, trainable_only=True)
        assert same_bits(model.state_dict(), before)


def test_buffers_that_training_may_change_are_in_the_file(tmp_path: Path) -> None:
    """Those of a BatchNorm that only has frozen parameters move, so they are saved and loaded."""
    model, other = mlp(0), mlp(0)
    for one in (model, other):
        one.get_submodule("backbone").requires_grad_(False)
    model.train()(torch.rand(6, 4))
    path = save_weights(model, tmp_path / "a.safetensors", trainable_only=True)
    assert "backbone.2.running_mean" in safetensors.torch.load_file(path)
    load_weights(other, path, trainable_only=True)
    assert equal_states(model, other)


def test_the_two_ways_of_saving_are_not_confused(tmp_path: Path) -> None:
    """Each error names the argument."""
    whole = save_weights(adapted(), tmp_path / "whole.safetensors")
    with pytest.raises(WeightsMismatchError, match="with `trainable_only=True`"):
        load_weights(adapted(), saved(tmp_path))
    with pytest.raises(WeightsMismatchError, match="with `trainable_only=True`"):
        load_weights(adapted(), saved(tmp_path), minimum_match=0.1)
    with pytest.raises(WeightsMismatchError, match="Load it without `trainable_only`"):
        load_weights(adapted(), whole, trainable_only=True)
    with pytest.raises(InvalidArgumentError, match="`minimum_match"):
        load_weights(adapted(), whole, trainable_only=True, minimum_match=0.5)


def test_nothing_trainable_cannot_be_saved(tmp_path: Path) -> None:
    """The file would contain nothing."""
    model = mlp()
    freeze(model)
    with pytest.raises(InvalidArgumentError, match="no trainable parameter"):
        save_weights(model, tmp_path / "a.safetensors", trainable_only=True)
    assert not list(tmp_path.iterdir())


def test_other_shapes_are_refused_without_a_hint_that_cannot_work(tmp_path: Path) -> None:
    """`minimum_match` cannot be combined with `trainable_only`."""
    model = freeze_and_replace_head(mlp(), num_classes=4)
    with pytest.raises(WeightsMismatchError, match=r"head\.weight") as caught:
        load_weights(model, saved(tmp_path), trainable_only=True)
    assert "minimum_match" not in str(caught.value)


def test_names_of_wrappers_and_renaming_hold_for_the_base_too(tmp_path: Path) -> None:
    """The digests are found under the same renaming as the values."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = adapted()

    model = Outer()
    load_weights(model, saved(tmp_path), trainable_only=True, rename={"": "inner."})
    assert equal_states(model.inner, adapted(head=0.5))
    wrapped = nn.DataParallel(adapted())
    load_weights(wrapped, saved(tmp_path), trainable_only=True)
    assert equal_states(wrapped.module, adapted(head=0.5))


def test_a_tie_with_a_trainable_tensor_is_kept(tmp_path: Path) -> None:
    """A frozen name of a trainable tensor is not left out; tied frozen ones are compared once."""
    model = Tied()
    model.extra = nn.Linear(2, 2)
    path = save_weights(model, tmp_path / "a.safetensors", trainable_only=True)
    assert "embedding.weight" in safetensors.torch.load_file(path)
    freeze(model, ["embedding", "head"])
    path = save_weights(model, tmp_path / "b.safetensors", trainable_only=True)
    assert set(safetensors.torch.load_file(path)) == {"extra.weight", "extra.bias"}
    assert set(load_weights(model, path, trainable_only=True).verified) == {
        "embedding.weight",
        "head.weight",
    }


def test_memory_shared_with_a_trainable_tensor_is_kept(tmp_path: Path) -> None:
    """A frozen parameter that training would move through another one is in the file."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    shared = model.get_parameter("a.weight").data[:2]
    model["b"].weight = nn.Parameter(shared, requires_grad=False)
    path = save_weights(model, tmp_path / "a.safetensors", trainable_only=True)
    assert "b.weight" in safetensors.torch.load_file(path)


def test_base_on_the_meta_device_has_to_be_loaded_first(tmp_path: Path) -> None:
    """Its values cannot be compared; afterwards, trainable tensors may be on the meta device."""
    path = saved(tmp_path)
    base = save_weights(adapted(), tmp_path / "base.safetensors")
    with torch.device("meta"):
        model = mlp()
    freeze_and_replace_head(model, num_classes=2)
    model.to("meta")
    with pytest.raises(WeightsMismatchError, match="on the meta device"):
        load_weights(model, path, trainable_only=True)
    load_weights(model, base)
    load_weights(model, path, trainable_only=True)
    assert equal_states(model, adapted(head=0.5))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"a": []}',
        '{"a": ["float32", [-1], "' + "0" * 64 + '"]}',
        '{"a": ["nn", [1], "' + "0" * 64 + '"]}',
        '{"a": ["float32", [1], "zz"]}',
        "[" * 3000,
    ],
)
def test_damaged_list_of_tensors_is_an_error(tmp_path: Path, content: str) -> None:
    """Every entry has a dtype, a shape and a digest."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={LEFT_OUT: content})
    with pytest.raises(CorruptFileError, match="damaged list"):
        load_weights(nn.Linear(1, 1), path, trainable_only=True)
