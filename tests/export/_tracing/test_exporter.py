"""The exporter prints nothing, changes nothing, and writes no local paths into the file."""

from __future__ import annotations

import contextlib
import gc
import getpass
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import finetunelib
from finetunelib import export_onnx
from finetunelib.errors import ExportError, ExportMismatchError, FinetuneLibError
from finetunelib.export._tracing.errors import explain
from support_models import Branching, Deceiving, Function, linear, samples, seeded
from support_untouched import changed_since, snapshot


class Marked(nn.Module):
    """A model whose source lines are searched for in the exported file."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs).tanh()  # this-line-stays-at-home
        return outputs


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The exported file of a model that is defined in this module."""
    path = tmp_path_factory.mktemp("marked") / "marked.onnx"
    return export_onnx(seeded(Marked), path, samples(2, 4)).path.read_bytes()


@pytest.fixture(scope="module")
def branching_error(tmp_path_factory: pytest.TempPathFactory) -> ExportError:
    """The error for a model that the exporter refuses."""
    path = tmp_path_factory.mktemp("branching") / "branching.onnx"
    with pytest.raises(ExportError) as caught:
        export_onnx(seeded(Branching), path, samples(2, 4))
    return caught.value


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(str(Path.cwd()), id="working folder"),
        pytest.param(str(Path.home()), id="home folder"),
        pytest.param(str(Path(__file__).parent), id="folder of the model's source"),
        pytest.param(Path(__file__).name, id="file of the model's source"),
        pytest.param("this-line-stays-at-home", id="comment in the model's source"),
        pytest.param("self.layer(inputs)", id="line of the model's source"),
        pytest.param(str(Path(torch.__file__).parent), id="folder of torch"),
        pytest.param(f"/{getpass.getuser()}/", id="user's name in a path"),
        pytest.param(socket.gethostname(), id="host"),
        pytest.param(str(Path(finetunelib.__file__).parent), id="folder of the library"),
    ],
)
def test_the_file_contains_no_local_information(marked: bytes, secret: str) -> None:
    """The file contains neither local paths nor lines of source code."""
    assert len(secret) > 1
    assert secret.encode() not in marked


def test_the_nodes_contain_no_local_information(marked: bytes) -> None:
    """The keys under which the exporter stores stack traces are removed too."""
    nodes = onnx.load_from_string(marked).graph.node
    keys = {entry.key for node in nodes for entry in node.metadata_props}
    assert not keys & {"pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"}
    assert not any(node.doc_string for node in nodes)


def test_the_names_of_modules_stay_in_the_nodes(marked: bytes) -> None:
    """Annotations that name the module of a node are kept."""
    nodes = onnx.load_from_string(marked).graph.node
    notes = [entry.value for node in nodes for entry in node.metadata_props]
    assert "layer" in notes


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(Marked, None, id="success"),
        pytest.param(Branching, ExportError, id="exporter fails"),
        pytest.param(Deceiving, ExportMismatchError, id="file differs"),
    ],
)
def test_everything_is_left_unchanged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[], nn.Module],
    error: type[ExportError] | None,
) -> None:
    """Modes, weights, buffers, gradients, random states and loggers are the same afterwards."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), seeded(make)).train()
    # Modes and gradients are mixed, as in fine-tuning.
    model[0].eval()
    next(model[2].parameters()).requires_grad_(False)
    model[0].weight.grad = torch.ones(4)
    caplog.set_level("INFO", logger="torch.onnx")
    before = snapshot(model)
    if error is None:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 4))
    else:
        with pytest.raises(error):
            export_onnx(model, tmp_path / "model.onnx", samples(2, 4))
    assert changed_since(before, model) == []
    assert {module.training for module in model.modules()} == {True, False}


@pytest.mark.slow
def test_the_example_is_left_unchanged(tmp_path: Path) -> None:
    """The example is not modified and gets no gradient."""
    example = samples(2, 4).requires_grad_()
    export_onnx(linear(), tmp_path / "model.onnx", example)
    assert torch.equal(example, samples(2, 4))
    assert example.grad is None


@pytest.mark.parametrize("make", [Marked, Branching], ids=["success", "failure"])
def test_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], nn.Module]
) -> None:
    """Neither a success nor a failure writes to the terminal."""
    fails = make is Branching
    with pytest.raises(ExportError) if fails else contextlib.nullcontext():
        export_onnx(seeded(make), tmp_path / "model.onnx", samples(2, 4))
    assert capfd.readouterr() == ("", "")


_PROGRAM = """
import sys, torch
from torch import nn
from finetunelib import export_onnx
from finetunelib.errors import ExportError

class Model(nn.Module):
    def __init__(self, branching):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.branching = branching

    def forward(self, inputs):
        if self.branching and inputs.sum() > 0:
            return -self.layer(inputs)
        return self.layer(inputs)

failed = []
for branching, opset in ((False, None), (False, 17), (True, None)):
    try:
        export_onnx(Model(branching), sys.argv[1], torch.randn(2, 4), opset_version=opset)
    except ExportError:
        failed.append((branching, opset))
sys.exit(failed != [(True, None)])
"""


@pytest.mark.slow
def test_a_program_that_exports_is_silent(tmp_path: Path) -> None:
    """A new process without configured logging prints nothing, also when an export fails."""
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failure_of_the_exporter_names_its_cause(branching_error: ExportError) -> None:
    """The message contains the original error of the exporter."""
    assert "data-dependent" in str(branching_error)
    assert branching_error.__cause__ is not None


def test_a_failure_of_the_exporter_has_three_lines(branching_error: ExportError) -> None:
    """They contain the module and its line, the cause, and a solution."""
    where, cause, way_around = str(branching_error).splitlines()
    assert "Branching" in where
    assert "if inputs.sum() > 0" in where
    assert cause.startswith("Cause: GuardOnDataDependentSymNode")
    assert "torch.where" in way_around
    assert "\x1b" not in str(branching_error)


def test_an_export_error_has_both_base_classes(branching_error: ExportError) -> None:
    """A failed export can be caught as `FinetuneLibError` or `RuntimeError`."""
    assert isinstance(branching_error, FinetuneLibError)
    assert isinstance(branching_error, RuntimeError)


@pytest.mark.slow
def test_a_batch_that_a_layer_fixes_is_an_error(tmp_path: Path) -> None:
    """If the exporter itself finds the fixed batch, the error names the size."""
    model = nn.Sequential(Function(lambda x: x.reshape(2, -1)), linear())
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "baked.onnx", samples(2, 4))
    assert re.search(r"\b2\b", str(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_export_of_a_large_model_reports_its_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line is written to stderr; for small models, nothing is."""
    monkeypatch.setattr("finetunelib.export._export._LARGE", 0)
    path = export_onnx(seeded(Marked), tmp_path / "m.onnx", samples(2, 4)).path
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"Exported {path} in ")


@pytest.mark.slow
def test_a_module_that_fixes_the_batch_has_its_name_in_the_model(tmp_path: Path) -> None:
    """A softmax around the model does not change the name."""
    model = nn.Sequential(linear(), nn.Sequential(Function(lambda x: x.reshape(2, -1) + 1)))
    with pytest.raises(ExportError, match=r"`1\.0` \(Function\)"):
        export_onnx(model, tmp_path / "m.onnx", samples(2, 4), softmax=True)


def test_the_error_suggests_eager_attention() -> None:
    """For an unknown error, a model with selectable attention gets this hint."""
    model = nn.Sequential(linear())
    model.set_attn_implementation = lambda name: None  # type: ignore[assignment]
    message = explain(RuntimeError("Cannot view a tensor with these strides"), model, "")
    assert 'set_attn_implementation("eager")' in message
    assert len(message.splitlines()) == 3


def test_garbage_is_collected_again_after_a_failure(tmp_path: Path) -> None:
    """It is not collected while a model is traced, and stays off if the caller has disabled it."""
    seen = []

    class Watching(nn.Module):
        """Notes whether garbage is collected, and cannot be exported."""

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(gc.isenabled())
            return inputs * float(inputs.sum())

    for enabled in (True, False):
        seen.clear()
        if not enabled:
            gc.disable()
        try:
            with pytest.raises(ExportError):
                export_onnx(Watching(), tmp_path / "watching.onnx", samples(2, 4))
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
        assert False in seen
