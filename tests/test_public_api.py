"""What users import: the names, where they live, and what importing costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types

import pytest

NAMES = {
    "finetunelib": [
        "Trainer",
        "__version__",
        "build_mlp",
        "export_onnx",
        "freeze_and_replace_head",
        "visualize",
    ],
    "finetunelib.models": ["MLP"],
    "finetunelib.callbacks": [
        "CSVLogger",
        "EMA",
        "EarlyStopping",
        "ModelCheckpoint",
        "TensorBoardLogger",
    ],
    "finetunelib.data": ["InMemoryDataset", "TensorBatches", "in_memory"],
    "finetunelib.finetuning": [
        "Certificate",
        "Head",
        "LoadReport",
        "find_head",
        "fingerprint",
        "freeze",
        "is_frozen",
        "load_weights",
        "replace_head",
        "save_weights",
        "unfreeze",
    ],
    "finetunelib.training": [
        "Accuracy",
        "Callback",
        "History",
        "StepOutput",
        "Task",
        "TrainContext",
        "TrainState",
    ],
    "finetunelib.export": [
        "Comparison",
        "ExportReport",
        "OnnxMetadata",
        "SelfTest",
        "TensorInfo",
        "Verification",
        "load_onnx_metadata",
        "verify_onnx",
    ],
    "finetunelib.visualization": [
        "NetronServer",
        "Summary",
        "SummaryRow",
        "plot_confusion",
        "plot_history",
        "plot_predictions",
        "summary",
    ],
}

#: All five names: each is imported when it is first asked for.
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


@pytest.mark.parametrize("package", NAMES)
def test_exported_names_are_the_documented_ones(package: str) -> None:
    """A name enters or leaves the public API only on purpose."""
    assert sorted(importlib.import_module(package).__all__) == NAMES[package]


@pytest.mark.parametrize("package", NAMES)
def test_every_name_says_its_public_path(package: str) -> None:
    """Tracebacks, pickles and docs show the path that users import from."""
    module = importlib.import_module(package)
    for name in NAMES[package]:
        value = getattr(module, name)
        if isinstance(value, type | types.FunctionType):
            assert (value.__module__, value.__qualname__) == (package, name)


def test_each_name_has_one_import_path() -> None:
    """No public name stands in two packages."""
    names = [name for names in NAMES.values() for name in names]
    assert len(names) == len(set(names))


def test_import_loads_no_late_package() -> None:
    """Importing the five functions imports neither optional packages nor slow ones."""
    code = f"import json, sys; {IMPORT}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert not set(LATE).intersection(json.loads(output))


@pytest.mark.slow
def test_import_costs_at_most_a_tenth_more_than_torch() -> None:
    """The library's own share of its import is small beside torch's, in one process."""
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter();"
        f"{IMPORT}; c = time.perf_counter(); print((c - b) / (b - a))"
    )
    shares = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    # The smallest of three: a busy machine only ever adds.
    assert min(shares) <= 0.1


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
    """As of any module, with the name in it."""
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = importlib.import_module(package).nothing
