"""The public names, their import paths, and the time that importing takes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types

import pytest

import finetunelib

#: Every public name and the package that users import it from, which is its `__module__` too.
PATHS = {
    "Trainer": "finetunelib",
    "__version__": "finetunelib",
    "build_mlp": "finetunelib",
    "export_onnx": "finetunelib",
    "freeze_and_replace_head": "finetunelib",
    "visualize": "finetunelib",
    "MLP": "finetunelib.models",
    "CSVLogger": "finetunelib.callbacks",
    "EMA": "finetunelib.callbacks",
    "EarlyStopping": "finetunelib.callbacks",
    "GradualUnfreezing": "finetunelib.callbacks",
    "ModelCheckpoint": "finetunelib.callbacks",
    "TensorBoardLogger": "finetunelib.callbacks",
    "InMemoryDataset": "finetunelib.data",
    "TensorBatches": "finetunelib.data",
    "in_memory": "finetunelib.data",
    "Certificate": "finetunelib.finetuning",
    "Head": "finetunelib.finetuning",
    "LoadReport": "finetunelib.finetuning",
    "ParameterGroups": "finetunelib.finetuning",
    "find_head": "finetunelib.finetuning",
    "fingerprint": "finetunelib.finetuning",
    "freeze": "finetunelib.finetuning",
    "is_frozen": "finetunelib.finetuning",
    "load_weights": "finetunelib.finetuning",
    "parameter_groups": "finetunelib.finetuning",
    "replace_head": "finetunelib.finetuning",
    "save_weights": "finetunelib.finetuning",
    "unfreeze": "finetunelib.finetuning",
    "cache_features": "finetunelib.finetuning",
    "Accuracy": "finetunelib.training",
    "Callback": "finetunelib.training",
    "History": "finetunelib.training",
    "Diagnosis": "finetunelib.training",
    "Finding": "finetunelib.training",
    "LRFinderResult": "finetunelib.training",
    "MemoryEstimate": "finetunelib.training",
    "estimate_memory": "finetunelib.training",
    "StepOutput": "finetunelib.training",
    "Task": "finetunelib.training",
    "TokenTask": "finetunelib.training",
    "TrainContext": "finetunelib.training",
    "TrainState": "finetunelib.training",
    "diagnose": "finetunelib.training",
    "find_lr": "finetunelib.training",
    "Comparison": "finetunelib.export",
    "ExportReport": "finetunelib.export",
    "OnnxMetadata": "finetunelib.export",
    "SelfTest": "finetunelib.export",
    "TensorInfo": "finetunelib.export",
    "Verification": "finetunelib.export",
    "load_onnx_metadata": "finetunelib.export",
    "verify_onnx": "finetunelib.export",
    "NetronServer": "finetunelib.visualization",
    "Summary": "finetunelib.visualization",
    "SummaryRow": "finetunelib.visualization",
    "plot_confusion": "finetunelib.visualization",
    "plot_history": "finetunelib.visualization",
    "plot_lr_finder": "finetunelib.visualization",
    "plot_predictions": "finetunelib.visualization",
    "summary": "finetunelib.visualization",
    "AmbiguousHeadError": "finetunelib.errors",
    "CheckpointError": "finetunelib.errors",
    "NonFiniteError": "finetunelib.errors",
    "CorruptFileError": "finetunelib.errors",
    "DataError": "finetunelib.errors",
    "DiagnosisWarning": "finetunelib.errors",
    "EmptyDataError": "finetunelib.errors",
    "ExportError": "finetunelib.errors",
    "ExportMismatchError": "finetunelib.errors",
    "FileMissingError": "finetunelib.errors",
    "FinetuneLibError": "finetunelib.errors",
    "FreezeError": "finetunelib.errors",
    "HeadError": "finetunelib.errors",
    "HeadNotFoundError": "finetunelib.errors",
    "InvalidArgumentError": "finetunelib.errors",
    "InvalidInputError": "finetunelib.errors",
    "InvalidTargetError": "finetunelib.errors",
    "InvalidTypeError": "finetunelib.errors",
    "MissingDependencyError": "finetunelib.errors",
    "PathNotWritableError": "finetunelib.errors",
    "ServerError": "finetunelib.errors",
    "TrainingInterrupted": "finetunelib.errors",
    "UnsupportedFileError": "finetunelib.errors",
    "WeightsError": "finetunelib.errors",
    "WeightsMismatchError": "finetunelib.errors",
}

SUB_PACKAGES = sorted({path for path in PATHS.values() if path != "finetunelib"})

#: The entry points, each of which is imported when it is first used.
IMPORT = (
    "from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head, visualize"
)

#: Packages that cost time to import, or that a user may not have.
LATE = (
    "matplotlib",
    "netron",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "safetensors",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "torchvision",
    "transformers",
)


def names_of(package: str) -> list[str]:
    """Return the public names of a package."""
    return sorted(name for name, path in PATHS.items() if path == package)


@pytest.mark.parametrize("package", ["finetunelib", *SUB_PACKAGES])
def test_exported_names_are_the_documented_ones(package: str) -> None:
    """A name enters or leaves the public API only on purpose, and has one import path."""
    assert sorted(importlib.import_module(package).__all__) == names_of(package)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "__version__"])
def test_every_name_has_its_public_path(name: str) -> None:
    """Tracebacks, pickles and docs show the path that users import from."""
    value = getattr(importlib.import_module(PATHS[name]), name)
    assert isinstance(value, type | types.FunctionType)
    assert (value.__module__, value.__qualname__) == (PATHS[name], name)


@pytest.mark.parametrize("package", SUB_PACKAGES)
def test_dir_of_a_sub_package_shows_its_public_names(package: str) -> None:
    """Private modules and imported names would hide them in an editor's completion."""
    assert dir(importlib.import_module(package)) == names_of(package)


def test_dir_of_the_library_shows_its_public_names() -> None:
    """The five functions, the version and the sub-packages."""
    packages = [package.removeprefix("finetunelib.") for package in SUB_PACKAGES]
    assert dir(finetunelib) == sorted([*names_of("finetunelib"), *packages])


#: Parts of the library that only a call needs; `benchmarks/import_time.py` measures the import.
CALLS_NEED = (
    "finetunelib.export._tracing.exporter",
    "finetunelib.export._verification.compare",
    "finetunelib.export._write",
    "finetunelib.finetuning._heads.replace",
    "finetunelib.finetuning._pickles",
    "finetunelib.training._loop.loop",
    "finetunelib.visualization._netron.server",
    "http.server",
)


def test_import_loads_nothing_that_only_a_call_needs() -> None:
    """Other packages and most modules are imported when they are used."""
    code = f"import json, sys; {IMPORT}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    for module in CALLS_NEED:
        assert importlib.util.find_spec(module), module
    assert not {*LATE, *CALLS_NEED}.intersection(json.loads(output))


def test_a_sub_package_is_an_attribute_after_import() -> None:
    """`import finetunelib` is enough for `finetunelib.training.Callback`."""
    code = (
        "import finetunelib\n"
        "assert finetunelib.training.Callback and finetunelib.errors.ExportError\n"
        "assert finetunelib.Trainer\n"
        "assert {'Trainer', 'export', '__version__'} <= set(dir(finetunelib))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["finetunelib", "finetunelib.export"])
def test_a_name_that_does_not_exist_is_an_attribute_error(package: str) -> None:
    """The name is in the message, as for any module."""
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = importlib.import_module(package).nothing
