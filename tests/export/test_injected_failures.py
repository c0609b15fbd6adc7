"""An export that fails at any step leaves everything unchanged."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from finetunelib import export_onnx
from finetunelib.errors import (
    ExportMismatchError,
    FreezeError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.export import _export, _write
from finetunelib.export._tracing import exporter
from finetunelib.finetuning import Certificate
from support_failures import FAILURES, Model, Watch, content, full, raising, recorded_model, running
from support_models import samples


@pytest.fixture
def model() -> Model:
    """A model in train mode, partly frozen, with gradients and a hook."""
    return recorded_model()


@pytest.fixture(scope="module")
def programs() -> list[Any]:
    """The exported program of the model, empty until the first export."""
    return []


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch, programs: list[Any]) -> None:
    """Trace the model only once, because tracing takes most of the time of an export."""

    def trace(*args: Any, **options: Any) -> Any:
        if not programs:
            programs.append(exporter.trace(*args, **options))
        return programs[0]

    monkeypatch.setattr(_write, "trace", trace)
    monkeypatch.setattr(_write, "annotate", lambda *_: None)  # The program is already annotated.


def _on_call(number: int, act: Callable[[], object]) -> Callable[[Model], None]:
    """Let the forward of the model call a function from call `number` on."""

    def prepare(model: Model) -> None:
        model.on_call = lambda calls: act() if calls >= number else None

    return prepare


def _bad_parameter() -> NoReturn:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that is exported to."""
    made = tmp_path / "destination"
    made.mkdir()
    return made


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, used as the folder of the system for temporary files."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    # PyTorch creates the compiler's cache when it traces for the first time.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return made


@pytest.fixture(params=["nothing", "a file", "a pair"])
def path(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the export: a new path, a file, or a pair, which is replaced by a pair."""
    if request.param != "nothing":
        (folder / "model.onnx").write_bytes(b"former graph")
    if request.param == "a pair":
        (folder / "model.onnx.data").write_bytes(b"former weights")
        monkeypatch.setattr(_export, "LARGEST_FILE", 8)
    return folder / "model.onnx"


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_everything_unchanged(
    failure: str,
    model: Model,
    path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Folders, model and process are the same after each failure."""
    place, fault, raised = FAILURES[failure]
    pair = (path.parent / "model.onnx.data").exists()
    if pair and place in {"pathlib.Path.replace", "tempfile.mkstemp"}:
        place = {
            "pathlib.Path.replace": "pathlib.Path.rename",
            "tempfile.mkstemp": "tempfile.mkdtemp",
        }[place]
    if place == "torch.onnx.ONNXProgram.save" and not pair:
        place = "finetunelib.export._write.write_in_one_file"
    watch = Watch(model, path.parent, temporary)
    if place == "torch.onnx.export":
        monkeypatch.setattr(_write, "trace", exporter.trace)
    monkeypatch.setattr(place, fault)
    with pytest.raises(raised):
        export_onnx(model, path, samples(3, 4), self_test=True)
    monkeypatch.undo()
    watch.check(capfd)


@pytest.mark.parametrize(
    ("prepare", "raised"),
    [
        pytest.param(_on_call(1, _bad_parameter), InvalidInputError, id="first call raises"),
        pytest.param(_on_call(2, _bad_parameter), InvalidInputError, id="second call raises"),
        pytest.param(_on_call(1, _interrupt), KeyboardInterrupt, id="first call interrupted"),
        pytest.param(_on_call(3, _interrupt), KeyboardInterrupt, id="comparison interrupted"),
    ],
)
def test_a_failing_forward_leaves_everything_unchanged(
    prepare: Callable[[Model], None],
    raised: type[BaseException],
    model: Model,
    path: Path,
    temporary: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Buffers and attributes that the forward changed are restored."""
    prepare(model)
    watch = Watch(model, path.parent, temporary)
    with pytest.raises(raised):
        export_onnx(model, path, samples(3, 4))
    watch.check(capfd)


def _strange(model: Model) -> None:
    """Let the forward change modules, buffers, hooks and random states, and then fail."""

    def act() -> NoReturn:
        model.extra = nn.Linear(2, 2)
        model.register_buffer("more", torch.ones(2))
        model.layers[0].register_forward_pre_hook(lambda *_: None)
        model.head.train()
        model.get_buffer("layers.1.running_mean").add_(1)
        model.calls = torch.ones(())
        torch.rand(3)
        random.random()
        torch.set_grad_enabled(True)
        raise ValueError("enough")

    model.on_call = lambda number: act() if number == 2 else None


def test_a_forward_with_side_effects_leaves_everything_unchanged(
    model: Model, path: Path, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Modules, buffers, hooks, modes and random states that the forward changed are restored."""
    _strange(model)
    watch = Watch(model, path.parent, temporary)
    with pytest.raises(InvalidInputError):
        export_onnx(model, path, samples(3, 4))
    watch.check(capfd)


@pytest.mark.parametrize(
    ("options", "raised"),
    [
        pytest.param(
            {"certificate": Certificate(digests={"head.bias": "0" * 64}, loaded=(), moved=())},
            FreezeError,
            id="certificate of other values",
        ),
        pytest.param({"metadata": {"labels": "mine"}}, InvalidArgumentError, id="reserved key"),
        pytest.param(
            {"metadata": {"version": 3}}, InvalidTypeError, id="metadata that is not text"
        ),
        pytest.param({"sample_inputs": samples(3, 5)}, InvalidInputError, id="samples"),
        pytest.param({"labels": ["a", "b"]}, InvalidArgumentError, id="labels"),
        pytest.param({"softmax": 1, "output_names": ["a", "b"]}, InvalidArgumentError, id="names"),
        pytest.param({"dynamic_shapes": {"x": {1: "n"}}}, InvalidArgumentError, id="shapes"),
        pytest.param({"preprocessing": ([0.5], [0.0])}, InvalidArgumentError, id="preprocessing"),
        pytest.param({"tolerance": 0.0}, InvalidArgumentError, id="tolerance"),
    ],
)
def test_an_invalid_argument_leaves_everything_unchanged(
    options: dict[str, Any],
    raised: type[Exception],
    model: Model,
    path: Path,
    temporary: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The error is raised without changes to folders, model and process."""
    watch = Watch(model, path.parent, temporary)
    with pytest.raises(raised):
        export_onnx(model, path, samples(3, 4), **options)
    watch.check(capfd)


def test_an_inconclusive_comparison_is_not_a_failure(
    model: Model, path: Path, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file is kept with a warning; model and process are unchanged."""
    watch = Watch(model, path.parent, temporary)
    batch = samples(1, 4).repeat(3, 1)
    with pytest.warns(UserWarning, match="sample_inputs"):
        report = export_onnx(model, path, batch, sample_inputs=batch)
    assert report.verification is not None
    assert report.verification.status == "inconclusive"
    assert onnx.load(path).producer_name == "pytorch"
    path.unlink()
    if report.data_path is not None:
        report.data_path.unlink()
    watch.forget_folder()
    watch.check(capfd)


def test_a_mismatch_that_cannot_be_kept_is_reported_as_a_mismatch(
    model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full, the error reports both the mismatch and the full disk."""
    before = content(path.parent)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", running(lambda outputs: [o + 1 for o in outputs])
    )
    monkeypatch.setattr("shutil.copyfile", raising(full()))
    with pytest.raises(ExportMismatchError) as caught:
        export_onnx(model, path, samples(3, 4), keep_mismatch=True)
    assert "No space left" in str(caught.value)
    assert content(path.parent) == before
