"""An ONNX model that appears under its name whole or not at all, also where it is two files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib._files import (
    check_writable,
    flush,
    flush_folder,
    not_written,
    ordinary_file,
    whole_file,
)
from finetunelib.errors import CorruptFileError, PathNotWritableError

if TYPE_CHECKING:  # Reading a file's metadata must not need PyTorch.
    import onnx

#: Protocol Buffers end at 2 GB; the rest is for the graph itself.
LARGEST_FILE = 1_900_000_000

#: What the files of a former pair are called while a new one takes their place.
_FORMER_GRAPH, _FORMER_DATA = "former.onnx", "former.data"


def data_file(file: Path) -> Path:
    """Return where the weights of a large model lie, beside its graph."""
    return file.with_name(f"{file.name}.data")


def read_onnx(file: Path) -> onnx.ModelProto:
    """Return the model in an ONNX file, without weights that are in a file of their own.

    Raises:
        CorruptFileError: If the file is not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(file, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise CorruptFileError(
            f"`{file}` is not an ONNX model: {error}. Export it again."
        ) from error


@contextlib.contextmanager
def whole_model(file: Path, *, two_files: bool) -> Iterator[Path]:
    """Yield a temporary path for a model, and rename it into place when the block succeeds.

    Where the weights lie in a file of their own, the block writes that one beside the temporary
    path. When the block raises, nothing temporary stays, and what was there before is unchanged.

    Raises:
        PathNotWritableError: The files cannot be written or renamed (disk full, permissions).
    """
    if two_files:
        with _pair(file) as temporary:
            yield temporary
        return
    former = _refers_to_data(file)
    with whole_file(file) as temporary:
        yield temporary
    if former:
        # Only now: until the rename, the former graph needed it. What stays is a file too many.
        with contextlib.suppress(OSError):
            data_file(file).unlink()


@contextlib.contextmanager
def _pair(file: Path) -> Iterator[Path]:
    check_writable(file)
    check_writable(data_file(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{file.stem}-", suffix=".tmp", dir=file.parent))
    except OSError as error:
        raise not_written(file, error) from error
    former = [folder / _FORMER_GRAPH, folder / _FORMER_DATA]
    try:
        yield folder / file.name
        try:
            for name in (data_file(file).name, file.name):
                ordinary_file(folder / name)
                flush(folder / name)
            _swap(folder, file)
            flush_folder(file.parent)
        except OSError as error:
            if any(entry.exists() for entry in former):
                raise PathNotWritableError(
                    f"`{file}` could not be written: {error.strerror or error}. The former files "
                    f"could not be put back and are in `{folder}`; move them by hand."
                ) from error
            raise not_written(file, error) from error
    finally:
        # What could not be put back is the only copy that there is.
        if not any(entry.exists() for entry in former):
            shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, file: Path) -> None:
    """Put a new pair in the place of a former one, and delete that.

    The former graph leaves first and the new one comes last, so that at no moment a graph stands
    beside the weights of another. A crash in between leaves no graph under the name, and the
    former pair in the hidden folder.
    """
    moves = [
        (file, folder / _FORMER_GRAPH),
        (data_file(file), folder / _FORMER_DATA),
        (folder / data_file(file).name, data_file(file)),
        (folder / file.name, file),
    ]
    try:
        for source, target in moves:
            if source.exists():
                source.rename(target)
    except BaseException:
        # The files tell what was moved: an interrupt may come between a rename and any note of it.
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise
    for entry in (folder / _FORMER_GRAPH, folder / _FORMER_DATA):
        entry.unlink(missing_ok=True)


def _refers_to_data(file: Path) -> bool:
    """Return whether a file is the graph of a pair, so that its weights go with it."""
    if not file.is_file() or not data_file(file).is_file():
        return False
    try:
        model = read_onnx(file)
    # What is there may be anything, and is about to be replaced.
    except Exception:  # noqa: BLE001
        return False
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return data_file(file).name in locations
