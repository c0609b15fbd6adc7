"""Writes an ONNX model of one or two files atomically."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib._files.atomic import atomic_file
from finetunelib._files.disk import flush, flush_folder, not_written, ordinary_file
from finetunelib._files.paths import check_writable
from finetunelib.errors import CorruptFileError, PathNotWritableError

if TYPE_CHECKING:  # Reading a file's metadata must not need PyTorch.
    import onnx

#: A Protocol Buffers message is at most 2 GB; the difference leaves space for the graph.
LARGEST_FILE = 1_900_000_000

#: The names of the previous graph and weights while a new pair replaces them.
_PREVIOUS_GRAPH, _PREVIOUS_DATA = "previous.onnx", "previous.data"


def data_file(file: Path) -> Path:
    """Return the file of a large model's weights, next to its graph."""
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


def file_bytes(file: Path, *, two_files: bool) -> int:
    """Return the size of a model in bytes, including the file of its weights if it has one."""
    return file.stat().st_size + (data_file(file).stat().st_size if two_files else 0)


@contextlib.contextmanager
def atomic_model(file: Path, *, two_files: bool) -> Iterator[Path]:
    """Yield a temporary path for a model, and rename it to `file` if the block succeeds.

    If the weights are in a file of their own, the block writes it next to the temporary path. If
    the block raises, the temporary files are deleted and existing files are unchanged.

    Raises:
        PathNotWritableError: If the files cannot be written or renamed (disk full, permissions).
    """
    if two_files:
        with _pair(file) as temporary:
            yield temporary
        return
    had_data = _refers_to_data(file)
    with atomic_file(file) as temporary:
        yield temporary
    if had_data:
        # After the rename, because the previous graph needed it.
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
    previous = [folder / _PREVIOUS_GRAPH, folder / _PREVIOUS_DATA]
    try:
        yield folder / file.name
        try:
            for name in (data_file(file).name, file.name):
                ordinary_file(folder / name)
                flush(folder / name)
            _swap(folder, file)
            flush_folder(file.parent)
        except OSError as error:
            if any(entry.exists() for entry in previous):
                raise PathNotWritableError(
                    f"`{file}` could not be written: {error.strerror or error}. The previous files "
                    f"could not be restored and are in `{folder}`; move them by hand."
                ) from error
            raise not_written(file, error) from error
    finally:
        # Files that could not be restored are the only copy.
        if not any(entry.exists() for entry in previous):
            shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, file: Path) -> None:
    """Replace the previous pair with the new one, and delete the previous one.

    The previous graph is moved first and the new one last, so a graph is never next to the weights
    of another. A crash in between leaves no graph at `file`, and the previous pair in the hidden
    folder.
    """
    moves = [
        (file, folder / _PREVIOUS_GRAPH),
        (data_file(file), folder / _PREVIOUS_DATA),
        (folder / data_file(file).name, data_file(file)),
        (folder / file.name, file),
    ]
    try:
        for source, target in moves:
            if source.exists():
                source.rename(target)
    except BaseException:
        # Check the files themselves: an interrupt can come right after a rename.
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                target.rename(source)
        raise
    for entry in (folder / _PREVIOUS_GRAPH, folder / _PREVIOUS_DATA):
        entry.unlink(missing_ok=True)


def _refers_to_data(file: Path) -> bool:
    """Return whether a file is a graph whose weights are in a second file."""
    if not file.is_file() or not data_file(file).is_file():
        return False
    try:
        model = read_onnx(file)
    # The file may be anything, and is about to be replaced.
    except Exception:  # noqa: BLE001
        return False
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return data_file(file).name in locations


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise errors about a temporary file as errors about the file that the user asked for.

    Raises:
        PathNotWritableError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise not_written(file, error) from error
