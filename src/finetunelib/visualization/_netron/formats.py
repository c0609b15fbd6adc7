"""Checks that a file can be opened in the viewer, without running code from it."""

from __future__ import annotations

import contextlib
import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import IO, BinaryIO, cast

from finetunelib._files.paths import check_readable
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, UnsupportedFileError
from finetunelib.export._model_file import read_onnx

#: The extensions that Netron supports, those of PyTorch and ONNX first.
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

#: PyTorch files, which are archives or pickles whatever their extension.
_PYTORCH = (".pt", ".pth", ".ckpt", ".torchscript", ".ptl", ".jit", ".pt2")

_ZIPPED = (".pt2", ".torchscript", ".ptl", ".npz", ".zip", ".mar", ".mlnet")

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"

#: The bytes at an offset of files with these extensions.
_SIGNATURES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    ".npy": (0, (b"\x93NUMPY",)),
    ".gguf": (0, (b"GGUF",)),
    ".keras": (0, (_ZIP, _HDF5)),
    ".tflite": (4, (b"TFL3",)),
    ".circle": (4, (b"CIR0",)),
    ".ort": (4, (b"ORTM",)),
    ".pte": (4, (b"ET12",)),
}

#: What was downloaded instead of the model, by the first bytes of the file.
_PLACEHOLDERS = {
    b"version https://git-lfs": "a pointer of Git LFS. Fetch the file itself: git lfs pull",
    b"<!doctype html": "a web page. Download the file itself",
    b"<html": "a web page. Download the file itself",
}

#: The first bytes of a `torch.save` file that is not an archive, and its number of pickles.
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_PICKLES = 5

#: The largest number of instructions in them, and of bytes in a line.
_MOST_INSTRUCTIONS, _LONGEST_LINE = 2_000_000, 2**16


def check_viewable(path: StrPath) -> Path:
    """Check that the viewer can open a file, and return its path.

    Raises:
        FileMissingError: If the file does not exist.
        UnsupportedFileError: If Netron does not support the extension.
        CorruptFileError: If the file is empty, or its content does not match the extension.
    """
    file = check_readable(path, purpose="model file")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UnsupportedFileError(
            f"Netron does not support the extension of `{file.name}`. Pass a model, or a file "
            f"with the extension {', '.join(SUFFIXES[:7])} or another that Netron supports."
        )
    head = _head(file)
    if not head:
        raise CorruptFileError(f"`{file}` is empty. Write or copy it again.")
    for beginning, what in _PLACEHOLDERS.items():
        if head.lower().startswith(beginning):
            raise CorruptFileError(f"`{file}` is not a model, but {what}.")
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
        raise CorruptFileError(f"`{file}` contains no graph. Export it again.")


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    from finetunelib.finetuning._weights.formats import check_header

    try:
        check_header(file)
        # Reads only the header, and compares it with the file's size.
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(
            f"`{file}` is not an intact safetensors file: {error}. Write or copy it again."
        ) from error


def _check_zip(file: Path, suffix: str) -> None:
    """Check that the directory of an archive is intact and lists a model."""
    try:
        names = _names_in_zip(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CorruptFileError(
            f"`{file}` is not an intact {suffix} file: its archive cannot be read ({error}). "
            "Write or copy it again."
        ) from error
    if suffix not in _PYTORCH:
        return
    # Archives of torch.save and TorchScript contain a pickle; those of torch.export, JSON.
    model_files = (".json", "archive_format") if suffix == ".pt2" else (".pkl", ".json")
    if not any(name.endswith(model_files) for name in names):
        raise CorruptFileError(
            f"`{file}` is an archive without a PyTorch model. Write or copy it again."
        )


def _names_in_zip(file: Path) -> list[str]:
    from finetunelib.finetuning._pickles.archives import check_directory

    # An archive of another program may end in a comment, but not with millions of entries.
    with contextlib.suppress(zipfile.BadZipFile):
        check_directory(file)
    with zipfile.ZipFile(file) as archive:
        if min((entry.header_offset for entry in archive.infolist()), default=0) > 0:
            # A truncated file may end in an inner archive, which is intact.
            raise zipfile.BadZipFile("its directory is missing")
        return archive.namelist()


def _check_legacy(file: Path, head: bytes) -> None:
    """Check a `torch.save` file that is not an archive, without loading its pickles."""
    if head.startswith(_LEGACY):
        try:
            with file.open("rb") as stream:
                _check_pickles(_Bounded(stream, file.stat().st_size))
        # Each kind of argument in a damaged pickle raises its own exception.
        except (ValueError, OverflowError, MemoryError) as error:
            raise CorruptFileError(
                f"`{file}` is not an intact torch.save file: {error}. Write or copy it again."
            ) from error
    elif not head.startswith((b"\x80", b"T7")) and not tarfile.is_tarfile(file):
        raise CorruptFileError(
            f"`{file}` is not a PyTorch file: it is neither an archive nor a pickle. "
            "Write or copy it again."
        )


def _check_pickles(stream: _Bounded) -> None:
    """Read the instructions of the pickles in a `torch.save` file.

    Raises:
        ValueError: If one is damaged, claims more than the file has, or they are too many.
    """
    instructions = 0
    for _ in range(_LEGACY_PICKLES):
        for _ in pickletools.genops(cast("IO[bytes]", stream)):
            instructions += 1
            if instructions > _MOST_INSTRUCTIONS:
                raise ValueError(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")


class _Bounded:
    """A file that refuses to read more bytes than it has, before memory is allocated for them."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size

    def read(self, count: int) -> bytes:
        """Read a number of bytes."""
        if count > self._size:
            raise ValueError(f"it claims {count:,} bytes, more than the {self._size:,} of the file")
        return self._stream.read(count)

    def readline(self) -> bytes:
        """Read a line, which is a name or a number here."""
        return self._stream.readline(_LONGEST_LINE)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._stream.tell()


def _check_signature(file: Path, suffix: str, head: bytes) -> None:
    offset, signatures = _SIGNATURES.get(suffix, (0, (b"",)))
    if not head[offset:].startswith(signatures):
        raise CorruptFileError(
            f"`{file}` does not start like a {suffix} file. Write or copy it again."
        )
