"""Which files the viewer opens, and whether one is whole. Nothing in a file is run."""

from __future__ import annotations

import pickletools
import tarfile
import zipfile
from pathlib import Path

from finetunelib._files import check_readable
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, UnsupportedFileError
from finetunelib.export._model_file import read_onnx

#: Endings that Netron opens, those of PyTorch and ONNX first.
SUFFIXES = (
    ".onnx", ".pt2", ".pt", ".pth", ".bin", ".safetensors", ".torchscript", ".ptl", ".pte",
    ".ckpt", ".pkl", ".pickle", ".joblib", ".jit", ".t7",
    ".ort", ".onnxtxt", ".h5", ".hd5", ".hdf5", ".keras", ".weights", ".tflite", ".lite", ".tfl",
    ".circle", ".litertlm", ".pb", ".pbtxt", ".prototxt", ".caffemodel", ".mlmodel", ".gguf",
    ".npz", ".npy", ".msgpack", ".xml", ".json", ".model", ".cfg", ".param", ".params", ".ncnn",
    ".mnn", ".ms", ".mindir", ".pdmodel", ".pdiparams", ".pdparams", ".pdopt", ".paddle", ".nb",
    ".mlir", ".mlirbc", ".jax", ".jax_export", ".jax_exported", ".mar", ".nn", ".dlc", ".uff",
    ".armnn", ".tmfile", ".tnnproto", ".xmodel", ".kmodel", ".rknn", ".om", ".mge", ".espdl",
    ".tosa", ".kann", ".dot", ".xgb", ".ubj", ".cbm", ".mlnet", ".dnn", ".cmf", ".cntk", ".hn",
    ".ngf", ".bson", ".tar", ".zip",
)  # fmt: skip

#: PyTorch's files are archives or pickles, whatever their ending.
_PYTORCH = (".pt", ".pth", ".ckpt", ".torchscript", ".ptl", ".jit", ".pt2")

_ZIPPED = (".pt2", ".torchscript", ".ptl", ".npz", ".zip", ".mar", ".mlnet")

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"

#: What files of these endings have at an offset.
_SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    ".npy": (0, (b"\x93NUMPY",)),
    ".gguf": (0, (b"GGUF",)),
    ".keras": (0, (_ZIP, _HDF5)),
    ".tflite": (4, (b"TFL3",)),
    ".circle": (4, (b"CIR0",)),
    ".ort": (4, (b"ORTM",)),
    ".pte": (4, (b"ET12",)),
}

#: What lies in place of a large file that was not downloaded, or not found.
_STAND_INS = {
    b"version https://git-lfs": "a pointer of Git LFS. Fetch the file itself: git lfs pull",
    b"<!doctype html": "a page of a web site. Download the file itself",
    b"<html": "a page of a web site. Download the file itself",
}

#: With what a file of `torch.save` begins that is no archive, and how many pickles then follow.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_PICKLES = 5


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
    head = _head(file)
    if not head:
        raise CorruptFileError(f"`{file}` is empty. Write or copy it again.")
    for beginning, what in _STAND_INS.items():
        if head.lower().startswith(beginning):
            raise CorruptFileError(f"`{file}` is no model but {what}.")
    if suffix == ".onnx":
        _check_onnx(file)
    elif suffix == ".safetensors":
        _check_safetensors(file)
    elif head.startswith(_ZIP) or suffix in _ZIPPED:
        _check_zip(file, suffix)
    elif suffix in _PYTORCH or head.startswith(_LEGACY):
        _check_legacy(file, head)
    else:
        _check_signature(file, suffix, head)
    return file


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise CorruptFileError(
            f"`{file}` cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _check_onnx(file: Path) -> None:
    graph = read_onnx(file).graph
    if not graph.node and not graph.input:
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


def _check_zip(file: Path, suffix: str) -> None:
    """Read an archive's directory, which stands at its end, and look for a model in it."""
    try:
        names = _names_in_zip(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CorruptFileError(
            f"`{file}` is no whole {suffix} file (the archive in it cannot be read: {error}). "
            "Write or copy it again."
        ) from error
    if suffix not in _PYTORCH:
        return
    # Archives of torch.save and TorchScript hold a pickle; those of torch.export, JSON.
    wanted = (".json", "archive_format") if suffix == ".pt2" else (".pkl", ".json")
    if not any(name.endswith(wanted) for name in names):
        raise CorruptFileError(
            f"`{file}` is an archive without a model of PyTorch in it. Write or copy it again."
        )


def _names_in_zip(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        if min((entry.header_offset for entry in archive.infolist()), default=0) > 0:
            # What is left of a file that lost its end may close with an archive within it.
            raise zipfile.BadZipFile("its directory is missing")
        return archive.namelist()


def _check_legacy(file: Path, head: bytes) -> None:
    """Look at what `torch.save` wrote before it wrote archives; no pickle in it is loaded."""
    if head.startswith(_LEGACY):
        try:
            with file.open("rb") as stream:
                for _ in range(_LEGACY_PICKLES):
                    for _ in pickletools.genops(stream):
                        pass
        # A damaged pickle fails in as many ways as it has kinds of arguments.
        except (ValueError, OverflowError, MemoryError) as error:
            raise CorruptFileError(
                f"`{file}` is no whole file of torch.save: {error}. Write or copy it again."
            ) from error
    elif not head.startswith((b"\x80", b"T7")) and not tarfile.is_tarfile(file):
        raise CorruptFileError(
            f"`{file}` is no file of PyTorch: neither an archive nor a pickle. "
            "Write or copy it again."
        )


def _check_signature(file: Path, suffix: str, head: bytes) -> None:
    offset, signatures = _SIGNATURES.get(suffix, (0, (b"",)))
    if not head[offset:].startswith(signatures):
        raise CorruptFileError(
            f"`{file}` does not begin as {suffix} files do. Write or copy it again."
        )
