"""Selecting parts of a model, and its blocks in order of depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.errors import FreezeError, InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning._freezing.blocks import blocks
from finetunelib.finetuning._freezing.selection import Parts, Selection, select, select_last


class Unit(nn.Module):
    """A layer and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.bn1 = nn.BatchNorm1d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.bn1(self.layer(inputs))
        return outputs


class Net(nn.Module):
    """Two layers of units, with a position parameter and dropout before them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()
        self.position = nn.Parameter(torch.zeros(4))
        self.bn1 = nn.BatchNorm1d(4)
        self.layer1 = nn.Sequential(Unit(), Unit())
        self.layer2 = nn.Sequential(Unit(), Unit())
        self.pool = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.layer2(self.layer1(self.bn1(self.drop(inputs + self.position))))
        outputs: Tensor = self.head(self.pool(features))
        return outputs


MODEL = Net()


def chosen(parts: Parts, model: nn.Module = MODEL) -> set[str]:
    """Return the names of the parameters that are selected."""
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return select(model, parts).parameter_names(model) & known


UNIT = {"layer.weight", "layer.bias", "bn1.weight", "bn1.bias"}


def test_name_selects_a_module_and_its_submodules() -> None:
    """A dotted name is a module of the model."""
    assert chosen("layer1.0") == {f"layer1.0.{name}" for name in UNIT}


def test_module_selects_itself() -> None:
    """A module selects the same as its name."""
    assert select(MODEL, MODEL.layer1) == select(MODEL, "layer1")


def test_model_selects_everything() -> None:
    """The model itself can be passed."""
    assert select(MODEL, MODEL).modules == set(MODEL.modules())


def test_name_of_a_parameter_selects_the_parameter_alone() -> None:
    """Its module is not selected."""
    assert select(MODEL, "head.bias") == Selection(parameters=frozenset(["head.bias"]))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer[12].1", {f"layer{n}.1.{name}" for n in (1, 2) for name in UNIT}),
        (
            "*.bn?",
            {f"layer{n}.{m}.bn1.{p}" for n in (1, 2) for m in (0, 1) for p in ("weight", "bias")},
        ),
        ("bn?", {"bn1.weight", "bn1.bias"}),
        ("layer1.*.bias", {f"layer1.{m}.{part}.bias" for m in (0, 1) for part in ("layer", "bn1")}),
    ],
)
def test_pattern_matches_names_of_modules_and_parameters(pattern: str, expected: set[str]) -> None:
    """A star matches dots too, a question mark one character, brackets one of several."""
    assert chosen(pattern) == expected


def test_pattern_is_case_sensitive() -> None:
    """Names of attributes are case-sensitive too."""
    with pytest.raises(InvalidArgumentError):
        select(MODEL, "LAYER1")


def test_sequence_selects_all_of_its_parts() -> None:
    """Modules, names and patterns can be mixed."""
    assert chosen([MODEL.bn1, "head.*", "position"]) == {
        *("bn1.weight", "bn1.bias", "head.weight", "head.bias", "position")
    }


def test_slice_of_a_container_selects_what_is_in_it() -> None:
    """A slice is a new container with modules of the model."""
    assert chosen(MODEL.layer1[:1]) == chosen("layer1.0")


def test_exact_name_comes_before_a_pattern() -> None:
    """A name with brackets is not treated as a pattern if it exists."""
    model = nn.ModuleDict({"a[1]": nn.Linear(1, 1), "a1": nn.Linear(1, 1)})
    assert chosen("a[1]", model) == {"a[1].weight", "a[1].bias"}


def test_shared_parameter_is_selected_under_the_name_that_was_named() -> None:
    """The other name is not selected."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert chosen("b", model) == {"b.weight", "b.bias"}


def test_shared_module_is_selected_under_all_names() -> None:
    """A shared module is one part."""
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert chosen("b", model) == {"a.weight", "a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize(
    ("part", "near"), [("layer3", "`layer1`"), ("heads", "`head`"), ("zzz*", "`layer1`, `layer2`")]
)
def test_name_that_matches_nothing_is_an_error_with_similar_names(part: str, near: str) -> None:
    """The message contains the name and similar ones."""
    with pytest.raises(InvalidArgumentError, match=near) as caught:
        select(MODEL, part, "except_")
    assert repr(part) in str(caught.value)
    assert "except_" in str(caught.value)


def test_each_of_several_names_must_match() -> None:
    """No part is ignored."""
    with pytest.raises(InvalidArgumentError, match="'nothing'"):
        select(MODEL, ["head", "nothing"])


def test_module_of_another_model_is_an_error() -> None:
    """The message contains its type and the names of the model."""
    with pytest.raises(InvalidArgumentError, match=r"Linear.*`layer1`"):
        select(MODEL, nn.Linear(4, 2))


def test_empty_container_is_an_error() -> None:
    """An empty slice selects nothing."""
    with pytest.raises(InvalidArgumentError, match="Sequential"):
        select(MODEL, MODEL.layer1[2:])


def test_empty_sequence_is_an_error() -> None:
    """An empty sequence does not select everything."""
    with pytest.raises(InvalidArgumentError, match="empty"):
        select(MODEL, [])


@pytest.mark.parametrize("part", [3, [3], None])
def test_part_of_a_wrong_type_is_an_error(part: object) -> None:
    """The message contains the value and its type."""
    with pytest.raises(InvalidTypeError, match=r"int|None"):
        select(MODEL, part)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Blocks


def test_blocks_are_in_order_without_the_head() -> None:
    """Containers are split; modules without parameters belong to the block before them."""
    assert blocks(MODEL, MODEL.head) == [
        ["position", "drop"],
        ["bn1"],
        ["layer1.0"],
        ["layer1.1"],
        ["layer2.0"],
        ["layer2.1", "pool"],
    ]


def test_child_with_most_of_the_parameters_is_split() -> None:
    """A model inside a model, as in transformers, is split."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = Net()
            self.classifier = nn.Linear(2, 2)

    model = Outer()
    inner = [[f"base.{name}" for name in block] for block in blocks(MODEL)]
    assert blocks(model, model.classifier) == inner


def test_block_around_the_head_is_split() -> None:
    """The other layers of a small unit that contains the head are blocks."""

    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)
            self.drop = nn.Dropout()
            self.out = nn.Linear(4, 2)

    top = Top()
    model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 4), top)
    assert blocks(model, top.out) == [["0"], ["1"], ["2.dense", "2.drop"]]


def test_subclass_of_a_container_is_a_block() -> None:
    """A named class, such as a convolution with its norm, is one unit."""

    class ConvNorm(nn.Sequential):
        pass

    model = nn.Sequential(*(ConvNorm(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)))
    assert blocks(model) == [["0"], ["1"], ["2"]]


def test_model_without_parameters_has_no_blocks() -> None:
    """It has nothing to freeze."""
    assert blocks(nn.Sequential(nn.ReLU(), nn.Dropout())) == []


def test_depth_zero_is_the_head_alone() -> None:
    """Modules right before the head are not part of it."""
    assert select_last(MODEL, 0, "last") == select(MODEL, "head")


def test_depth_includes_modules_without_parameters() -> None:
    """They belong to their block."""
    assert select_last(MODEL, 1, "last") == select(MODEL, ["head", "layer2.1", "pool"])


def test_largest_depth_is_every_block() -> None:
    """All parameters are selected."""
    names = {name for name, _ in MODEL.named_parameters()}
    assert select_last(MODEL, 6, "last").parameter_names(MODEL) & names == names


@pytest.mark.parametrize("depth", [-1, 7])
def test_depth_outside_the_model_is_an_error(depth: int) -> None:
    """The message contains the depth, and the limit if it is too large."""
    with pytest.raises(InvalidArgumentError, match=rf"`last`.*{depth}"):
        select_last(MODEL, depth, "last")


@pytest.mark.parametrize("depth", [1.0, True, "1"])
def test_depth_of_a_wrong_type_is_an_error(depth: object) -> None:
    """The depth must be an integer."""
    with pytest.raises(InvalidTypeError, match="whole number"):
        select_last(MODEL, depth, "last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_depth_needs_a_head() -> None:
    """The error of a model without a head says to name its parts."""
    with pytest.raises(FreezeError, match="head"):
        select_last(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), 1, "last")


def test_blocks_of_an_mlp() -> None:
    """A block is a Linear with the activation after it."""
    model = build_mlp(4, [8, 8], 3)
    assert blocks(model, model.head) == [
        ["backbone.0", "backbone.1", "backbone.2"],
        ["backbone.3", "backbone.4"],
    ]
