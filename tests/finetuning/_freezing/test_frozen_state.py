"""The frozen parts of a model as plain data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from finetunelib import build_mlp
from finetunelib.errors import FreezeError
from finetunelib.finetuning import freeze, is_frozen, unfreeze
from finetunelib.finetuning._freezing.frozen_state import FrozenState


def network() -> nn.Sequential:
    """Return a network with BatchNorm and dropout."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6), nn.Linear(6, 3)
    )


def described(model: nn.Module) -> tuple[Any, ...]:
    """Return what freezing decides: which parameters need a gradient, and the modes in training."""
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    return {name: p.requires_grad for name, p in model.named_parameters()}, modes


@pytest.mark.parametrize("parts", ["0", ["0", "1"], ["1", "2", "3"], "0.bias"])
def test_a_state_freezes_another_model_in_the_same_way(parts: Any) -> None:
    """Parameters, held modules and modes in train mode are those of the first model."""
    one, other = network(), network()
    freeze(one, parts)
    FrozenState.from_dict(FrozenState.of(one).to_dict()).apply(other)
    assert described(other) == described(one)
    assert FrozenState.of(other) == FrozenState.of(one)


def test_a_state_unfreezes_what_it_does_not_contain() -> None:
    """A model that was frozen further becomes trainable in the rest, dropout included."""
    one, other = network(), network()
    freeze(one, "0")
    freeze(other, ["0", "1", "2", "3"])
    FrozenState.of(one).apply(other)
    assert described(other) == described(one)
    assert is_frozen(other, "0")


def test_a_parameter_fixed_by_its_author_stays_fixed_after_unfreeze() -> None:
    """`unfreeze` undoes only what `freeze` did, also after the state was restored."""
    one, other = network(), network()
    one[0].bias.requires_grad_(False)
    freeze(one, "0")
    FrozenState.of(one).apply(other)
    unfreeze(other, "0")
    parameters = dict(other.named_parameters())
    assert parameters["0.weight"].requires_grad
    assert not parameters["0.bias"].requires_grad


def test_tied_parameters_have_a_state_under_each_name() -> None:
    """A weight that two modules share is restored, and no name is missing."""

    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        model[1].weight = model[0].weight
        return model

    one, other = tied(), tied()
    freeze(one, ["0", "1"])
    FrozenState.of(one).apply(other)
    assert FrozenState.of(other) == FrozenState.of(one)


def test_names_do_not_depend_on_a_compiled_form() -> None:
    """The state of a compiled model fits the plain one."""
    one, other = network(), network()
    freeze(one, ["0", "1"])
    state = FrozenState.of(torch.compile(one))  # type: ignore[arg-type]
    state.apply(other)
    assert described(other) == described(one)


def test_a_missing_part_changes_nothing() -> None:
    """A state of a deeper model is refused before anything is frozen."""
    one, other = build_mlp(4, [8, 8], 3), build_mlp(4, [8], 3)
    freeze(one, "backbone")
    before = copy.deepcopy(FrozenState.of(other))
    with pytest.raises(FreezeError, match=r"backbone\.3"):
        FrozenState.of(one).apply(other)
    assert FrozenState.of(other) == before


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"held": [], "fixed": []},
        {"held": "0", "untrainable": [], "fixed": []},
        {"held": [1], "untrainable": [], "fixed": []},
    ],
)
def test_data_of_another_form_is_refused(saved: dict[str, Any]) -> None:
    """A missing list, a string and a number are not lists of names."""
    with pytest.raises(FreezeError):
        FrozenState.from_dict(saved)


def test_the_difference_names_what_changes() -> None:
    """What would be frozen and what would be unfrozen are both named."""
    one, other = network(), network()
    freeze(one, "0")
    freeze(other, "3")
    difference = FrozenState.of(one).difference(FrozenState.of(other))
    assert "freezes `3.bias`" in difference
    assert "unfreezes `0.bias`" in difference
    assert FrozenState.of(one).difference(FrozenState.of(one)) == ""


def unfreeze_the_end(model: nn.Module) -> None:
    """Freeze a model, and unfreeze its last layers."""
    freeze(model)
    unfreeze(model, ["3", "4"])


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda _: None,
    "norm": lambda model: freeze(model, "1"),
    "except head": lambda model: freeze(model, except_="4"),
    "everything": freeze,
    "parameters": lambda model: freeze(model, "*.bias"),
    "unfrozen again": unfreeze_the_end,
}


@pytest.mark.parametrize("before", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("saved", CHANGES.values(), ids=CHANGES)
def test_a_state_overrides_what_was_frozen_before(
    saved: Callable[[nn.Module], object], before: Callable[[nn.Module], object]
) -> None:
    """The model is frozen like the saved one, and `unfreeze` has the same effect."""
    source, model = network(), network()
    saved(source)
    before(model)
    FrozenState.of(source).apply(model)
    assert described(model) == described(source)
    unfreeze(source)
    unfreeze(model)
    assert described(model) == described(source)


def test_a_compiled_block_is_frozen_and_unfrozen_by_a_state() -> None:
    """The wrapper that `torch.compile` puts around a block changes with the block."""

    def with_a_compiled_block() -> nn.Module:
        block = cast("nn.Module", torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Dropout())))
        return nn.Sequential(nn.Linear(4, 4), block)

    frozen, model = with_a_compiled_block(), with_a_compiled_block()
    trainable = FrozenState.of(model)
    freeze(frozen, "1")
    FrozenState.of(frozen).apply(model)
    assert is_frozen(model, "1")
    trainable.apply(model)
    assert FrozenState.of(model) == trainable
    assert all(module.training for module in model.train().modules())
