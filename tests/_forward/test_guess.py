"""Guessing inputs that a model takes, and running it on them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from finetunelib._forward.guess import (
    OutputKindError,
    first_layer,
    likely_inputs,
    likely_shapes,
    run_on_example,
)
from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidInputError, InvalidTypeError


class Returning(nn.Module):
    """A model of three features that returns a given output."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.output = output

    def forward(self, inputs: Tensor) -> object:
        self.layer(inputs)
        return self.output


def classifier_of_images(size: int, channels: int = 1) -> nn.Module:
    """Return a small convolutional model that takes images of one size only."""
    return nn.Sequential(
        nn.Conv2d(channels, 1, 3, stride=3), nn.Flatten(), nn.Linear((size // 3) ** 2, 2)
    )


# first_layer and likely_shapes


def test_first_layer_is_the_first_that_fixes_a_width() -> None:
    """Layers without a fixed width are skipped."""
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.Linear(2, 1))
    found = first_layer(model)
    assert found is not None
    assert found == ("1.1", model.get_submodule("1.1"))


def test_first_layer_of_a_model_without_one_is_none() -> None:
    """A model of activations takes any input."""
    assert first_layer(nn.Sequential(nn.ReLU(), nn.Softmax(1))) is None


def test_shape_for_a_linear_layer_is_two_samples_of_its_width() -> None:
    """There is one guess, `(2, in_features)`."""
    assert [tuple(shape) for shape in likely_shapes(nn.Linear(3, 2))] == [(2, 3)]


@pytest.mark.parametrize(
    ("layer", "dimensions"),
    [(nn.Conv1d(4, 1, 1), 1), (nn.Conv2d(4, 1, 1), 2), (nn.Conv3d(4, 1, 1), 3)],
    ids=["Conv1d", "Conv2d", "Conv3d"],
)
def test_shapes_for_a_convolution_have_its_channels_and_dimensions(
    layer: nn.Module, dimensions: int
) -> None:
    """Every guess is `(2, in_channels, size, ...)` with one size per dimension."""
    for shape in likely_shapes(layer):
        assert tuple(shape[:2]) == (2, 4)
        assert len(shape) == 2 + dimensions


def test_shapes_for_images_try_the_most_common_sizes() -> None:
    """ImageNet's, CIFAR's, MNIST's, 64 and Inception's sizes are tried in this order."""
    sizes = [shape[-1] for shape in likely_shapes(nn.Conv2d(3, 1, 1))]
    assert sizes == [224, 32, 28, 64, 299]


@pytest.mark.parametrize(
    ("named", "size"),
    [
        ({"image_size": 48}, 48),
        ({"img_size": (48, 48)}, 48),
        ({"config": SimpleNamespace(image_size=48)}, 48),
        ({"patch_embed": SimpleNamespace(img_size=(48, 48))}, 48),
        ({"pretrained_cfg": {"input_size": (3, 48, 48)}}, 48),
        ({"image_size": None}, 224),
        ({"image_size": "large"}, 224),
    ],
    ids=str,
)
def test_size_that_the_model_states_is_tried_first(named: dict[str, object], size: int) -> None:
    """Models of common libraries have an attribute with the size of their images."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1))
    for name, value in named.items():
        setattr(model, name, value)
    assert tuple(next(likely_shapes(model))) == (2, 3, size, size)


def test_shape_in_the_configuration_is_tried_first() -> None:
    """A model that reshapes its images before its first layer states their channels there."""
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 1, 1))
    model.pretrained_cfg = {"input_size": (3, 48, 48)}  # type: ignore[assignment]
    shapes = [tuple(shape) for shape in likely_shapes(model)]
    assert shapes[:2] == [(2, 3, 48, 48), (2, 48, 224, 224)]
    assert len(shapes) == len(set(shapes))


@pytest.mark.parametrize("raises", [False, True])
def test_embedding_that_a_model_names_determines_the_inputs(raises: bool) -> None:
    """A language model may define its head before its body; an image model names no embedding."""

    class Naming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)
            self.body = nn.Embedding(5, 3)

        def get_input_embeddings(self) -> nn.Module:
            if raises:
                raise NotImplementedError
            return self.body

    assert tuple(next(likely_shapes(Naming()))) == ((2, 3) if raises else (2, 8))


def test_shapes_for_tokens_are_a_batch_of_texts_and_a_single_one() -> None:
    """Some models take several texts only if they know how to pad them."""
    assert [tuple(shape) for shape in likely_shapes(nn.Embedding(50, 3))] == [(2, 8), (1, 8)]


def test_no_shape_is_guessed_without_a_first_layer() -> None:
    """Inputs of an unknown width are not guessed."""
    assert list(likely_shapes(nn.ReLU())) == []


# likely_inputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_inputs_have_the_dtype_of_the_first_layer(dtype: torch.dtype) -> None:
    """A model of another precision gets inputs of this precision."""
    (inputs,) = likely_inputs(nn.Linear(3, 2, dtype=dtype))
    assert inputs.dtype == dtype


def test_inputs_are_on_the_device_of_the_first_layer() -> None:
    """A model on another device gets inputs there."""
    (inputs,) = likely_inputs(nn.Linear(3, 2, device="meta"))
    assert inputs.device.type == "meta"


def test_inputs_are_the_same_each_time() -> None:
    """A dry run is reproducible bit for bit."""
    (first,) = likely_inputs(nn.Linear(3, 2))
    (second,) = likely_inputs(nn.Linear(3, 2))
    assert torch.equal(first, second)


def test_inputs_differ_from_sample_to_sample() -> None:
    """Two equal samples would have no variance for a normalization."""
    (inputs,) = likely_inputs(nn.Linear(3, 2))
    assert not torch.equal(inputs[0], inputs[1])


def test_inputs_do_not_use_the_global_generator() -> None:
    """A guess is drawn from a separate generator."""
    model = nn.Linear(3, 2)
    before = torch.get_rng_state()
    list(likely_inputs(model))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_input_is_guessed_without_a_first_layer() -> None:
    """There is no guess for a model that takes any input."""
    assert list(likely_inputs(nn.ReLU())) == []


@pytest.mark.parametrize("tokens", [1, 5, 500])
def test_tokens_are_in_the_vocabulary(tokens: int) -> None:
    """This holds even if the vocabulary is very small."""
    for inputs in likely_inputs(nn.Embedding(tokens, 3)):
        assert inputs.dtype == torch.int64
        assert 0 <= inputs.min() <= inputs.max() < tokens


def test_tokens_end_with_the_end_of_text_token() -> None:
    """Some models read their output at this token."""
    model = nn.Embedding(50, 3)
    model.config = SimpleNamespace(eos_token_id=2)  # type: ignore[assignment]
    for inputs in likely_inputs(model):
        assert inputs[:, -1].tolist() == [2] * len(inputs)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 2), nn.Embedding(5, 3)], ids=["Linear", "Embedding"]
)
def test_inputs_are_on_the_given_device(layer: nn.Module) -> None:
    """A dry run on the meta device needs such inputs for a model on the CPU."""
    inputs = next(likely_inputs(layer, torch.device("meta")))
    assert inputs.is_meta


# run_on_example


class _Difference(nn.Module):
    """A model of two inputs that are not interchangeable."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


def test_example_of_the_user_is_run_unchanged() -> None:
    """The result contains the same tensor, and the outputs of the model."""
    model = nn.Linear(3, 2)
    example = torch.ones(5, 3)
    inputs, outputs = run_on_example(model, example)
    assert inputs.args[0] is example
    assert len(inputs.tensors) == 1
    assert torch.equal(outputs, model(example))


@pytest.mark.parametrize("size", [224, 32, 28, 64])
def test_sizes_are_tried_until_one_fits(size: int) -> None:
    """The model accepts only images of one size."""
    inputs, outputs = run_on_example(classifier_of_images(size), None)
    assert isinstance(inputs.args[0], Tensor)
    assert inputs.args[0].shape == (2, 1, size, size)
    assert outputs.shape == (2, 2)


def test_next_size_is_tried_after_an_assertion() -> None:
    """A vision transformer of torchvision asserts the size of its images."""
    model = VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4
    ).eval()
    inputs, _ = run_on_example(model, None)
    assert isinstance(inputs.args[0], Tensor)
    assert inputs.args[0].shape == (2, 3, 32, 32)


def test_given_function_is_called_instead_of_the_model() -> None:
    """The guess is for the model, and the outputs are those of the function."""
    model = nn.Linear(3, 2)
    inputs, outputs = run_on_example(model, None, lambda inputs: inputs.args[0] * 2)
    assert isinstance(inputs.args[0], Tensor)
    assert inputs.args[0].shape == (2, 3)
    assert torch.equal(outputs, inputs.args[0] * 2)


def test_outputs_may_be_in_logits() -> None:
    """The outputs may have a `logits` attribute, as in transformers."""
    logits = torch.ones(2, 4)
    _, outputs = run_on_example(Returning(SimpleNamespace(logits=logits)), None)
    assert outputs is logits


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ((torch.ones(2, 4),), "tuple"),
        ({"logits": torch.ones(2, 4)}, "dict"),
        (SimpleNamespace(logits=None), "SimpleNamespace"),
        (torch.ones(4), "(4,)"),
        (torch.tensor(1.0), "()"),
    ],
    ids=["tuple", "dict", "no logits", "vector", "number"],
)
def test_outputs_that_are_not_a_batch_are_an_error_that_names_them(
    output: object, named: str
) -> None:
    """The message contains the type or shape that the model returned."""
    with pytest.raises(InvalidInputError) as caught:
        run_on_example(Returning(output), None)
    assert named in str(caught.value)


def test_example_that_does_not_fit_is_an_error_that_names_the_argument() -> None:
    """The message is different for a guess, and contains the reason of PyTorch."""
    with pytest.raises(InvalidInputError) as caught:
        run_on_example(nn.Linear(3, 2), torch.ones(2, 5))
    assert "`example_input`" in str(caught.value)
    assert "2x5" in str(caught.value)


def test_reason_of_the_model_is_the_cause() -> None:
    """The exception of the model is chained."""
    with pytest.raises(InvalidInputError) as caught:
        run_on_example(nn.Linear(3, 2), torch.ones(2, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_guesses_that_all_fail_are_an_error_that_asks_for_an_example() -> None:
    """The user must pass `example_input=`."""
    with pytest.raises(InvalidInputError, match="example_input="):
        run_on_example(classifier_of_images(9), None)


def test_guesses_that_all_fail_report_the_most_likely_one() -> None:
    """The reason in the message is that of the first guess."""
    with pytest.raises(InvalidInputError) as caught:
        run_on_example(classifier_of_images(9), None)
    assert "2x5476" in str(caught.value)  # 74 x 74 values are left of 224 x 224 pixels


def test_model_without_a_guess_asks_for_an_example() -> None:
    """There is nothing to run."""
    with pytest.raises(InvalidInputError, match="example_input="):
        run_on_example(nn.ReLU(), None)


def test_tuple_is_passed_by_position() -> None:
    """As in a call with several arguments."""
    left, right = torch.ones(2, 3), torch.zeros(2, 3)
    _, outputs = run_on_example(_Difference(), (left, right))
    assert torch.equal(outputs, left)


def test_mapping_is_passed_by_name() -> None:
    """Its order does not matter."""
    example = {"right": torch.zeros(2, 3), "left": torch.ones(2, 3)}
    inputs, outputs = run_on_example(_Difference(), example)
    assert inputs.kwargs == example
    assert inputs.args == ()
    assert torch.equal(outputs, torch.ones(2, 3))


@pytest.mark.parametrize("example", ["text", 3, np.ones((2, 3))], ids=["text", "number", "array"])
def test_example_of_another_type_is_an_error_that_names_it(example: Any) -> None:
    """The message contains the type that was passed."""
    with pytest.raises(InvalidTypeError) as caught:
        run_on_example(nn.Linear(3, 2), example)
    assert type(example).__name__ in str(caught.value)


def test_no_other_guess_is_tried_after_a_model_that_ran() -> None:
    """A model that does not return a batch does so for any input."""
    calls: list[Inputs] = []
    model = nn.Conv2d(3, 1, 1)
    with pytest.raises(InvalidInputError) as caught:
        run_on_example(model, None, calls.append)
    assert len(calls) == 1
    assert isinstance(caught.value.__cause__, OutputKindError)


def test_other_errors_of_the_model_are_passed_on() -> None:
    """An error that is not about the inputs is not hidden."""

    def broken(_: Inputs) -> object:
        raise MemoryError("mine")

    with pytest.raises(MemoryError, match="mine"):
        run_on_example(nn.Linear(3, 2), None, broken)
