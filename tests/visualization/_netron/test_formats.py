"""The files that the viewer accepts, and the errors for others."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn

from finetunelib.errors import CorruptFileError, FileMissingError, UnsupportedFileError
from finetunelib.finetuning._pickles import scan
from finetunelib.visualization._netron.formats import check_viewable
from support_onnx import write_mlp


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A small ONNX model."""
    return write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3))


@pytest.fixture
def safetensors_file(tmp_path: Path) -> Path:
    """A small safetensors file."""
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, path)
    return path


@pytest.fixture
def pth_file(tmp_path: Path) -> Path:
    """A small state dict in PyTorch's archive format."""
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3, 4)}, path)
    return path


def _assert_corrupt(path: Path) -> None:
    with pytest.raises(CorruptFileError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)


def _write_safetensors(path: Path, header: bytes, *, length: int | None = None) -> Path:
    claimed = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", claimed) + header + bytes(16))
    return path


@pytest.mark.parametrize("fixture", ["onnx_file", "safetensors_file", "pth_file"])
def test_intact_file_is_accepted(request: pytest.FixtureRequest, fixture: str) -> None:
    """The paths of ONNX, safetensors and PyTorch files are returned."""
    path: Path = request.getfixturevalue(fixture)
    assert check_viewable(str(path)) == path


def _write_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return path


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pt2", "model/models/model.json"),
        (".pt2", "serialized_exported_program.json"),
        (".pt2", "model/archive_format"),
        (".torchscript", "model/data.pkl"),
        (".pt", "model/data.pkl"),
        (".bin", "model/data.pkl"),
        (".keras", "config.json"),
        (".npz", "weight.npy"),
        (".zip", "anything"),
    ],
)
def test_intact_archive_is_accepted(tmp_path: Path, suffix: str, content: str) -> None:
    """Archive formats are accepted if the archive is intact and contains a model."""
    path = _write_zip(tmp_path / f"model{suffix}", content)
    assert check_viewable(path) == path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".torchscript", ".ptl", ".pt2"])
def test_archive_without_model_is_corrupt(tmp_path: Path, suffix: str) -> None:
    """A PyTorch archive must contain a model."""
    _assert_corrupt(_write_zip(tmp_path / f"model{suffix}", "notes.txt"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_legacy_file_is_accepted(tmp_path: Path, suffix: str) -> None:
    """Files in the legacy format of `torch.save`, and bare pickles, are accepted."""
    whole, bare = tmp_path / f"whole{suffix}", tmp_path / f"bare{suffix}"
    _save_legacy(whole)
    bare.write_bytes(pickle.dumps({"epoch": 3}))
    assert check_viewable(whole) == whole
    assert check_viewable(bare) == bare


def _save_legacy(path: Path) -> None:
    torch.save({"weight": torch.zeros(3, 4)}, path, _use_new_zipfile_serialization=False)


def test_tar_file_is_accepted(tmp_path: Path) -> None:
    """The first versions of PyTorch wrote tar files."""
    path = tmp_path / "model.pt"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    assert check_viewable(path) == path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_pytorch_programs_are_accepted(tmp_path: Path) -> None:
    """TorchScript and `torch.export` files are accepted, and corrupt if truncated."""
    model, example = nn.Linear(4, 3).eval(), torch.zeros(2, 4)
    torch.jit.save(torch.jit.trace(model, example), tmp_path / "traced.pt")  # type: ignore[no-untyped-call] # untyped
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "exported.pt2")
    assert check_viewable(tmp_path / "traced.pt").is_file()
    path = check_viewable(tmp_path / "exported.pt2")
    # Cut the file where an inner archive ends.
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])
    _assert_corrupt(path)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".npy", b"\x93NUMPY\x01\x00"),
        (".gguf", b"GGUF\x03\x00\x00\x00"),
        (".keras", b"\x89HDF\r\n\x1a\n"),
        (".tflite", b"\x1c\x00\x00\x00TFL3"),
        (".circle", b"\x1c\x00\x00\x00CIR0"),
        (".ort", b"\x1c\x00\x00\x00ORTM"),
        (".pte", b"\x1c\x00\x00\x00ET12"),
    ],
)
def test_signature_of_format_is_checked(tmp_path: Path, suffix: str, content: bytes) -> None:
    """A file with the signature of its format is accepted; others are corrupt."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert check_viewable(path) == path
    path.write_bytes(b"another " + content)
    _assert_corrupt(path)


@pytest.mark.parametrize("suffix", [".pkl", ".h5", ".bin", ".joblib", ".pb", ".mlmodel", ".json"])
def test_formats_without_signature_are_not_checked(tmp_path: Path, suffix: str) -> None:
    """Formats without a signature are accepted with any content."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"content")
    assert check_viewable(path) == path


@pytest.mark.parametrize("suffix", [".bin", ".safetensors", ".onnx", ".h5", ".pth"])
@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "Download"),
        (b"<html><body>Sign in</body></html>", "Download"),
    ],
)
def test_placeholder_is_recognized(tmp_path: Path, suffix: str, content: bytes, hint: str) -> None:
    """The message says that the file is a Git LFS pointer or a web page."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)
    assert hint in str(caught.value)


def test_unreadable_file_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains the path and the reason of a read error."""

    def open_(path: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(CorruptFileError) as caught:
        check_viewable(onnx_file)
    assert f"`{onnx_file}`" in str(caught.value)
    assert "Permission denied" in str(caught.value)


def test_extension_is_case_insensitive(onnx_file: Path) -> None:
    """`MODEL.ONNX` is checked like an ONNX file."""
    path = onnx_file.rename(onnx_file.with_name("MLP.ONNX"))
    assert check_viewable(path) == path
    path.write_bytes(b"no model")
    _assert_corrupt(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message contains the path."""
    path = tmp_path / "missing.onnx"
    with pytest.raises(FileMissingError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)


def test_a_folder_is_named(tmp_path: Path) -> None:
    """A folder is an error even if its name has a model extension."""
    path = tmp_path / "folder.onnx"
    path.mkdir()
    with pytest.raises(FileMissingError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "model", "model.onnx.bak", ".onnx"])
def test_unknown_extension_is_rejected(tmp_path: Path, name: str) -> None:
    """The message contains the file name and supported extensions."""
    path = tmp_path / name
    path.write_bytes(b"content")
    with pytest.raises(UnsupportedFileError) as caught:
        check_viewable(path)
    assert f"`{name}`" in str(caught.value)
    assert ".onnx, .pt2" in str(caught.value)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pth", ".pt2", ".h5"])
def test_empty_file_is_corrupt(tmp_path: Path, suffix: str) -> None:
    """An empty file is an error for every format."""
    path = tmp_path / f"empty{suffix}"
    path.touch()
    _assert_corrupt(path)


@pytest.mark.parametrize("content", [b"no model", bytes(range(256)), b"\x00", b"\n\x00"])
def test_other_content_is_not_an_onnx_model(tmp_path: Path, content: bytes) -> None:
    """Bytes that are not a protocol buffer, or one without a graph, are corrupt."""
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(content)
    _assert_corrupt(path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_truncated_onnx_model_is_corrupt(onnx_file: Path, fraction: float) -> None:
    """A truncated ONNX file is corrupt."""
    content = onnx_file.read_bytes()
    onnx_file.write_bytes(content[: int(len(content) * fraction)])
    _assert_corrupt(onnx_file)


def test_an_onnx_model_without_a_graph_is_corrupt(tmp_path: Path) -> None:
    """A model without inputs and nodes is corrupt."""
    path = tmp_path / "empty.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [])), path)
    _assert_corrupt(path)


@pytest.mark.parametrize("kept", [4, 8, 40])
def test_a_safetensors_file_cut_in_its_header_is_corrupt(safetensors_file: Path, kept: int) -> None:
    """A file that ends within its header is corrupt."""
    safetensors_file.write_bytes(safetensors_file.read_bytes()[:kept])
    _assert_corrupt(safetensors_file)


def test_a_safetensors_file_cut_in_its_tensors_is_corrupt(safetensors_file: Path) -> None:
    """A file that ends within its last tensor is corrupt."""
    safetensors_file.write_bytes(safetensors_file.read_bytes()[:-4])
    _assert_corrupt(safetensors_file)


@pytest.mark.parametrize("length", [2**20, 2**40, 2**64 - 1])
def test_header_longer_than_the_file_is_corrupt(tmp_path: Path, length: int) -> None:
    """A header length beyond the end of the file is rejected before any allocation."""
    _assert_corrupt(_write_safetensors(tmp_path / "too_long.safetensors", b"{}", length=length))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"no json at all!!", id="not JSON"),
        pytest.param(b"\xff\xfe\x00\x01", id="not text"),
        pytest.param(b"[1, 2]", id="not an object"),
        pytest.param(b'{"a":' * 100_000, id="nested too deeply"),
        pytest.param(json.dumps({"weight": 3}).encode(), id="not tensors"),
    ],
)
def test_invalid_header_is_corrupt(tmp_path: Path, header: bytes) -> None:
    """A header that does not describe tensors is corrupt."""
    _assert_corrupt(_write_safetensors(tmp_path / "header.safetensors", header))


@pytest.mark.parametrize("suffix", [".pt2", ".torchscript", ".keras", ".npz", ".zip"])
def test_archive_format_requires_an_archive(tmp_path: Path, suffix: str) -> None:
    """A file with the extension of an archive format must be an archive."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no archive")
    _assert_corrupt(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pt2"])
def test_truncated_archive_is_corrupt(pth_file: Path, suffix: str) -> None:
    """The directory of an archive is at its end."""
    path = pth_file.rename(pth_file.with_suffix(suffix))
    path.write_bytes(path.read_bytes()[:-30])
    _assert_corrupt(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_other_content_is_not_a_pytorch_file(tmp_path: Path, suffix: str) -> None:
    """A file that is neither an archive nor a pickle is corrupt."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no weights")
    _assert_corrupt(path)


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
@pytest.mark.parametrize("kept", [14, 20, 60, 150])
def test_truncated_legacy_file_is_corrupt(tmp_path: Path, suffix: str, kept: int) -> None:
    """The pickles of a legacy file are parsed to their ends."""
    path = tmp_path / f"model{suffix}"
    _save_legacy(path)
    path.write_bytes(path.read_bytes()[:kept])
    _assert_corrupt(path)


class _Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt", ".bin", ".joblib"])
def test_code_in_pickle_does_not_run(tmp_path: Path, suffix: str) -> None:
    """A pickle is checked without loading it."""
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "boom")))
    assert check_viewable(path) == path
    assert not (tmp_path / "boom").exists()


def test_code_in_legacy_file_does_not_run(tmp_path: Path) -> None:
    """The pickles of a legacy file are parsed without loading them."""
    path = tmp_path / "bomb.pth"
    torch.save(_Bomb(tmp_path / "boom"), path, _use_new_zipfile_serialization=False)
    assert check_viewable(path) == path
    assert not (tmp_path / "boom").exists()


def test_code_in_archive_does_not_run(tmp_path: Path) -> None:
    """Only the directory of an archive is read."""
    path = tmp_path / "bomb.pth"
    torch.save(_Bomb(tmp_path / "boom"), path)
    assert check_viewable(path) == path
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b"x",
        b"\x80\x02B" + struct.pack("<I", 2**31) + b"x",
        b"\x80\x02" + b"N0" * 6_000 + b"N.",
        b"\x80\x02I" + b"1" * 100_000 + b"\n.",
    ],
    ids=["bytes of a terabyte", "bytes of two gigabytes", "many instructions", "a long number"],
)
def test_legacy_file_that_claims_too_much_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes
) -> None:
    """The memory for a claim is not allocated, and the number of instructions is limited."""
    monkeypatch.setattr(scan, "_MOST_INSTRUCTIONS", 10_000)
    path = tmp_path / "model.pth"
    _save_legacy(path)
    path.write_bytes(path.read_bytes()[:14] + b"." + pickled)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match=r"model\.pth"):
            check_viewable(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_archive_with_too_many_entries_is_corrupt(tmp_path: Path) -> None:
    """They are counted before the directory is read."""
    path = tmp_path / "model.zip"
    length = 46 * 300_000
    start = 30
    record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 300_000, 300_000, length, start)
    end = b"PK\6\6" + record + b"PK\6\7" + struct.pack("<IQI", 0, start + length, 1)
    end += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(b"PK\3\4" + bytes(26) + bytes(length) + end)
    with pytest.raises(CorruptFileError, match="300,000"):
        check_viewable(path)


def test_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """A safetensors header may have 32 MiB, as in `load_weights`."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 33 * 2**20) + b"{}")
    os.truncate(path, 34 * 2**20)
    with pytest.raises(CorruptFileError, match="header"):
        check_viewable(path)
