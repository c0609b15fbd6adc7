"""Parsing the inputs of a model, and creating batches from an example."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidTypeError


@pytest.fixture
def generator() -> torch.Generator:
    """A separate generator, because tests must not share random state."""
    return torch.Generator().manual_seed(0)


class _Recorder(nn.Module):
    """Stores the arguments of its last call."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> None:
        self.args = args
        self.kwargs = kwargs


def _called_with(value: object) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the arguments that a model gets for these inputs."""
    model = _Recorder()
    Inputs.of(value, "example_input").call(model)
    return list(model.args), model.kwargs


def _different(rows: Tensor) -> int:
    return len({tuple(row) for row in rows.tolist()})


def test_a_tensor_is_one_positional_input() -> None:
    """The model is called with the tensor itself."""
    tensor = torch.zeros(2, 4)
    args, kwargs = _called_with(tensor)
    assert [id(arg) for arg in args] == [id(tensor)]
    assert kwargs == {}


@pytest.mark.parametrize("form", [tuple, list])
def test_a_sequence_is_several_positional_inputs(form: type) -> None:
    """Each item of a tuple or list is one argument."""
    left, right = torch.zeros(2, 4), torch.ones(2, 3)
    args, kwargs = _called_with(form([left, right]))
    assert [id(arg) for arg in args] == [id(left), id(right)]
    assert kwargs == {}


@pytest.mark.parametrize("form", [dict, OrderedDict])
def test_a_mapping_is_inputs_by_argument_name(form: type) -> None:
    """A mapping is passed by keyword, in its order."""
    left, right = torch.zeros(2, 4), torch.ones(2, 3)
    mapping = form([("right", right), ("left", left)])
    args, kwargs = _called_with(mapping)
    assert args == []
    assert list(kwargs) == ["right", "left"]
    assert kwargs["left"] is left


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="None"),
        pytest.param(3.0, id="number"),
        pytest.param("text", id="text"),
        pytest.param([1.0, 2.0], id="list of numbers"),
        pytest.param((), id="empty tuple"),
        pytest.param({}, id="empty dict"),
        pytest.param({"x": 1}, id="dict of numbers"),
        pytest.param((torch.zeros(2, 3), None), id="tensor and None"),
        pytest.param(torch.zeros(()), id="tensor without a batch"),
        pytest.param(torch.zeros(0, 3), id="tensor without a sample"),
    ],
)
def test_other_inputs_are_refused_by_the_name_of_the_argument(value: object) -> None:
    """The error names the argument and the type."""
    with pytest.raises(InvalidTypeError) as caught:
        Inputs.of(value, "sample_inputs")
    assert "`sample_inputs`" in str(caught.value)
    assert type(value).__name__ in str(caught.value)


def test_the_shape_of_a_refused_tensor_is_named() -> None:
    """The message contains the shape."""
    with pytest.raises(InvalidTypeError) as caught:
        Inputs.of(torch.zeros(0, 3), "example_input")
    assert "(0, 3)" in str(caught.value)


def test_a_batch_of_one_is_doubled() -> None:
    """A batch of one becomes two equal samples, and a larger one is unchanged."""
    single, pair = torch.randn(1, 3), torch.randn(2, 3)
    doubled = Inputs.of((single, pair), "x").with_two_rows().tensors
    assert torch.equal(doubled[0], torch.cat([single, single]))
    assert torch.equal(doubled[1], pair)


def test_first_rows_are_repeated_if_there_are_too_few() -> None:
    """Five samples of two are both of them twice, and the first one again."""
    tensor = torch.tensor([[1.0], [2.0]])
    (rows,) = Inputs.of(tensor, "x").first_rows([5]).tensors
    assert rows.flatten().tolist() == [1.0, 2.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_variations_of_numbers_keep_shape_dtype_and_the_first_sample(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    """The example comes first, followed by samples with other values."""
    tensor = torch.arange(8, dtype=torch.float32).reshape(2, 4).to(dtype)
    (rows,) = Inputs.of(tensor, "x").resized([7], generator).tensors
    assert rows.shape == (7, 4)
    assert rows.dtype == dtype
    assert torch.equal(rows[0], tensor[0])
    assert _different(rows) == 7


def test_a_constant_example_is_varied_too(generator: torch.Generator) -> None:
    """The samples from an example of zeros differ."""
    (rows,) = Inputs.of(torch.zeros(1, 4), "x").resized([3], generator).tensors
    assert _different(rows) == 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_variations_of_integers_stay_in_the_range_of_the_example(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Integers are often indices."""
    tensor = torch.tensor([[3, 5], [9, 4]], dtype=dtype)
    (rows,) = Inputs.of(tensor, "x").resized([50], generator).tensors
    assert rows.dtype == dtype
    assert rows[0].tolist() == [3, 5]
    assert (int(rows.min()), int(rows.max())) == (3, 9)


def test_booleans_are_repeated(generator: torch.Generator) -> None:
    """A mask has the patterns of the example."""
    mask = torch.tensor([[True, False], [False, False]])
    (rows,) = Inputs.of(mask, "x").resized([3], generator).tensors
    assert rows.tolist() == [[True, False], [False, False], [True, False]]


def test_variations_do_not_change_the_example_or_the_global_random_state(
    generator: torch.Generator,
) -> None:
    """Variations are new tensors from the given generator."""
    tensor = torch.ones(2, 3)
    state = torch.get_rng_state()
    Inputs.of(tensor, "x").resized([4], generator)
    assert torch.equal(tensor, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_may_have_different_numbers_of_rows(generator: torch.Generator) -> None:
    """As in the example."""
    inputs = Inputs.of((torch.randn(5, 2), torch.randn(1, 3)), "x")
    assert [len(t) for t in inputs.resized([10, 2], generator).tensors] == [10, 2]
    assert [len(t) for t in inputs.first_rows([10, 2]).tensors] == [10, 2]


@pytest.mark.parametrize("value", [torch.ones(2, 4), {"left": torch.ones(2, 4)}])
def test_inputs_are_moved_to_the_device_of_the_model(value: object) -> None:
    """After training the model may be on an accelerator, and the example on the CPU."""
    inputs = Inputs.of(value, "example_input").on_device_of(nn.Linear(4, 3, device="meta"))
    assert [tensor.device.type for tensor in inputs.tensors] == ["meta"]


def test_a_model_without_tensors_has_no_device() -> None:
    """Its inputs are not moved."""
    assert Inputs.of(torch.ones(2, 4), "x").on_device_of(nn.ReLU()).tensors[0].device.type == "cpu"
