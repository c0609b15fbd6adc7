"""Which files the viewer opens, and whether one is whole. Nothing in a file is run."""

from __future__ import annotations

import zipfile
from pathlib import Path

from finetunelib._files import check_readable
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, UnsupportedFileError

#: Endings that Netron opens, those of PyTorch and ONNX first.
SUFFIXES = (
    ".onnx", ".pt2", ".pt", ".pth", ".bin", ".safetensors", ".torchscript", ".ptl", ".pte",
    ".h5", ".hdf5", ".keras", ".tflite", ".pb", ".pbtxt", ".mlmodel", ".mlpackage", ".gguf",
    ".npz", ".npy", ".ort", ".joblib", ".pkl", ".xml", ".param", ".prototxt", ".caffemodel",
)  # fmt: skip

_ZIPPED = (".pt2", ".torchscript", ".ptl", ".keras", ".npz")


def check_viewable(path: StrPath) -> Path:
    """Return a file that the viewer can open, or raise.

    Raises:
        FileMissingError: There is no such file.
        UnsupportedFileError: The viewer knows no files of this ending.
        CorruptFileError: The file is empty, or not what its ending says.
    """
    file = check_readable(path, purpose="model file")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnsupportedFileError(
            f"The viewer does not know files like `{file.name}`. Pass a model, or a file that "
            f"ends in {', '.join(SUFFIXES[:7])} or another format of Netron."
        )
    size = file.stat().st_size
    if size == 0:
        raise CorruptFileError(f"`{file}` is empty. Write or copy it again.")
    if suffix == ".onnx":
        _check_onnx(file)
    elif suffix == ".safetensors":
        _check_safetensors(file)
    elif (suffix in _ZIPPED or _starts_as_zip(file)) and not zipfile.is_zipfile(file):
        raise CorruptFileError(
            f"`{file}` is no whole {suffix} file (the archive in it cannot be read). "
            "Write or copy it again."
        )
    return file


def _check_onnx(file: Path) -> None:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise CorruptFileError(f"`{file}` is no ONNX model: {error}. Export it again.") from error
    if not model.graph.node and not model.graph.input:
        raise CorruptFileError(f"`{file}` holds no graph. Export it again.")


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # This reads the header only, and compares what it claims with the file's size.
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CorruptFileError(
            f"`{file}` is no whole safetensors file: {error}. Write or copy it again."
        ) from error


def _starts_as_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"
