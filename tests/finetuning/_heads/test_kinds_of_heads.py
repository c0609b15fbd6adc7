"""Heads that are not plain real-valued layers, and models with an unusual forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from finetunelib import freeze_and_replace_head
from finetunelib.errors import HeadError, HeadNotFoundError, InvalidInputError
from finetunelib.finetuning import find_head, replace_head


class Cosine(nn.Linear):
    """A classifier by cosines."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return functional.linear(functional.normalize(input), functional.normalize(self.weight))


class StandardizedConv(nn.Conv2d):
    """A convolution that standardizes its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class DropConnect(nn.Linear):
    """A layer that drops weights in train mode."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        weight = functional.dropout(self.weight, 0.5, self.training)
        return functional.linear(input, weight, self.bias)


class Casting(nn.Linear):
    """A layer whose own forward computes the same as a Linear, as timm's does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return functional.linear(input, self.weight.to(input.dtype), self.bias)


class Named(nn.Linear):
    """A subclass without its own forward."""


def with_head(head: nn.Module) -> nn.Sequential:
    """Return a model with a head, a convolution with its pooling included."""
    if isinstance(head, nn.Conv2d):
        return nn.Sequential(nn.Conv2d(3, 6, 1), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Linear(4, 6), head)


# Subclasses


@pytest.mark.parametrize("at", [None, "1"])
@pytest.mark.parametrize(
    "head",
    [Cosine(6, 3, bias=False), StandardizedConv(6, 3, 1), DropConnect(6, 3)],
    ids=lambda head: type(head).__name__,
)
def test_subclass_with_another_forward_is_refused(head: nn.Module, at: str | None) -> None:
    """A plain layer would compute something else; the advice is to pass `head=`."""
    model = with_head(head)
    with pytest.raises(HeadError, match=rf"{type(head).__name__}.*`head=lambda features"):
        freeze_and_replace_head(model, num_classes=5, at=at)
    assert model[1] is head
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [Casting, Named])
def test_subclass_with_the_same_results_is_replaced(kind: type[nn.Linear], device: str) -> None:
    """The layer is compared with a plain one on random numbers, also without data of its own."""
    model = with_head(kind(6, 3)).to(device)
    state = torch.get_rng_state()
    new = replace_head(model, num_classes=5).get_submodule("1")
    assert type(new) is nn.Linear
    torch.set_rng_state(state)
    if device == "cpu":
        assert torch.equal(new.get_parameter("weight"), nn.Linear(6, 5).weight)


def test_parametrized_subclass_is_refused() -> None:
    """A parametrization does not hide the forward of the class."""
    with pytest.raises(HeadError, match="Cosine"):
        replace_head(with_head(parametrizations.weight_norm(Cosine(6, 3, bias=False))), 5)


def test_forward_of_the_instance_is_refused() -> None:
    """A function assigned to `forward` counts as well."""
    model = with_head(nn.Linear(6, 3))
    head: Any = model[1]
    head.forward = lambda inputs: 2 * nn.Linear.forward(head, inputs)
    with pytest.raises(HeadError, match="head="):
        replace_head(model, num_classes=5)


def test_subclass_is_replaced_by_a_head_of_the_user() -> None:
    """Following the advice solves the problem."""
    model = with_head(Cosine(6, 3, bias=False))
    replace_head(model, head=lambda features: Cosine(features, 5, bias=False))
    assert model(torch.ones(2, 4)).shape == (2, 5)


# Complex and orthogonal weights


@pytest.mark.parametrize("example", [None, torch.ones(2, 4, dtype=torch.complex64)])
def test_head_of_a_complex_model_is_replaced(example: Tensor | None) -> None:
    """The new head is complex, and the rest is frozen."""
    dtype = torch.complex64
    model = nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.Linear(6, 3, dtype=dtype))
    freeze_and_replace_head(model, num_classes=5, example_input=example)
    assert model(torch.ones(2, 4, dtype=dtype)).shape == (2, 5)
    assert model.get_parameter("1.weight").dtype == dtype
    assert not model.get_parameter("0.weight").requires_grad


def test_real_head_on_complex_features_is_found() -> None:
    """A model may change to real numbers on the way."""

    class Magnitudes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 6, dtype=torch.complex64)
            self.last = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.body(inputs).abs())
            return outputs

    assert find_head(Magnitudes()).name == "last"


@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("use_trivialization", [True, False])
@pytest.mark.parametrize("out_features", [3, 6, 8])
def test_orthogonal_head_is_found(
    orthogonal_map: str, use_trivialization: bool, out_features: int
) -> None:
    """The products that compute its weight are not mistaken for operations on the data."""
    head = parametrizations.orthogonal(
        nn.Linear(6, out_features),
        orthogonal_map=orthogonal_map,
        use_trivialization=use_trivialization,
    )
    assert find_head(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), head)).name == "2"


# Inputs


class WithTarget(nn.Module):
    """A model that computes a loss, which refuses gradients for its target, in its forward."""

    def __init__(self, order: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.order = order

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        inputs, target = self.order(one, other)
        features = self.body(inputs)
        outputs: Tensor = self.head(features * functional.soft_margin_loss(features, target))
        return outputs


@pytest.mark.parametrize("at", [None, "head"])
@pytest.mark.parametrize("swapped", [False, True])
def test_input_that_cannot_be_differentiated_is_passed_unchanged(
    swapped: bool, at: str | None
) -> None:
    """The position of the input does not matter."""
    model = WithTarget(lambda one, other: (other, one) if swapped else (one, other))
    example = (torch.randn(2, 4), torch.ones(2, 4))
    example = (example[1], example[0]) if swapped else example
    replace_head(model, num_classes=5, at=at, example_input=example)
    assert model(*example).shape == (2, 5)


def test_only_input_may_refuse_gradients() -> None:
    """A model that converts its input to an array has a head."""

    class Converting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.body(torch.from_numpy(inputs.numpy())))
            return outputs

    assert find_head(Converting()).found_by == "following the data"


# Exceptions


class Raising(nn.Module):
    """A model whose forward always fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)
        self.error = error

    def forward(self, inputs: Tensor) -> Tensor:
        raise self.error


class CustomError(Exception):
    """An error that no library knows."""


ERRORS = [
    KeyError("image"),
    AttributeError("shape"),
    NotImplementedError("forward"),
    ZeroDivisionError("division"),
    StopIteration(),
    OSError("no file"),
    LookupError("entry"),
    CustomError("custom"),
    RecursionError("depth"),
    MemoryError("too large"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_of_the_forward_leads_to_a_search_by_names(error: Exception) -> None:
    """The layer with a usual name is found, and replaced at its name."""
    model = Raising(error)
    assert find_head(model).name == "fc"
    freeze_and_replace_head(model, num_classes=5, at="fc")
    assert model.fc.out_features == 5
    assert not model.body.weight.requires_grad


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_on_an_example_is_a_library_error(error: Exception) -> None:
    """The example of the user may be wrong, so the names do not decide."""
    with pytest.raises(HeadNotFoundError) as found:
        find_head(Raising(error), torch.ones(2, 4))
    with pytest.raises(InvalidInputError) as named:
        freeze_and_replace_head(Raising(error), 5, at="fc", example_input=torch.ones(2, 4))
    assert "`example_input`" in str(found.value)
    assert named.value.__cause__ is not None


def test_any_exception_of_a_new_head_is_a_library_error() -> None:
    """The old head is restored."""

    class Failing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise CustomError("mine")

    model = with_head(nn.Linear(6, 3))
    old = model[1]
    with pytest.raises(HeadError, match="mine"):
        replace_head(model, head=Failing())
    assert model[1] is old
