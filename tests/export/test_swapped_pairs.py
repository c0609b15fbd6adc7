"""Errors while a pair of files, graph and weights, replaces a previous pair."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetunelib import export_onnx
from finetunelib.errors import PathNotWritableError
from finetunelib.export import _export, _write
from finetunelib.export._tracing import exporter
from support_failures import Model, Watch, full, recorded_model
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


def _fails_at(number: int, error: BaseException, *, after: bool = False) -> Callable[..., Any]:
    """Return a rename that raises an error in one call, either before or after it renames."""
    real, calls = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] != number:
            return real(self, target)
        if after:
            real(self, target)
        raise error

    return rename


@pytest.mark.parametrize("after", [False, True], ids=["before", "just after"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(full(), PathNotWritableError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failed_swap_restores_the_previous_pair(
    error: BaseException,
    raised: type[BaseException],
    step: int,
    after: bool,
    model: Model,
    folder: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Any of the four renames may fail or be interrupted by Ctrl-C."""
    path = _former_pair(folder, monkeypatch)
    watch = Watch(model, folder, temporary)
    monkeypatch.setattr(Path, "rename", _fails_at(step, error, after=after))
    with pytest.raises(raised):
        export_onnx(model, path, samples(3, 4))
    watch.check(capfd)


@pytest.mark.parametrize("number", [1, 2])
def test_no_previous_file_is_lost_if_renames_keep_failing(
    number: int, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A previous pair that cannot be restored is kept, and the error names its folder."""
    path = _former_pair(folder, monkeypatch)
    real, calls = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] > number:
            raise full()
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PathNotWritableError) as caught:
        export_onnx(model, path, samples(3, 4))
    left = {e.name: e for e in folder.rglob("*") if e.is_file() and e.name.startswith("previous")}
    assert left["previous.onnx"].read_bytes() == b"former graph"
    assert str(left["previous.onnx"].parent) in str(caught.value)
    weights = left.get("previous.data", folder / "model.onnx.data")
    assert weights.read_bytes() == b"former weights"


def test_an_export_succeeds_if_previous_weights_cannot_be_deleted(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has already been written."""
    with monkeypatch.context() as patch:
        export_onnx(model, _former_pair(folder, patch), samples(3, 4))
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".data":
            raise PermissionError(errno.EACCES, "Permission denied")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    report = export_onnx(model, folder / "model.onnx", samples(3, 4))
    assert report.data_path is None
    assert report.size == (folder / "model.onnx").stat().st_size


def _former_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "model.onnx").write_bytes(b"former graph")
    (folder / "model.onnx.data").write_bytes(b"former weights")
    monkeypatch.setattr(_export, "LARGEST_FILE", 8)
    return folder / "model.onnx"
