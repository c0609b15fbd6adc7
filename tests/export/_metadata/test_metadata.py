"""The metadata of an exported file, and reading it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import finetunelib
from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head
from finetunelib.errors import (
    CorruptFileError,
    FileMissingError,
    FreezeError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.export import ExportReport, OnnxMetadata, load_onnx_metadata
from finetunelib.export._metadata.format import append_metadata, decode, encode
from finetunelib.training import History
from support_models import linear, outputs_of, samples


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A file with all the metadata that a user can set."""
    return export_onnx(
        linear(),
        tmp_path_factory.mktemp("told") / "told.onnx",
        samples(2, 4),
        labels=["cat", "dog", "élan"],
        metadata={"description": "tells animals apart", "author": "somebody"},
        self_test=True,
    )


@pytest.fixture(scope="module")
def metadata(exported: ExportReport) -> OnnxMetadata:
    """The metadata of the exported file."""
    return load_onnx_metadata(exported.path)


@pytest.fixture
def fine_tuned() -> tuple[nn.Module, History]:
    """A model with a frozen backbone, and the history of its training run."""
    model = freeze_and_replace_head(build_mlp(4, [8], 3, seed=0), num_classes=2)
    data = (samples(6, 4), torch.tensor([0, 1] * 3))
    return model, Trainer(model, progress=False).fit(data, epochs=1)


def test_labels_and_custom_metadata_are_read(metadata: OnnxMetadata) -> None:
    """Labels and description have fields; other keys are under `extra`."""
    assert metadata["labels"] == ["cat", "dog", "élan"]
    assert metadata["description"] == "tells animals apart"
    assert metadata["extra"] == {"author": "somebody"}


def test_the_verification_is_read(exported: ExportReport, metadata: OnnxMetadata) -> None:
    """The file contains the same numbers as the report."""
    verification = exported.verification
    assert verification is not None
    told = metadata["verification"]
    assert told is not None
    assert (told["status"], told["batch_sizes"]) == ("verified", [1, 2, 7])
    errors = [numbers["largest_error"] for numbers in told["comparisons"]]
    assert errors == [comparison.largest_error for comparison in verification.comparisons]


def test_the_versions_are_those_of_the_packages(metadata: OnnxMetadata) -> None:
    """The file contains the versions of the packages that wrote it."""
    versions = metadata["versions"]
    assert versions is not None
    assert versions["onnx"] == onnx.__version__
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert versions["finetunelib"] == finetunelib.__version__


def test_the_description_is_shown_by_viewers(exported: ExportReport) -> None:
    """It is also stored in the `doc_string` of the model."""
    model = onnx.load(exported.path)
    assert model.doc_string == "tells animals apart"


def test_the_runtime_reads_the_metadata(exported: ExportReport) -> None:
    """It is standard ONNX metadata, which any program can read."""
    session = onnxruntime.InferenceSession(str(exported.path))
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["labels"] == '["cat", "dog", "élan"]'


def test_the_checker_accepts_the_file_with_its_metadata(exported: ExportReport) -> None:
    """Appending metadata to the file leaves a valid model."""
    onnx.checker.check_model(str(exported.path), full_check=True)


def test_the_self_test_contains_inputs_and_outputs_of_the_model(
    exported: ExportReport, metadata: OnnxMetadata
) -> None:
    """The arrays have the names of the graph, and the file reproduces them within the tolerance."""
    test = metadata["self_test"]
    assert test is not None
    session = onnxruntime.InferenceSession(str(exported.path))
    (output,) = session.run(["output"], test["inputs"])
    expected = test["outputs"]["output"]
    assert np.abs(output - expected).max() <= test["tolerance"]
    (values,) = test["inputs"].values()
    model = linear()
    assert np.array_equal(expected, outputs_of(model, torch.from_numpy(values)).numpy())


def test_the_sha256_identifies_the_weights(tmp_path: Path) -> None:
    """It is the same for equal weights, and changes if a single value changes."""
    model = linear()

    def told() -> str | None:
        path = export_onnx(model, tmp_path / "m.onnx", samples(2, 4), verify=False).path
        return load_onnx_metadata(path)["weights_sha256"]

    before = told()
    assert told() == before
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    assert told() != before


def test_the_file_contains_the_certificate(
    tmp_path: Path, fine_tuned: tuple[nn.Module, History]
) -> None:
    """It says which tensors a training run left unchanged."""
    model, history = fine_tuned
    path = tmp_path / "m.onnx"
    export_onnx(model, path, samples(2, 4), certificate=history.certificate)
    certificate = load_onnx_metadata(path)["certificate"]
    assert history.certificate is not None
    assert certificate is not None
    assert certificate["digests"] == dict(history.certificate.digests)
    assert certificate["statement"].startswith("2 of 2 frozen tensors")


def test_a_certificate_of_tensors_that_changed_since_is_refused(
    tmp_path: Path, fine_tuned: tuple[nn.Module, History]
) -> None:
    """The tensors are hashed again, and the error names the one that differs."""
    model, history = fine_tuned
    with torch.no_grad():
        model.get_parameter("backbone.1.weight")[0, 0] += 1e-3
    with pytest.raises(FreezeError, match=r"backbone\.1\.weight"):
        export_onnx(model, tmp_path / "m.onnx", samples(2, 4), certificate=history.certificate)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_of_another_model_is_refused(
    tmp_path: Path, fine_tuned: tuple[nn.Module, History]
) -> None:
    """The error names a tensor that the model does not have."""
    _, history = fine_tuned
    with pytest.raises(FreezeError, match=r"backbone\.1\.weight"):
        export_onnx(linear(), tmp_path / "m.onnx", samples(2, 4), certificate=history.certificate)


def test_a_history_is_not_a_certificate(
    tmp_path: Path, fine_tuned: tuple[nn.Module, History]
) -> None:
    """The error points to its `certificate` attribute."""
    model, history = fine_tuned
    with pytest.raises(InvalidTypeError, match=r"History.*\.certificate"):
        export_onnx(model, tmp_path / "m.onnx", samples(2, 4), certificate=history)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "error", "named"),
    [
        (["a", "b"], InvalidArgumentError, "2 names"),
        (["a", "b", 3], InvalidTypeError, r"3 at labels\[2\]"),
        ("abc", InvalidTypeError, "str"),
        ({"a": 1}, InvalidTypeError, "dict"),
    ],
)
def test_invalid_labels_are_refused(
    tmp_path: Path, labels: list[str], error: type[Exception], named: str
) -> None:
    """Labels must be strings, one for each class."""
    with pytest.raises(error, match=named):
        export_onnx(linear(), tmp_path / "m.onnx", samples(2, 4), labels=labels)
    assert list(tmp_path.iterdir()) == []


def test_labels_need_an_output_of_classes(tmp_path: Path) -> None:
    """The error names the shape of the output."""
    with pytest.raises(InvalidArgumentError, match=r"\(2, 5, 3\)"):
        export_onnx(linear(), tmp_path / "m.onnx", samples(2, 5, 4), labels=["a", "b", "c"])


@pytest.mark.parametrize(
    ("texts", "error", "named"),
    [
        ({"labels": "x"}, InvalidArgumentError, "'labels'"),
        ({"verification": "x"}, InvalidArgumentError, "'verification'"),
        ({"version": 3}, InvalidTypeError, "'version': 3"),
        (["author"], InvalidTypeError, "list"),
        ({"source": f"{Path.cwd()}/train.py"}, InvalidArgumentError, "source"),
        ({"source": f"{Path.home()}/train.py"}, InvalidArgumentError, "source"),
    ],
)
def test_invalid_metadata_is_refused(
    tmp_path: Path, texts: dict[str, str], error: type[Exception], named: str
) -> None:
    """Reserved keys, values that are not strings, and local paths are refused."""
    with pytest.raises(error, match=named):
        export_onnx(linear(), tmp_path / "m.onnx", samples(2, 4), metadata=texts)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    """Its metadata is kept as text, because the same keys may have another meaning there."""
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"labels": "cat,dog", "names": "{0: 'cat'}", "stride": "32"})
    onnx.save(model, tmp_path / "other.onnx")
    metadata = load_onnx_metadata(tmp_path / "other.onnx")
    assert metadata["extra"] == {"labels": "cat,dog", "names": "{0: 'cat'}", "stride": "32"}
    assert metadata["labels"] is None


def test_a_damaged_self_test_is_read_as_text(tmp_path: Path) -> None:
    """It raises no error, because the rest of the file is still usable."""
    metadata = decode({"self_test": '{"inputs": {"x": "!!"}}'})
    assert metadata["self_test"] is None
    assert metadata["extra"] == {"self_test": '{"inputs": {"x": "!!"}}'}


def test_a_self_test_never_runs_code() -> None:
    """An array of objects, which NumPy would unpickle, is read as text."""
    import base64
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([object], dtype=object), allow_pickle=True)
    text = base64.b64encode(stream.getvalue()).decode()
    told = f'{{"inputs": {{"x": "{text}"}}, "outputs": {{}}, "tolerance": 1}}'
    assert decode({"self_test": told})["self_test"] is None


def test_metadata_survives_a_round_trip(metadata: OnnxMetadata) -> None:
    """Encoding and decoding return equal metadata."""
    again = decode(encode(metadata))
    before, after = metadata["self_test"], again["self_test"]
    assert before is not None
    assert after is not None
    assert np.array_equal(before["outputs"]["output"], after["outputs"]["output"])
    assert {**again, "self_test": None} == {**metadata, "self_test": None}


def test_appending_metadata_keeps_the_existing_bytes(
    tmp_path: Path, exported: ExportReport
) -> None:
    """The metadata is written after the verified content."""
    path = tmp_path / "copy.onnx"
    path.write_bytes(exported.path.read_bytes())
    append_metadata(path, {"more": "text"})
    assert path.read_bytes().startswith(exported.path.read_bytes())
    assert load_onnx_metadata(path)["extra"] == {"author": "somebody", "more": "text"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error contains the path."""
    with pytest.raises(FileMissingError, match="gone"):
        load_onnx_metadata(tmp_path / "gone.onnx")


def test_a_file_that_is_not_a_model_is_named(tmp_path: Path) -> None:
    """The error contains the name of the file."""
    path = tmp_path / "text.onnx"
    path.write_text("not a model at all", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"text\.onnx"):
        load_onnx_metadata(path)


def test_reading_metadata_does_not_require_torch(exported: ExportReport) -> None:
    """A server without PyTorch can read the metadata."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from finetunelib.export import load_onnx_metadata\n"
        f"print(load_onnx_metadata({str(exported.path)!r})['labels'][0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "cat\n", done.stderr
