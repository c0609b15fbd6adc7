"""Tensors of a subclass that wraps other tensors and has no memory of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.finetuning import fingerprint, freeze, is_frozen, save_weights


class Opaque(Tensor):
    """A wrapper that does not say which tensors are inside it."""

    def __new__(cls, inner: Tensor) -> Self:
        make: Any = Tensor._make_wrapper_subclass
        made: Self = make(cls, inner.shape, dtype=inner.dtype)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return Opaque(torch.empty(args[0].shape))
        raise NotImplementedError(str(function))


def network(wrap: Any = lambda weight: TwoTensor(weight, weight.clone())) -> nn.Sequential:
    """Return a network whose first weight is wrapped."""
    torch.manual_seed(0)
    first = nn.Linear(4, 4)
    first.weight = nn.Parameter(wrap(first.weight.detach()))
    return nn.Sequential(first, nn.Linear(4, 2))


def test_freezing_gives_the_digests_of_the_tensors_inside() -> None:
    """Both tensors of the layer are frozen and have a digest."""
    model = network()
    digests = freeze(model, "0")
    assert set(digests) == {"0.weight", "0.bias"}
    assert is_frozen(model, "0")
    assert fingerprint(model) == digests


@pytest.mark.parametrize("inner", ["a", "b"])
def test_a_change_of_either_inner_tensor_changes_the_digest(inner: str) -> None:
    """The digest covers all tensors inside."""
    model = network()
    before = freeze(model, "0")
    with torch.no_grad():
        getattr(model[0].weight, inner)[0, 0] += 1
    assert fingerprint(model)["0.weight"] != before["0.weight"]


def test_two_wrapped_tensors_are_not_treated_as_tied() -> None:
    """Of two wrapped weights with the same shape, one can be frozen alone."""
    layers = nn.Linear(4, 4), nn.Linear(4, 4)
    for layer in layers:
        weight = layer.weight.detach()
        layer.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    model = nn.Sequential(*layers)
    freeze(model, "0")
    assert is_frozen(model, "0")
    assert not is_frozen(model, "1")


@pytest.mark.parametrize("part", ["0", "0.weight"])
def test_a_tensor_that_cannot_be_read_is_refused_before_anything_is_frozen(part: str) -> None:
    """The error names the tensor, and the model is unchanged."""
    model = network(Opaque)
    with pytest.raises(InvalidTypeError, match=r"`0\.weight`"):
        freeze(model, part)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("wrap", [lambda weight: TwoTensor(weight, weight.clone()), Opaque])
def test_saving_names_the_tensor_and_writes_nothing(tmp_path: Path, wrap: Any) -> None:
    """A weights file contains plain tensors only."""
    with pytest.raises((InvalidArgumentError, InvalidTypeError), match=r"`0\.weight`"):
        save_weights(network(wrap), tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []
