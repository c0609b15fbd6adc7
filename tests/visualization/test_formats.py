"""Which files the viewer takes, and what is wrong with the others."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn

from finetunelib.errors import CorruptFileError, FileMissingError, UnsupportedFileError
from finetunelib.visualization._formats import check_viewable
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
    """A small state dict as PyTorch writes it, an archive."""
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
def test_a_whole_file_is_taken(request: pytest.FixtureRequest, fixture: str) -> None:
    """ONNX, safetensors and PyTorch files are returned as paths."""
    path: Path = request.getfixturevalue(fixture)
    assert check_viewable(str(path)) == path


@pytest.mark.parametrize("suffix", [".pt2", ".torchscript", ".keras", ".npz"])
def test_a_whole_archive_is_taken(tmp_path: Path, suffix: str) -> None:
    """Formats that are archives are taken when the archive can be read."""
    path = tmp_path / f"model{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "content")
    assert check_viewable(path) == path


@pytest.mark.parametrize("suffix", [".pkl", ".h5", ".tflite", ".gguf", ".bin", ".pt"])
def test_other_formats_are_left_to_the_viewer(tmp_path: Path, suffix: str) -> None:
    """What is not checked here is taken with any content."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"content")
    assert check_viewable(path) == path


def test_an_ending_in_capitals_is_the_same_ending(onnx_file: Path) -> None:
    """`MODEL.ONNX` is an ONNX file, and is checked as one."""
    path = onnx_file.rename(onnx_file.with_name("MLP.ONNX"))
    assert check_viewable(path) == path
    path.write_bytes(b"no model")
    _assert_corrupt(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path without a file is an error with the path."""
    path = tmp_path / "missing.onnx"
    with pytest.raises(FileMissingError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)


def test_a_folder_is_named(tmp_path: Path) -> None:
    """A folder is an error, also with the ending of a model."""
    path = tmp_path / "folder.onnx"
    path.mkdir()
    with pytest.raises(FileMissingError) as caught:
        check_viewable(path)
    assert f"`{path}`" in str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "model", "model.onnx.bak", ".onnx"])
def test_an_unknown_ending_is_named(tmp_path: Path, name: str) -> None:
    """A file of another kind is an error with its name and the endings that would do."""
    path = tmp_path / name
    path.write_bytes(b"content")
    with pytest.raises(UnsupportedFileError) as caught:
        check_viewable(path)
    assert f"`{name}`" in str(caught.value)
    assert ".onnx, .pt2" in str(caught.value)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pth", ".pt2", ".h5"])
def test_an_empty_file_is_corrupt(tmp_path: Path, suffix: str) -> None:
    """A file of no bytes is an error whatever its kind."""
    path = tmp_path / f"empty{suffix}"
    path.touch()
    _assert_corrupt(path)


@pytest.mark.parametrize("content", [b"no model", bytes(range(256)), b"\x00", b"\n\x00"])
def test_other_content_is_no_onnx_model(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no protocol buffer, or one without a graph, are an error."""
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(content)
    _assert_corrupt(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_onnx_model_is_corrupt(onnx_file: Path, share: float) -> None:
    """A file that lost its end is an error."""
    content = onnx_file.read_bytes()
    onnx_file.write_bytes(content[: int(len(content) * share)])
    _assert_corrupt(onnx_file)


def test_an_onnx_model_without_a_graph_is_corrupt(tmp_path: Path) -> None:
    """A model of no inputs and no nodes is nothing to look at."""
    path = tmp_path / "empty.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [])), path)
    _assert_corrupt(path)


@pytest.mark.parametrize("kept", [4, 8, 40])
def test_a_safetensors_file_cut_in_its_header_is_corrupt(safetensors_file: Path, kept: int) -> None:
    """A file that ends before its header does is an error."""
    safetensors_file.write_bytes(safetensors_file.read_bytes()[:kept])
    _assert_corrupt(safetensors_file)


def test_a_safetensors_file_cut_in_its_tensors_is_corrupt(safetensors_file: Path) -> None:
    """A file whose last tensor is not all there is an error."""
    safetensors_file.write_bytes(safetensors_file.read_bytes()[:-4])
    _assert_corrupt(safetensors_file)


@pytest.mark.parametrize("length", [2**20, 2**40, 2**64 - 1])
def test_a_header_that_claims_more_than_the_file_holds_is_corrupt(
    tmp_path: Path, length: int
) -> None:
    """A length beyond the file's end is believed by nobody, however much memory it asks for."""
    _assert_corrupt(_write_safetensors(tmp_path / "lie.safetensors", b"{}", length=length))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"no json at all!!", id="no JSON"),
        pytest.param(b"\xff\xfe\x00\x01", id="no text"),
        pytest.param(b"[1, 2]", id="no object"),
        pytest.param(b'{"a":' * 100_000, id="nested too deep"),
        pytest.param(json.dumps({"weight": 3}).encode(), id="no tensors"),
    ],
)
def test_a_header_that_is_none_is_corrupt(tmp_path: Path, header: bytes) -> None:
    """A header that does not describe tensors is an error."""
    _assert_corrupt(_write_safetensors(tmp_path / "header.safetensors", header))


@pytest.mark.parametrize("suffix", [".pt2", ".torchscript", ".keras", ".npz"])
def test_something_else_under_the_ending_of_an_archive_is_corrupt(
    tmp_path: Path, suffix: str
) -> None:
    """Formats that are archives are errors when there is no archive."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"no archive")
    _assert_corrupt(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pt2"])
def test_a_truncated_archive_is_corrupt(pth_file: Path, suffix: str) -> None:
    """PyTorch's own files are archives too, whose directory stands at the end."""
    path = pth_file.rename(pth_file.with_suffix(suffix))
    path.write_bytes(path.read_bytes()[:-30])
    _assert_corrupt(path)


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt", ".bin", ".joblib"])
def test_nothing_in_a_file_is_run(tmp_path: Path, suffix: str) -> None:
    """A pickle is looked at from outside, and its code does not run."""
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "boom")))
    assert check_viewable(path) == path
    assert not (tmp_path / "boom").exists()
