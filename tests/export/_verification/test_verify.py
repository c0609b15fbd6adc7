"""The comparison of a file with a model: what it finds and what it accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from finetunelib.errors import (
    CorruptFileError,
    ExportMismatchError,
    FileMissingError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.export import verify_onnx
from support_models import Difference, Function
from support_onnx import Array, save, write_mlp
from support_untouched import changed_since, snapshot


class TwoLayers(nn.Module):
    """The model whose file `write_mlp` writes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(torch.relu(self.first(inputs)))
        return outputs


@pytest.fixture
def model() -> TwoLayers:
    """A model with fixed weights. The global generator is left unchanged."""
    with torch.random.fork_rng():
        return TwoLayers()


@pytest.fixture
def inputs() -> Tensor:
    """Sixteen samples."""
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(model: TwoLayers, tmp_path: Path) -> Path:
    """A file that computes the same as `model`."""
    return write_mlp(tmp_path / "mlp.onnx", model.first, model.second)


def _edit_weights(file: Path, name: str, edit: Callable[[Array], Array]) -> None:
    proto = onnx.load(file)
    (weights,) = [weights for weights in proto.graph.initializer if weights.name == name]
    weights.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(weights).copy()), name))
    onnx.save(proto, file)


def _write_function(path: Path, operator: str, *, shape: list[int | str] | None = None) -> Path:
    """Write a file with one input and one operator."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        operator,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape or ["batch", 4])],
    )
    return save(graph, path)


def _write_difference(path: Path, first: str = "left", second: str = "right") -> Path:
    nodes = [
        helper.make_node("Add", [second, second], ["double"]),
        helper.make_node("Sub", [first, "double"], ["output"]),
    ]
    names = (first, second, "output")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in names]
    return save(helper.make_graph(nodes, "difference", infos[:2], infos[2:]), path)


def test_a_file_of_the_model_is_verified(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """The status is `verified`, and the only error is rounding."""
    verification = verify_onnx(file, model, [inputs])
    assert verification.status == "verified"
    # The outputs are sums of eight products of numbers around 1, in float32.
    assert verification.comparisons[0].error < 1e-5


def test_a_path_may_be_a_string(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """A path is a string or a path object."""
    assert verify_onnx(str(file), model, [inputs]).status == "verified"


def test_the_verification_records_batch_sizes_and_tolerance(
    file: Path, model: nn.Module, inputs: Tensor
) -> None:
    """The verification contains the batch sizes that were compared and the tolerance."""
    verification = verify_onnx(file, model, [inputs[:1], inputs[:5]], tolerance=1e-2)
    assert verification.batch_sizes == (1, 5)
    assert verification.tolerance == 1e-2


def test_the_error_is_the_largest_difference_over_the_spread(
    file: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """A comparison has the largest difference, the range over the samples, and their ratio."""
    outputs = model(inputs).detach()
    spread = float((outputs.amax(0) - outputs.amin(0)).max())
    with torch.no_grad():
        model.second.bias[1].add_(0.25)
    comparison, *_ = verify_onnx(file, model, [inputs], tolerance=10.0).comparisons
    assert comparison.output == "output"
    # The float32 outputs are around 1, so their differences are exact to 1e-6.
    assert comparison.largest_error == pytest.approx(0.25, abs=1e-6)
    assert comparison.spread == pytest.approx(spread, abs=1e-6)
    assert comparison.error == pytest.approx(comparison.largest_error / comparison.spread)


@pytest.mark.parametrize("name", ["first.weight", "first.bias", "second.weight", "second.bias"])
def test_a_changed_weight_is_found(file: Path, model: nn.Module, inputs: Tensor, name: str) -> None:
    """One value that differs by 0.5 is a mismatch, and the error names the output."""

    def add_to_the_first(weights: Array) -> Array:
        weights.flat[0] += 0.5
        return weights

    _edit_weights(file, name, add_to_the_first)
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs])
    assert "`output`" in str(caught.value)


def test_swapped_weights_are_found(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """Two swapped classes are a mismatch, although the same values occur."""
    _edit_weights(file, "second.weight", lambda weights: weights[[1, 0, 2]])
    _edit_weights(file, "second.bias", lambda weights: weights[[1, 0, 2]])
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, model, [inputs])


def test_a_missing_activation_is_found(tmp_path: Path, model: TwoLayers, inputs: Tensor) -> None:
    """A file without the model's ReLU is a mismatch."""
    linear = write_mlp(tmp_path / "linear.onnx", model.first, model.second, relu=False)
    with pytest.raises(ExportMismatchError):
        verify_onnx(linear, model, [inputs])


def test_outputs_of_another_shape_are_found(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """The error for a different number of classes contains both shapes."""
    other = write_mlp(tmp_path / "other.onnx", model.first, nn.Linear(8, 5))
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(other, model, [inputs])
    assert "(16, 5)" in str(caught.value)
    assert "(16, 3)" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_in_the_file_that_are_not_finite_are_found(
    file: Path, model: nn.Module, inputs: Tensor, value: float
) -> None:
    """NaN and infinity are a mismatch, and the error names the file."""
    _edit_weights(file, "second.bias", lambda weights: np.full_like(weights, value))
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs])
    assert "`output` of the file" in str(caught.value)


def test_weights_in_the_model_that_are_not_finite_are_found(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """NaN is a mismatch even if both sides agree, and the error names the model."""
    nn.init.constant_(model.second.bias, float("nan"))
    file = write_mlp(tmp_path / "nan.onnx", model.first, model.second)
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs])
    assert "`output` of the model" in str(caught.value)


@pytest.mark.parametrize(("tolerance", "agrees"), [(1.0, True), (1e-3, False)])
def test_the_tolerance_decides(
    file: Path, model: TwoLayers, inputs: Tensor, tolerance: float, agrees: bool
) -> None:
    """The same difference passes a wide tolerance and fails a narrow one."""
    with torch.no_grad():
        model.second.bias.add_(0.1)
    if agrees:
        assert verify_onnx(file, model, [inputs], tolerance=tolerance).status == "verified"
    else:
        with pytest.raises(ExportMismatchError):
            verify_onnx(file, model, [inputs], tolerance=tolerance)


def test_a_large_constant_does_not_hide_an_error(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """An error of 0.01 is a mismatch even if the outputs are about 1,000."""
    nn.init.constant_(model.second.bias, 1000.0)
    file = write_mlp(tmp_path / "biased.onnx", model.first, model.second)
    assert verify_onnx(file, model, [inputs]).status == "verified"
    with torch.no_grad():
        model.second.bias.add_(0.01)
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, model, [inputs])


def test_the_numbers_of_a_mismatch_are_in_the_message(
    file: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """The message contains the difference and the tolerance."""
    with torch.no_grad():
        model.second.bias.add_(0.5)
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs], tolerance=0.002)
    assert "0.5 " in str(caught.value)
    assert "0.002" in str(caught.value)


def test_one_sample_is_inconclusive(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """A single sample has no spread."""
    verification = verify_onnx(file, model, [inputs[:1]])
    assert verification.status == "inconclusive"
    assert verification.comparisons[0].spread < 1e-6  # Rounding differs between batch sizes.


def test_equal_samples_are_inconclusive(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """Equal samples have no spread."""
    verification = verify_onnx(file, model, [inputs[:1].repeat(9, 1)])
    assert verification.status == "inconclusive"


def test_outputs_that_vary_only_by_rounding_are_inconclusive(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """A relative spread of 1e-6 cannot be told from float32 rounding."""
    nn.init.normal_(model.second.weight, std=1e-6)
    nn.init.ones_(model.second.bias)
    file = write_mlp(tmp_path / "flat.onnx", model.first, model.second)
    assert verify_onnx(file, model, [inputs]).status == "inconclusive"


def test_constant_outputs_that_differ_are_a_mismatch(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """Without a spread, the error is relative to the magnitude of the outputs."""
    nn.init.zeros_(model.second.weight)
    file = write_mlp(tmp_path / "constant.onnx", model.first, model.second)
    with torch.no_grad():
        model.second.bias.add_(0.01)
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, model, [inputs])


def test_a_file_that_differs_from_zero_outputs_is_found(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """If all outputs of the model are 0, any difference is a mismatch."""
    nn.init.zeros_(model.second.weight)
    nn.init.zeros_(model.second.bias)
    other = nn.Linear(8, 3)
    nn.init.zeros_(other.weight)
    nn.init.constant_(other.bias, 1e-6)
    file = write_mlp(tmp_path / "zeros.onnx", model.first, other)
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, model, [inputs])


def test_one_constant_output_of_two_is_inconclusive(tmp_path: Path, inputs: Tensor) -> None:
    """A file is verified only if every output varies."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xyz"]
    nodes = [helper.make_node("Abs", ["x"], ["y"]), helper.make_node("Sub", ["x", "x"], ["z"])]
    file = save(helper.make_graph(nodes, "two", info[:1], info[1:]), tmp_path / "two.onnx")
    model = Function(lambda x: (x.abs(), x - x))
    verification = verify_onnx(file, model, [inputs])
    assert verification.status == "inconclusive"
    outputs = dict.fromkeys(comparison.output for comparison in verification.comparisons)
    assert list(outputs) == ["y", "z"]


def test_one_number_per_batch_is_compared(tmp_path: Path, inputs: Tensor) -> None:
    """An output without dimensions varies from batch to batch."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    file = save(graph, tmp_path / "mean.onnx")
    batches = [inputs[:2], inputs[2:]]
    assert verify_onnx(file, Function(Tensor.mean), batches).status == "verified"
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, Function(Tensor.sum), batches)


def test_integers_are_compared(tmp_path: Path, inputs: Tensor) -> None:
    """Predicted classes are compared like other outputs."""
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        "class",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])],
    )
    file = save(graph, tmp_path / "class.onnx")
    assert verify_onnx(file, Function(lambda x: x.argmax(1)), [inputs]).status == "verified"
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, Function(lambda x: x.argmin(1)), [inputs])


def test_outputs_whose_shape_depends_on_the_batch_are_compared(
    tmp_path: Path, inputs: Tensor
) -> None:
    """A matrix of pairwise similarities has a different shape for each batch size."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        "similarity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "batch"])],
    )
    file = save(graph, tmp_path / "similarity.onnx")
    batches = [inputs[:3], inputs]
    assert verify_onnx(file, Function(lambda x: x @ x.T), batches).status == "verified"
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, Function(lambda x: x @ x.T + 1), batches)


def test_a_dict_is_matched_by_name_whatever_its_order(tmp_path: Path, inputs: Tensor) -> None:
    """The names of the inputs in the file decide, and not the order of the dict."""
    file = _write_difference(tmp_path / "difference.onnx")
    batch = {"right": inputs, "left": inputs.flip(0)}
    assert verify_onnx(file, Difference(), [batch]).status == "verified"


def test_a_dict_is_matched_by_order_if_the_file_has_other_names(
    tmp_path: Path, inputs: Tensor
) -> None:
    """If the inputs of the file were renamed, they are matched in their order."""
    file = _write_difference(tmp_path / "renamed.onnx", "a", "b")
    batch = {"left": inputs, "right": inputs.flip(0)}
    assert verify_onnx(file, Difference(), [batch]).status == "verified"


def test_several_inputs_are_matched_by_order(tmp_path: Path, inputs: Tensor) -> None:
    """A tuple is matched in the order of the inputs of the file."""
    file = _write_difference(tmp_path / "difference.onnx")
    batch = (inputs, inputs.flip(0))
    assert verify_onnx(file, Difference(), [batch]).status == "verified"
    swapped = _write_difference(tmp_path / "swapped.onnx", "right", "left")
    assert verify_onnx(swapped, Difference(), [batch]).status == "verified"


@pytest.mark.parametrize("outputs", [1, 3])
def test_another_number_of_outputs_is_found(tmp_path: Path, inputs: Tensor, outputs: int) -> None:
    """If the file has more or fewer outputs than the model, the error contains both numbers."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xyz"]
    nodes = [helper.make_node("Abs", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    file = save(helper.make_graph(nodes, "two", info[:1], info[1:]), tmp_path / "two.onnx")
    model = Function(lambda x: (x.abs(), -x, x)[:outputs])
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs])
    assert "2 outputs (y, z)" in str(caught.value)
    assert f"returns {outputs}" in str(caught.value)


def test_another_number_of_inputs_is_found(file: Path, inputs: Tensor) -> None:
    """If the file has fewer inputs than the model, the error contains both numbers."""
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, Difference(), [(inputs, inputs)])
    assert "1 inputs (inputs)" in str(caught.value)
    assert "takes 2" in str(caught.value)


def test_a_batch_that_the_file_does_not_accept_is_found(
    tmp_path: Path, model: TwoLayers, inputs: Tensor
) -> None:
    """A file with a fixed batch size is a mismatch at other batch sizes."""
    file = write_mlp(tmp_path / "fixed.onnx", model.first, model.second, batch=2)
    with pytest.raises(ExportMismatchError) as caught:
        verify_onnx(file, model, [inputs[:2], inputs[:5]])
    assert "batch of 5" in str(caught.value)


def test_a_batch_of_another_dtype_is_found(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """A float32 file is a mismatch for a float64 model."""
    with pytest.raises(ExportMismatchError):
        verify_onnx(file, model.double(), [inputs.double()])


def test_a_missing_file_is_named(tmp_path: Path, model: nn.Module, inputs: Tensor) -> None:
    """The error contains the path."""
    missing = tmp_path / "missing.onnx"
    with pytest.raises(FileMissingError) as caught:
        verify_onnx(missing, model, [inputs])
    assert str(missing) in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path: Path, model: nn.Module, inputs: Tensor) -> None:
    """The error contains the path."""
    with pytest.raises(FileMissingError) as caught:
        verify_onnx(tmp_path, model, [inputs])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 4])
def test_a_file_that_is_not_a_model_is_named(
    tmp_path: Path, model: nn.Module, inputs: Tensor, content: bytes
) -> None:
    """The error for an empty or unrelated file contains the path."""
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        verify_onnx(corrupt, model, [inputs])
    assert str(corrupt) in str(caught.value)


def test_a_truncated_file_is_named(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """The error contains the path."""
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptFileError) as caught:
        verify_onnx(file, model, [inputs])
    assert str(file) in str(caught.value)


def test_an_invalid_graph_is_refused(tmp_path: Path, model: nn.Module, inputs: Tensor) -> None:
    """A file with an operator that ONNX does not define is not run."""
    file = _write_function(tmp_path / "unknown.onnx", "Invented")
    with pytest.raises(CorruptFileError) as caught:
        verify_onnx(file, model, [inputs])
    assert "Invented" in str(caught.value)


def test_no_batch_is_an_error(file: Path, model: nn.Module) -> None:
    """At least one batch is needed for a comparison."""
    with pytest.raises(InvalidArgumentError) as caught:
        verify_onnx(file, model, [])
    assert "`inputs`" in str(caught.value)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_that_is_not_positive_is_an_error(
    file: Path, model: nn.Module, inputs: Tensor, tolerance: float
) -> None:
    """The tolerance must be above 0, and the error contains the value."""
    with pytest.raises(InvalidArgumentError) as caught:
        verify_onnx(file, model, [inputs], tolerance=tolerance)
    assert str(tolerance) in str(caught.value)


def test_a_batch_of_a_wrong_shape_is_named(file: Path, model: nn.Module, inputs: Tensor) -> None:
    """The error contains the index of the batch and its shape."""
    with pytest.raises(InvalidInputError) as caught:
        verify_onnx(file, model, [inputs, torch.zeros(2, 9)])
    assert "`inputs[1]`" in str(caught.value)
    assert "(2, 9)" in str(caught.value)


def test_a_batch_that_is_not_a_tensor_is_named(file: Path, model: nn.Module) -> None:
    """The error contains the index of the batch."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, model, [[1.0, 2.0]])  # type: ignore[list-item]
    assert "`inputs[0]`" in str(caught.value)


@pytest.mark.parametrize("output", ["text", None, (), ["text"]])
def test_outputs_that_are_not_tensors_are_an_error(
    file: Path, inputs: Tensor, output: object
) -> None:
    """The error names the type of the output."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, Function(lambda x: output), [inputs])
    leaf = output[0] if isinstance(output, list) else output
    assert type(leaf).__name__ in str(caught.value)


def test_the_model_is_compared_in_eval_mode(tmp_path: Path, inputs: Tensor) -> None:
    """A model in train mode is compared in eval mode."""
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU()).train()
    file = _write_function(tmp_path / "relu.onnx", "Relu")
    assert verify_onnx(file, model, [inputs]).status == "verified"


@pytest.mark.parametrize("agrees", [True, False])
def test_the_model_is_left_unchanged(tmp_path: Path, inputs: Tensor, agrees: bool) -> None:
    """Modes, buffers, gradients and random states are the same after success and mismatch."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())
    model[1].eval()
    model[0].weight.grad = torch.ones(4)
    model[0].bias.requires_grad_(False)
    before = snapshot(model)
    # With its initial statistics, BatchNorm in eval mode is almost the identity.
    file = _write_function(tmp_path / "f.onnx", "Relu" if agrees else "Abs")
    if agrees:
        verify_onnx(file, model, [inputs])
    else:
        with pytest.raises(ExportMismatchError):
            verify_onnx(file, model, [inputs])
    assert changed_since(before, model) == []
