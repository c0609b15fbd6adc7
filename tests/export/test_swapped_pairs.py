"""Pairs of files, the graph and its weights, that fail to be put in the place of former ones."""

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
    """The program of the model, once the first export has recorded it."""
    return []


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch, programs: list[Any]) -> None:
    """Record the exporter's program once, since its making takes the most time of an export."""

    def trace(*args: Any, **options: Any) -> Any:
        if not programs:
            programs.append(exporter.trace(*args, **options))
        return programs[0]

    monkeypatch.setattr(_write, "trace", trace)
    monkeypatch.setattr(_write, "annotate", lambda *_: None)  # Its marks are in the program.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that is exported to."""
    made = tmp_path / "destination"
    made.mkdir()
    return made


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, empty."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    # The compiler's cache, which torch makes there when it first traces, is torch's own.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return made


def _fails_at(number: int, error: BaseException, *, after: bool = False) -> Callable[..., Any]:
    """Return a rename that fails the so many-th time, and once: before it acts, or just after."""
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
def test_a_swap_that_fails_puts_the_former_pair_back(
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
    """Whichever of the four renames fails, and also when Ctrl-C comes right after one."""
    path = _former_pair(folder, monkeypatch)
    watch = Watch(model, folder, temporary)
    monkeypatch.setattr(Path, "rename", _fails_at(step, error, after=after))
    with pytest.raises(raised):
        export_onnx(model, path, samples(3, 4))
    watch.check(capfd)


@pytest.mark.parametrize("number", [1, 2])
def test_a_rename_that_works_no_more_loses_no_former_file(
    number: int, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the former pair cannot be put back, it is kept in the hidden folder and named."""
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


def test_former_weights_that_cannot_be_deleted_fail_no_export(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in its place by then."""
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
