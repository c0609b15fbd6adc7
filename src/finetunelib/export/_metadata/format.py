"""Reads and writes the metadata of a file, without PyTorch.

It is stored as ONNX model metadata, which ONNX Runtime and Netron show too.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np

from finetunelib._files.paths import check_readable
from finetunelib._public import public
from finetunelib.export._model_file import read_onnx

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from finetunelib._typing import StrPath

#: Values stored as text, and values stored as JSON.
_TEXTS = ("description", "preprocessing", "postprocessing", "weights_sha256")
_JSON: dict[str, type] = {
    "labels": list,
    "versions": dict,
    "verification": dict,
    "size_checks": list,
    "certificate": dict,
}
_SELF_TEST = "self_test"

#: The keys of the library. Any other key is free for the user.
RESERVED = frozenset({*_TEXTS, *_JSON, _SELF_TEST}) - {"description"}


@public("finetunelib.export")
class SelfTest(TypedDict):
    """Samples stored in a file, and the model's outputs for them.

    Attributes:
        inputs: The input arrays, by the names of the graph's inputs.
        outputs: The expected output arrays, by the names of the graph's outputs.
        tolerance: The largest absolute difference allowed.

    Example:
        See `load_onnx_metadata`, and `examples/serve_onnx.py`.
    """

    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]
    tolerance: float


@public("finetunelib.export")
class OnnxMetadata(TypedDict):
    """The metadata of an ONNX file. A value is `None` if the file does not contain it.

    Attributes:
        description: The purpose of the model.
        labels: The names of the classes, in the order of the output.
        preprocessing: The preprocessing in the graph.
        postprocessing: `"softmax"` if the graph ends with one.
        versions: The versions of the packages that wrote the file.
        verification: The result of the comparison with the model: status, tolerance, batch sizes,
            and numbers for each output.
        size_checks: Conditions on the sizes of the inputs that the graph checks when it runs.
        certificate: The tensors that were frozen in a training run, each with its sha256.
        weights_sha256: The sha256 of the model's tensors, ordered by name.
        self_test: Samples and the model's outputs for them.
        extra: All other texts, custom metadata included.

    Example:
        See `load_onnx_metadata`.
    """

    description: str | None
    labels: list[str] | None
    preprocessing: str | None
    postprocessing: str | None
    versions: dict[str, str] | None
    verification: dict[str, Any] | None
    size_checks: list[str] | None
    certificate: dict[str, Any] | None
    weights_sha256: str | None
    self_test: SelfTest | None
    extra: dict[str, str]


@public("finetunelib.export")
def load_onnx_metadata(path: StrPath) -> OnnxMetadata:
    """Read the metadata of an ONNX file, without PyTorch and without loading the weights.

    Files of other programs can be read too: keys that the library does not know are in `extra`.

    Args:
        path: The file.

    Returns:
        The metadata, as a dict.

    Raises:
        FileMissingError: If the file does not exist.
        CorruptFileError: If the file is not an ONNX model.

    Example:
        >>> import os, tempfile, torch
        >>> from finetunelib import build_mlp, export_onnx
        >>> from finetunelib.export import load_onnx_metadata
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "mlp.onnx")
        ...     _ = export_onnx(
        ...         build_mlp(4, [8], 2, seed=0), path, torch.randn(2, 4), labels=["cat", "dog"]
        ...     )
        ...     metadata = load_onnx_metadata(path)
        >>> metadata["labels"], metadata["postprocessing"]
        (['cat', 'dog'], None)
    """
    model = read_onnx(check_readable(path, purpose="ONNX file"))
    return decode({entry.key: entry.value for entry in model.metadata_props})


def append_metadata(path: Path, texts: Mapping[str, str], description: str | None = None) -> None:
    """Append metadata to a file without reading or rewriting it.

    Protocol Buffers merges two messages of the same type that follow one another.
    """
    import onnx

    more = onnx.ModelProto()
    for key, text in texts.items():
        more.metadata_props.add(key=key, value=text)
    if description is not None:
        more.doc_string = description
    with path.open("ab") as stream:
        stream.write(more.SerializeToString())


def encode(metadata: OnnxMetadata) -> dict[str, str]:
    """Return metadata as strings."""
    texts: dict[str, str] = {}
    for key, value in metadata.items():
        if key in (*_TEXTS, *_JSON) and value is not None:
            texts[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if metadata["self_test"] is not None:
        texts[_SELF_TEST] = _encode_self_test(metadata["self_test"])
    return {**texts, **metadata["extra"]}


def decode(texts: Mapping[str, str]) -> OnnxMetadata:
    """Return the metadata in strings. Any value of an unexpected form is in `extra`."""
    known: dict[str, Any] = dict.fromkeys((*_TEXTS, *_JSON, _SELF_TEST))
    extra: dict[str, str] = {}
    for key, text in texts.items():
        value = _decoded(key, text)
        if value is None:
            extra[key] = text
        else:
            known[key] = value
    return cast("OnnxMetadata", {**known, "extra": extra})


def _decoded(key: str, text: str) -> object | None:
    if key in _TEXTS:
        return text
    if key not in _JSON and key != _SELF_TEST:
        return None
    try:
        value = json.loads(text)
        if key == _SELF_TEST:
            return _decode_self_test(value)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return value if isinstance(value, _JSON[key]) else None


def _encode_self_test(test: SelfTest) -> str:
    arrays = {
        part: {name: _to_text(array) for name, array in test[part].items()}
        for part in ("inputs", "outputs")
    }
    return json.dumps({**arrays, "tolerance": test["tolerance"]})


def _decode_self_test(value: Any) -> SelfTest:
    inputs, outputs = (
        {str(name): _to_array(text) for name, text in value[part].items()}
        for part in ("inputs", "outputs")
    )
    return SelfTest(inputs=inputs, outputs=outputs, tolerance=float(value["tolerance"]))


def _to_text(array: npt.NDArray[Any]) -> str:
    """Return an array as the base64 of a `.npy` file, which needs only numpy to read."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _to_array(text: str) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(
        io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False
    )
    return array
