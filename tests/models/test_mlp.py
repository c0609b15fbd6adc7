"""Building a multilayer perceptron, its forward pass and its errors."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import build_mlp
from finetunelib.errors import InvalidArgumentError, InvalidInputError, InvalidTypeError
from finetunelib.models import MLP


def kinds(model: nn.Module) -> list[type[nn.Module]]:
    """Return the types of the modules inside a backbone, in order."""
    return [type(module) for module in model.children()]


def images(*shape: int) -> Tensor:
    """Return reproducible inputs of a shape."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# Structure


@pytest.mark.parametrize("hidden", [[], [5], [7, 6, 5], (7, 6), range(3, 6)], ids=str)
def test_widths_follow_the_request(hidden: Sequence[int]) -> None:
    """Any sequence of widths gives linear layers of these widths in order."""
    model = build_mlp(4, hidden, 3)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    widths = [4, *hidden, 3]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(widths))


def test_no_hidden_layer_is_a_linear_model() -> None:
    """Without hidden layers the outputs are an affine function of the inputs."""
    model = build_mlp(4, [], 3)
    inputs = images(2, 4)
    expected = nn.functional.linear(
        inputs, model.get_parameter("head.weight"), model.get_parameter("head.bias")
    )
    assert torch.equal(model(inputs), expected)


def test_the_model_is_its_head_on_its_backbone() -> None:
    """The outputs are the head applied to the backbone's features."""
    model = build_mlp(4, [5], 3)
    features = model.backbone(images(2, 4))
    assert features.shape == (2, 5)
    assert torch.equal(model(images(2, 4)), model.head(features))


def test_hidden_layer_is_linear_normalization_activation_dropout() -> None:
    """Each hidden layer has its four parts in this order."""
    model = build_mlp(4, [5, 6], 3, activation=nn.GELU, normalization=nn.BatchNorm1d, dropout=0.1)
    layer = [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Dropout]
    assert kinds(model.backbone) == [nn.Flatten, *layer, *layer]


def test_hidden_layer_is_linear_and_relu_by_default() -> None:
    """By default there is no normalization and no dropout."""
    assert kinds(build_mlp(4, [5], 3).backbone) == [nn.Flatten, nn.Linear, nn.ReLU]


def test_each_layer_has_its_own_activation() -> None:
    """Activations with parameters are not shared between layers."""
    model = build_mlp(4, [5, 5], 3, activation=nn.PReLU)
    assert len({id(part) for part in model.modules() if isinstance(part, nn.PReLU)}) == 2


def test_normalization_gets_the_width_of_its_layer() -> None:
    """The factory is called with each hidden width, in order."""
    widths: list[int] = []

    def record(width: int) -> nn.Module:
        widths.append(width)
        return nn.Identity()

    build_mlp(4, [7, 5], 3, normalization=record)
    assert widths == [7, 5]


def test_dropout_has_the_requested_probability() -> None:
    """Each dropout module has the requested probability."""
    model = build_mlp(4, [5, 5], 3, dropout=0.25)
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)] == [0.25, 0.25]


def test_the_outputs_have_neither_activation_nor_dropout() -> None:
    """The head is the last module, so its outputs are logits."""
    model = build_mlp(4, [5], 3, dropout=0.5)
    assert isinstance(model.head, nn.Linear)
    assert list(dict(model.named_children())) == ["backbone", "head"]


def test_new_model_is_in_train_mode() -> None:
    """A new model is in train mode."""
    assert all(module.training for module in build_mlp(4, [5], 3, dropout=0.1).modules())


def test_new_model_is_on_the_default_device() -> None:
    """With a seed, the model is still created on the default device."""
    with torch.device("meta"):
        model = build_mlp(4, [5], 3, seed=0)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_new_model_has_the_default_dtype() -> None:
    """The parameters have PyTorch's default dtype."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = build_mlp(4, [5], 3, seed=0)
    finally:
        torch.set_default_dtype(former)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


# Seeds


def test_same_seed_gives_the_same_weights() -> None:
    """Two models with the same seed are bitwise equal, whatever was drawn in between."""
    first = build_mlp(4, [5], 3, seed=1).state_dict()
    torch.rand(1)
    second = build_mlp(4, [5], 3, seed=1).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_another_seed_gives_different_weights() -> None:
    """Every weight depends on the seed."""
    first = build_mlp(4, [5], 3, seed=1).state_dict()
    second = build_mlp(4, [5], 3, seed=2).state_dict()
    assert not any(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_seed_does_not_change_the_global_generator() -> None:
    """Building with a seed does not change what is drawn afterwards."""
    before = torch.get_rng_state()
    build_mlp(4, [5], 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_draws_from_the_global_generator() -> None:
    """Without `seed` the weights are drawn from the global generator, as in PyTorch."""
    state = torch.get_rng_state()
    first = build_mlp(4, [5], 3).get_parameter("head.weight")
    torch.set_rng_state(state)
    assert torch.equal(build_mlp(4, [5], 3).get_parameter("head.weight"), first)
    assert not torch.equal(torch.get_rng_state(), state)


# Forward


def test_images_and_their_flat_form_give_equal_outputs() -> None:
    """`(batch, 1, 28, 28)` gives the same outputs as `(batch, 784)`."""
    model = build_mlp(784, [8], 10, seed=0)
    inputs = images(3, 1, 28, 28)
    assert torch.equal(model(inputs), model(inputs.reshape(3, 784)))


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_outputs_have_one_row_per_sample(batch: int) -> None:
    """Any number of samples gives `(batch, out_features)`."""
    assert build_mlp(6, [5], 3)(images(batch, 2, 3)).shape == (batch, 3)


def test_samples_of_a_single_number_need_a_dimension_of_one() -> None:
    """A model with one input accepts `(batch, 1)`."""
    assert build_mlp(1, [5], 3)(images(2, 1)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 2), (4,), (), (2, 0)], ids=str)
def test_inputs_of_the_wrong_width_are_an_error_that_names_their_shape(
    shape: tuple[int, ...],
) -> None:
    """The message contains the shape and the number of values per sample."""
    with pytest.raises(InvalidInputError) as caught:
        build_mlp(4, [5], 3)(images(*shape))
    assert str(shape) in str(caught.value)
    assert "(batch, 4)" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integer_inputs_are_an_error_that_names_their_dtype(dtype: torch.dtype) -> None:
    """Bytes of an image raise an error that contains their dtype."""
    with pytest.raises(InvalidInputError, match=str(dtype)):
        build_mlp(4, [5], 3)(torch.zeros(2, 4, dtype=dtype))


def test_head_can_be_assigned() -> None:
    """A module that is assigned to `.head` computes the outputs."""
    model = build_mlp(4, [5], 3)
    model.head = nn.Identity()
    assert torch.equal(model(images(2, 4)), model.backbone(images(2, 4)))


# Errors of build_mlp


@pytest.mark.parametrize("width", [0, -3])
def test_width_below_one_is_an_error_that_names_the_argument(width: int) -> None:
    """Each of the three arguments is named, a hidden width with its position."""
    for name, arguments in {
        "`in_features`": (width, [5], 3),
        "`hidden_features[1]`": (4, [5, width], 3),
        "`out_features`": (4, [5], width),
    }.items():
        with pytest.raises(InvalidArgumentError) as caught:
            build_mlp(*arguments)
        assert name in str(caught.value)
        assert str(width) in str(caught.value)


@pytest.mark.parametrize("width", [2.0, "5", None, True, [5]], ids=repr)
def test_width_that_is_not_a_whole_number_is_an_error_that_names_it(width: Any) -> None:
    """The message contains the argument and its value."""
    arguments: dict[str, tuple[Any, Any, Any]] = {
        "`in_features`": (width, [5], 3),
        "`hidden_features[1]`": (4, [5, width], 3),
        "`out_features`": (4, [5], width),
    }
    for name, (in_features, hidden, out_features) in arguments.items():
        with pytest.raises(InvalidTypeError) as caught:
            build_mlp(in_features, hidden, out_features)
        assert name in str(caught.value)
        assert repr(width) in str(caught.value)


@pytest.mark.parametrize("hidden", [500, "500", b"500", None, {5: 6}], ids=repr)
def test_hidden_features_must_be_a_sequence(hidden: Any) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(InvalidTypeError) as caught:
        build_mlp(4, hidden, 3)
    assert "`hidden_features`" in str(caught.value)
    assert repr(hidden) in str(caught.value)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 50, float("nan")])
def test_dropout_outside_its_range_is_an_error_that_names_it(dropout: float) -> None:
    """A percentage, or dropping everything, is an error."""
    with pytest.raises(InvalidArgumentError) as caught:
        build_mlp(4, [5], 3, dropout=dropout)
    assert "`dropout`" in str(caught.value)
    assert str(dropout) in str(caught.value)


@pytest.mark.parametrize("dropout", ["a", None, [0.1]], ids=repr)
def test_dropout_that_is_not_a_number_is_an_error_that_shows_it(dropout: Any) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(InvalidTypeError) as caught:
        build_mlp(4, [5], 3, dropout=dropout)
    assert "`dropout`" in str(caught.value)
    assert repr(dropout) in str(caught.value)


def test_error_does_not_change_the_global_generator() -> None:
    """The error is raised before anything is drawn."""
    before = torch.get_rng_state()
    with pytest.raises(InvalidArgumentError):
        build_mlp(4, [5], 0)
    assert torch.equal(torch.get_rng_state(), before)


# The class


def test_class_is_pickled_under_its_public_path() -> None:
    """A pickled model refers to its public import path."""
    assert b"finetunelib.models\n" in pickle.dumps(MLP, protocol=0)


def test_model_survives_a_pickle() -> None:
    """A copy made by pickle computes the same outputs."""
    model = build_mlp(4, [5], 3, seed=0)
    copy = pickle.loads(pickle.dumps(model))
    assert isinstance(copy, MLP)
    assert torch.equal(copy(images(2, 4)), model(images(2, 4)))
