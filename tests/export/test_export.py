"""Export a module to one verified file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import build_mlp, export_onnx, freeze_and_replace_head
from finetunelib.errors import ExportMismatchError
from finetunelib.export import ExportReport, TensorInfo
from support_models import Deceiving, Difference, Function, linear, outputs_of, samples, seeded
from support_onnx import run
from support_untouched import changed_since, snapshot


class Tokens(nn.Module):
    """A model of integers below 10."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.embedding(tokens).mean(1))
        return outputs


class Exported(NamedTuple):
    """A successful export."""

    model: nn.Module
    example: Tensor
    report: ExportReport


def _assert_equal(outputs: object, expected: Tensor) -> None:
    # ONNX Runtime sums in another order, which causes relative rounding errors of about 1e-7.
    torch.testing.assert_close(torch.as_tensor(outputs), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An MLP with normalization and dropout, exported from a batch of two in train mode."""
    model = build_mlp(4, [8], 3, normalization=nn.BatchNorm1d, dropout=0.5, seed=0)
    example = samples(2, 4)
    path = tmp_path_factory.mktemp("exported") / "mlp.onnx"
    return Exported(model, example, export_onnx(model, path, example))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A linear model, exported with a fixed batch of 1."""
    model, example = linear(), samples(1, 4)
    path = tmp_path_factory.mktemp("fixed") / "linear.onnx"
    report = export_onnx(model, path, example, dynamic_batch=False)
    return Exported(model, example, report)


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A model with two inputs, exported from a tuple."""
    path = tmp_path_factory.mktemp("two") / "two.onnx"
    example = (samples(2, 4), samples(2, 4, seed=2))
    return export_onnx(Difference(), path, example)


def test_the_saved_graph_accepts_any_batch_size(exported: Exported) -> None:
    """The first dimension of the inputs and outputs in the file has a name and no value."""
    graph = onnx.load(exported.report.path).graph
    sizes = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    assert [size.dim_param for size in sizes] == ["batch", "batch"]
    assert not any(size.HasField("dim_value") for size in sizes)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_file_agrees_with_the_model_at_other_batch_sizes(exported: Exported, rows: int) -> None:
    """New samples give the same outputs as the model in eval mode."""
    inputs = samples(rows, 4, seed=7)
    (outputs,) = run(exported.report.path, inputs)
    _assert_equal(outputs, outputs_of(exported.model, inputs))


def test_the_file_is_self_contained(exported: Exported) -> None:
    """The folder contains only this file, which ONNX Runtime can load from memory."""
    assert [entry.name for entry in exported.report.path.parent.iterdir()] == ["mlp.onnx"]
    content = exported.report.path.read_bytes()
    graph = onnx.load_from_string(content).graph
    assert not any(weights.external_data for weights in graph.initializer)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"inputs": exported.example.numpy()})
    _assert_equal(outputs, outputs_of(exported.model, exported.example))


def test_the_report_describes_the_file(exported: Exported) -> None:
    """Size, opset, inputs and outputs of the report are those of the file."""
    report = exported.report
    assert report.size == report.path.stat().st_size
    assert report.opset_version == onnx.load(report.path).opset_import[0].version
    assert report.inputs == (TensorInfo("inputs", "float32", ("batch", 4)),)
    assert report.outputs == (TensorInfo("output", "float32", ("batch", 3)),)


def test_the_file_is_verified_at_several_batch_sizes(exported: Exported) -> None:
    """The batch sizes 1, 2 and 7 are compared."""
    verification = exported.report.verification
    assert verification is not None
    assert verification.status == "verified"
    assert verification.batch_sizes == (1, 2, 7)


def test_dropout_is_disabled_in_the_file(exported: Exported) -> None:
    """A model in train mode is exported in eval mode."""
    operators = {node.op_type for node in onnx.load(exported.report.path).graph.node}
    assert "Dropout" not in operators
    assert "Relu" in operators


def test_a_fixed_batch_is_fixed_in_the_file(fixed: Exported) -> None:
    """With `dynamic_batch=False`, the file accepts only the batch size of the example."""
    assert fixed.report.inputs[0].shape == (1, 4)
    assert fixed.report.outputs[0].shape == (1, 3)
    (outputs,) = run(fixed.report.path, fixed.example)
    _assert_equal(outputs, outputs_of(fixed.model, fixed.example))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(fixed.report.path, samples(3, 4))


def test_a_fixed_batch_of_one_is_verified(fixed: Exported) -> None:
    """Several single samples are compared, because one sample has no spread."""
    assert fixed.report.verification is not None
    assert fixed.report.verification.status == "verified"
    assert fixed.report.verification.batch_sizes == (1, 1)


@pytest.mark.slow
def test_a_fixed_batch_is_verified_on_more_samples(tmp_path: Path) -> None:
    """`sample_inputs` are split into batches of the fixed size."""
    report = export_onnx(
        linear(),
        tmp_path / "fixed.onnx",
        samples(2, 4),
        dynamic_batch=False,
        sample_inputs=samples(9, 4),
    )
    assert report.verification is not None
    assert report.verification.batch_sizes == (2, 2, 2, 2, 2)  # Nine samples, two at a time.


@pytest.mark.slow
def test_inputs_of_different_first_sizes_are_exported_with_a_fixed_batch(tmp_path: Path) -> None:
    """A recurrent model has inputs (time, batch, ...) and a state (layers, batch, ...)."""
    model = seeded(lambda: nn.GRU(3, 4))
    example = (samples(5, 2, 3), samples(1, 2, 4))
    report = export_onnx(model, tmp_path / "gru.onnx", example, dynamic_batch=False)
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert [info.shape for info in report.inputs] == [(5, 2, 3), (1, 2, 4)]


def test_an_example_of_one_sample_has_a_dynamic_batch(tmp_path: Path) -> None:
    """A batch size of 1 is not exported as a constant."""
    model = linear()
    report = export_onnx(model, tmp_path / "one.onnx", samples(1, 4))
    assert report.inputs[0].shape == ("batch", 4)
    inputs = samples(5, 4, seed=7)
    _assert_equal(run(report.path, inputs)[0], outputs_of(model, inputs))


def test_several_inputs_are_named_after_the_arguments(two_inputs: ExportReport) -> None:
    """Each tensor of a tuple becomes an input, and all have the same dynamic batch."""
    assert two_inputs.inputs == (
        TensorInfo("left", "float32", ("batch", 4)),
        TensorInfo("right", "float32", ("batch", 4)),
    )


def test_several_inputs_are_not_confused(two_inputs: ExportReport) -> None:
    """Each input of the file corresponds to the argument of the same name."""
    left, right = samples(5, 4, seed=7), samples(5, 4, seed=8)
    (outputs,) = run(two_inputs.path, left=left, right=right)
    _assert_equal(outputs, left - 2 * right)


def test_a_dict_passes_inputs_by_name(tmp_path: Path) -> None:
    """The dict may have another order than the arguments."""
    example = {"right": samples(2, 4), "left": samples(2, 4, seed=2)}
    report = export_onnx(Difference(), tmp_path / "dict.onnx", example)
    left, right = samples(5, 4, seed=7), samples(5, 4, seed=8)
    (outputs,) = run(report.path, left=left, right=right)
    _assert_equal(outputs, left - 2 * right)


@pytest.mark.slow
def test_custom_names_are_used(tmp_path: Path) -> None:
    """Inputs and outputs have the names that the user passed, in their order."""
    report = export_onnx(
        Difference(),
        tmp_path / "named.onnx",
        (samples(2, 4), samples(2, 4, seed=2)),
        input_names=["minuend", "subtrahend"],
        output_names=["rest"],
    )
    assert [info.name for info in report.inputs] == ["minuend", "subtrahend"]
    assert [info.name for info in report.outputs] == ["rest"]
    minuend, subtrahend = samples(3, 4, seed=7), samples(3, 4, seed=8)
    (outputs,) = run(report.path, minuend=minuend, subtrahend=subtrahend)
    _assert_equal(outputs, minuend - 2 * subtrahend)


@pytest.mark.slow
def test_keyword_arguments_have_the_names_of_the_dict(tmp_path: Path) -> None:
    """The inputs of a forward with `**kwargs` have the names of the dict."""

    class Named(nn.Module):
        def forward(self, **tensors: Tensor) -> Tensor:
            return tensors["a"] - 2 * tensors["b"]

    report = export_onnx(
        Named(), tmp_path / "kwargs.onnx", {"a": samples(2, 4), "b": samples(2, 4, seed=2)}
    )
    assert [info.name for info in report.inputs] == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed batch", "dynamic batch"])
def test_positional_arguments_without_names_are_numbered(
    tmp_path: Path, dynamic_batch: bool
) -> None:
    """The inputs of a forward with `*args` are called `input`, `input_1`, and so on."""

    class Unnamed(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0] - 2 * tensors[1]

    example = (samples(2, 4), samples(2, 4, seed=2))
    report = export_onnx(Unnamed(), tmp_path / "args.onnx", example, dynamic_batch=dynamic_batch)
    assert [info.name for info in report.inputs] == ["input", "input_1"]
    assert report.inputs[1].shape == ("batch" if dynamic_batch else 2, 4)
    assert report.verification is not None
    assert report.verification.status == "verified"


def test_nested_outputs_are_numbered_in_order(tmp_path: Path) -> None:
    """The tensors of nested dicts and tuples become separate outputs."""

    def structure(x: Tensor) -> object:
        return {"zeta": x + 1, "alpha": (x * 2, x.sum(1))}

    report = export_onnx(Function(structure), tmp_path / "outputs.onnx", samples(2, 4))
    assert [info.name for info in report.outputs] == ["output_0", "output_1", "output_2"]
    inputs = samples(5, 4, seed=7)
    outputs = run(report.path, inputs)
    for output, expected in zip(outputs, (inputs + 1, inputs * 2, inputs.sum(1)), strict=True):
        _assert_equal(output, expected)


@pytest.mark.slow
def test_an_output_without_dimensions_is_exported(tmp_path: Path) -> None:
    """The output may be one number for the whole batch."""
    report = export_onnx(Function(Tensor.mean), tmp_path / "mean.onnx", samples(2, 4))
    assert report.outputs == (TensorInfo("output", "float32", ()),)
    assert report.verification is not None
    assert report.verification.status == "verified"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integer_inputs_are_exported(tmp_path: Path, dtype: torch.dtype) -> None:
    """Inputs keep their dtype, and generated samples stay in the range of the example."""
    tokens = torch.tensor([[0, 9, 3], [4, 4, 7]], dtype=dtype)
    model = seeded(Tokens)
    report = export_onnx(model, tmp_path / "tokens.onnx", tokens)
    assert report.inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert report.verification is not None
    assert report.verification.status == "verified"
    inputs = torch.tensor([[1, 2, 3]], dtype=dtype)
    _assert_equal(run(report.path, inputs)[0], outputs_of(model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        # Half precision has three decimal digits, and the two engines differ in the last one.
        (torch.float16, 1e-2),
    ],
)
def test_other_precisions_are_exported(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """The file of a half or double precision model has the same precision."""
    model = linear().to(dtype)
    example = samples(2, 4).to(dtype)
    report = export_onnx(model, tmp_path / "model.onnx", example, tolerance=tolerance)
    assert report.inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert report.verification is not None
    assert report.verification.status == "verified"


@pytest.mark.slow
def test_without_verification_nothing_is_compared(tmp_path: Path) -> None:
    """With `verify=False` a file is kept even if it differs from the model."""
    report = export_onnx(
        seeded(Deceiving), tmp_path / "unverified.onnx", samples(2, 4), verify=False
    )
    assert report.verification is None
    assert report.path.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("version", [18, 21])
def test_the_requested_opset_is_used(tmp_path: Path, version: int) -> None:
    """The file and the report have the requested opset version."""
    model = linear()
    report = export_onnx(model, tmp_path / "o.onnx", samples(2, 4), opset_version=version)
    assert report.opset_version == version
    assert onnx.load(report.path).opset_import[0].version == version


@pytest.mark.slow
def test_missing_folders_are_created(tmp_path: Path) -> None:
    """Folders in the path are created if they do not exist."""
    model = linear()
    path = tmp_path / "a" / "b" / "model.onnx"
    assert export_onnx(model, str(path), samples(2, 4)).path == path
    assert path.is_file()


@pytest.mark.slow
def test_a_frozen_model_with_a_new_head_is_exported(tmp_path: Path) -> None:
    """The hooks that keep the frozen part in eval mode remain."""
    model = build_mlp(4, [8], 3, normalization=nn.BatchNorm1d, dropout=0.5, seed=0)
    freeze_and_replace_head(model, head=seeded(lambda: nn.Linear(8, 5)))
    before = snapshot(model.train())
    report = export_onnx(model, tmp_path / "frozen.onnx", samples(2, 4))
    assert report.outputs[0].shape == ("batch", 5)
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert changed_since(before, model) == []


def test_a_success_replaces_the_previous_file(tmp_path: Path) -> None:
    """The new file replaces the previous one, and no other file remains."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the previous file")
    report = export_onnx(linear(), path, samples(2, 4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert path.stat().st_size == report.size
    onnx.checker.check_model(path)


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "agrees"), [(1.0, True), (1e-3, False)])
def test_the_tolerance_decides(tmp_path: Path, tolerance: float, agrees: bool) -> None:
    """The same difference passes a wide tolerance and fails a narrow one."""
    model = seeded(lambda: Deceiving(lambda outputs: outputs * 1.01))
    if agrees:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 4), tolerance=tolerance)
    else:
        with pytest.raises(ExportMismatchError):
            export_onnx(model, tmp_path / "model.onnx", samples(2, 4), tolerance=tolerance)
    assert (tmp_path / "model.onnx").exists() is agrees


@pytest.mark.slow
def test_samples_are_used_for_the_comparison(tmp_path: Path) -> None:
    """A difference that occurs only on real samples is found."""
    # The file clamps outputs to (-3, 3). Only the real samples exceed this range.
    model = seeded(lambda: Deceiving(lambda outputs: outputs.clamp(-3, 3)))
    example, real = 0.1 * samples(2, 4), 100 * samples(8, 4)
    export_onnx(model, tmp_path / "example.onnx", example)
    with pytest.raises(ExportMismatchError):
        export_onnx(model, tmp_path / "samples.onnx", example, sample_inputs=real)


@pytest.mark.slow
def test_samples_make_a_comparison_conclusive(tmp_path: Path) -> None:
    """A constant example is inconclusive, but samples that vary are not."""
    example, real = torch.zeros(2, 3, dtype=torch.int64), torch.arange(30).reshape(10, 3) % 10
    report = export_onnx(seeded(Tokens), tmp_path / "tokens.onnx", example, sample_inputs=real)
    assert report.verification is not None
    assert report.verification.status == "verified"


def test_outputs_that_do_not_vary_are_inconclusive_with_one_warning(tmp_path: Path) -> None:
    """The file is kept, and one warning at the caller's line names it."""
    path = tmp_path / "constant.onnx"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = export_onnx(Function(lambda x: x * 0 + 1), path, samples(2, 4))
    assert report.verification is not None
    assert report.verification.status == "inconclusive"
    assert path.is_file()
    assert [warning.category for warning in caught] == [UserWarning]
    assert str(path) in str(caught[0].message)
    assert Path(caught[0].filename).name == "test_export.py"


@pytest.mark.slow
def test_a_convolutional_model_is_exported(tmp_path: Path) -> None:
    """The file agrees with a model of convolution, BatchNorm and pooling."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    ).train()
    model(samples(8, 1, 6, 6) * 3 + 1)
    report = export_onnx(model, tmp_path / "conv.onnx", samples(2, 1, 6, 6))
    inputs = samples(5, 1, 6, 6, seed=7)
    _assert_equal(run(report.path, inputs)[0], outputs_of(model, inputs))


@pytest.mark.slow
def test_a_boolean_mask_is_exported(tmp_path: Path) -> None:
    """Inputs may have the dtype bool."""

    class Masked(nn.Module):
        def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
            return functional.softmax(inputs.masked_fill(mask, -1e4), dim=1)

    mask = torch.tensor([[True, False, False, False], [False, False, True, False]])
    report = export_onnx(Masked(), tmp_path / "masked.onnx", (samples(2, 4), mask))
    assert [info.dtype for info in report.inputs] == ["float32", "bool"]
    outputs = run(report.path, samples(2, 4), mask)[0]
    assert np.array_equal(outputs < 1e-9, mask.numpy())
