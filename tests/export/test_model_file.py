"""Models are written atomically, as one file or as two."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from torch import nn

from finetunelib import export_onnx
from finetunelib.export import ExportReport, load_onnx_metadata
from finetunelib.export._model_file import atomic_model
from support_models import samples, seeded
from support_onnx import run


@pytest.fixture
def in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every model as two files, as if it were too large for one."""
    monkeypatch.setattr("finetunelib.export._export.LARGEST_FILE", 0)


def export(path: Path) -> ExportReport:
    """Export a small model whose weight is large enough to be stored externally."""
    return export_onnx(seeded(lambda: nn.Linear(40, 30)), path, samples(2, 40))


def write_pair(path: Path, text: bytes) -> None:
    """Write a graph and its weights through the library."""
    with atomic_model(path, two_files=True) as temporary:
        temporary.write_bytes(text)
        temporary.with_name(f"{temporary.name}.data").write_bytes(text)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.mark.usefixtures("in_two")
def test_a_large_model_is_two_verified_files(tmp_path: Path) -> None:
    """The report names both files, ONNX Runtime loads them, and the metadata is complete."""
    report = export(tmp_path / "m.onnx")
    assert set(contents(tmp_path)) == {"m.onnx", "m.onnx.data"}
    assert report.data_path == tmp_path / "m.onnx.data"
    assert report.size == sum(len(content) for content in contents(tmp_path).values())
    assert "m.onnx.data" in str(report)
    assert report.verification is not None
    assert report.verification.status == "verified"
    assert load_onnx_metadata(report.path)["weights_sha256"] is not None
    inputs = samples(3, 40)
    assert run(report.path, inputs)[0].shape == (3, 30)


@pytest.mark.usefixtures("in_two")
def test_the_pair_can_be_moved_together(tmp_path: Path) -> None:
    """The graph refers to its weights by a file name in the same folder, without a local path."""
    export(tmp_path / "m.onnx")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / name).rename(folder / name)
    assert str(tmp_path).encode() not in (folder / "m.onnx").read_bytes()
    onnxruntime.InferenceSession(str(folder / "m.onnx"))


def test_a_small_model_replaces_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights file of the previous graph is deleted."""
    with monkeypatch.context() as context:
        context.setattr("finetunelib.export._export.LARGEST_FILE", 0)
        export(tmp_path / "m.onnx")
    report = export(tmp_path / "m.onnx")
    assert set(contents(tmp_path)) == {"m.onnx"}
    assert report.data_path is None


def test_an_unrelated_data_file_is_kept(tmp_path: Path) -> None:
    """A file with that name is kept if the previous graph did not refer to it."""
    export(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    export(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"mine"


def test_a_pair_replaces_a_pair(tmp_path: Path) -> None:
    """Both files are replaced, and no other file remains."""
    write_pair(tmp_path / "m.onnx", b"old")
    write_pair(tmp_path / "m.onnx", b"new")
    assert contents(tmp_path) == {"m.onnx": b"new", "m.onnx.data": b"new"}


@pytest.mark.parametrize("step", range(4))
def test_a_graph_never_has_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each rename leaves the old pair, the new pair or no graph, and errors are undone."""
    write_pair(tmp_path / "m.onnx", b"old")
    seen = []
    rename = Path.rename

    def watched(source: Path, target: Path) -> Path:
        files = {n: c for n, c in visible(tmp_path).items() if n.startswith("m.")}
        seen.append(files)
        if len(seen) == step + 1:
            raise OSError(28, "No space left on device")
        return rename(source, target)

    def visible(folder: Path) -> dict[str, bytes]:
        return {e.name: e.read_bytes() for e in folder.iterdir() if e.is_file()}

    monkeypatch.setattr(Path, "rename", watched)
    with pytest.raises(OSError, match="No space left"):
        write_pair(tmp_path / "m.onnx", b"new")
    assert contents(tmp_path) == {"m.onnx": b"old", "m.onnx.data": b"old"}
    assert len(seen) > step
    for files in seen:
        if "m.onnx" in files:
            assert files["m.onnx"] == files["m.onnx.data"]
