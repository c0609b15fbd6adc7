"""Preprocessing and softmax inside the exported graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from finetunelib import export_onnx
from finetunelib.errors import (
    ExportMismatchError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.export import ExportReport, load_onnx_metadata, verify_onnx
from support_models import Difference, samples, seeded
from support_onnx import run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Tiny(nn.Module):
    """A classifier of images of any size, whose outputs vary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.conv(images).relu().mean((2, 3)) * 5)
        return outputs


def images(*shape: int, seed: int = 3) -> Tensor:
    """Return raw uint8 images with different brightness."""
    generator = torch.Generator().manual_seed(seed)
    light = torch.rand(shape[0], 1, 1, 1, generator=generator)
    return (torch.rand(shape, generator=generator) * light * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    """A model exported with normalization before it and a softmax after it."""
    model = seeded(Tiny)
    path = tmp_path_factory.mktemp("pipeline") / "m.onnx"
    report = export_onnx(model, path, images(3, 3, 8, 8), preprocessing=(MEAN, STD), softmax=True)
    return model, report


def test_a_file_with_mean_and_std_accepts_raw_images(
    pipeline: tuple[nn.Module, ExportReport],
) -> None:
    """The file accepts uint8 images and returns what the pipeline in Python returns."""
    model, report = pipeline
    raw = images(5, 3, 8, 8, seed=9)
    normalized = v2.functional.normalize(raw.float() / 255, list(MEAN), list(STD))
    with torch.no_grad():
        expected = model.eval()(normalized).softmax(1).numpy()
    (output,) = run(report.path, raw)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert report.inputs[0].dtype == "uint8"
    assert report.verification is not None
    assert report.verification.status == "verified"


def test_a_softmax_returns_probabilities(pipeline: tuple[nn.Module, ExportReport]) -> None:
    """The output is named `probabilities` and sums to 1 over the classes."""
    _, report = pipeline
    assert report.outputs[0].name == "probabilities"
    (output,) = run(report.path, images(4, 3, 8, 8))
    np.testing.assert_allclose(output.sum(1), 1, rtol=1e-6)


def test_the_metadata_describes_preprocessing_and_postprocessing(
    pipeline: tuple[nn.Module, ExportReport],
) -> None:
    """The metadata contains the mean and the softmax, which users must not apply again."""
    metadata = load_onnx_metadata(pipeline[1].path)
    assert "mean=[0.5, 0.4, 0.3]" in str(metadata["preprocessing"])
    assert metadata["postprocessing"] == "softmax"


def test_a_file_with_a_pipeline_is_verified_with_the_same_arguments(
    pipeline: tuple[nn.Module, ExportReport],
) -> None:
    """`verify_onnx` accepts the same preprocessing arguments as `export_onnx`."""
    model, report = pipeline
    raw = images(6, 3, 8, 8)
    assert (
        verify_onnx(report.path, model, [raw], preprocessing=(MEAN, STD), softmax=True).status
        == "verified"
    )
    with pytest.raises(ExportMismatchError):
        verify_onnx(report.path, model, [raw], preprocessing=(0.1, STD), softmax=True)


def test_weights_keep_their_names_in_the_model(
    pipeline: tuple[nn.Module, ExportReport],
) -> None:
    """The wrapper around the model does not change the names of its weights."""
    import onnx

    names = {tensor.name for tensor in onnx.load(pipeline[1].path).graph.initializer}
    assert {"conv.weight", "conv.bias", "head.weight", "head.bias"} <= names


@pytest.mark.slow
def test_a_torchvision_preset_resizes_and_crops_in_the_graph(tmp_path: Path) -> None:
    """For images of any height and width, the file returns what Python returns."""
    model, preset = seeded(Tiny), ImageClassification(crop_size=48, resize_size=56)
    report = export_onnx(
        model,
        tmp_path / "m.onnx",
        images(4, 3, 80, 104),
        preprocessing=preset,
        dynamic_shapes=[{2: "height", 3: "width"}],
    )
    assert report.inputs[0].shape == ("batch", 3, "height", "width")
    for shape in ((3, 3, 80, 104), (1, 3, 122, 94)):
        raw = images(*shape, seed=5)
        with torch.no_grad():
            expected = model.eval()(preset(raw)).numpy()
        (output,) = run(report.path, raw)
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3)


def test_preprocessing_may_be_a_custom_module(tmp_path: Path) -> None:
    """A custom module is exported as preprocessing."""

    class Halved(nn.Module):
        def forward(self, raw: Tensor) -> Tensor:
            return raw.float() / 510

    model = seeded(Tiny)
    report = export_onnx(model, tmp_path / "m.onnx", images(2, 3, 8, 8), preprocessing=Halved())
    raw = images(3, 3, 8, 8, seed=7)
    with torch.no_grad():
        expected = model.eval()(raw.float() / 510).numpy()
    np.testing.assert_allclose(run(report.path, raw)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_dict_of_inputs_and_a_softmax(tmp_path: Path) -> None:
    """Inputs passed as a dict keep their names, whatever their order."""
    report = export_onnx(
        Difference(),
        tmp_path / "m.onnx",
        {"right": samples(3, 4, seed=1), "left": samples(3, 4, seed=2)},
        softmax=True,
    )
    left, right = samples(2, 4, seed=3), samples(2, 4, seed=4)
    (output,) = run(report.path, left=left, right=right)
    np.testing.assert_allclose(output, (left - 2 * right).softmax(1).numpy(), rtol=1e-5)


def test_images_that_are_already_scaled_are_refused(tmp_path: Path) -> None:
    """The error names the dtype and is raised before anything is exported."""
    with pytest.raises(InvalidInputError, match=r"uint8.*torch\.float32"):
        export_onnx(
            seeded(Tiny), tmp_path / "m.onnx", samples(2, 3, 8, 8), preprocessing=(MEAN, STD)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("preprocessing", "error", "named"),
    [
        ("normalize", InvalidTypeError, "str"),
        ((0.5,), InvalidTypeError, "tuple"),
        (("a", 1.0), InvalidTypeError, "'a'"),
        ((0.5, 0.0), InvalidArgumentError, r"0\.0"),
        (([[0.5]], 1.0), InvalidArgumentError, r"\[\[0\.5\]\]"),
        ((lambda raw: raw), InvalidTypeError, "function"),
    ],
)
def test_invalid_preprocessing_is_refused(
    tmp_path: Path, preprocessing: object, error: type[Exception], named: str
) -> None:
    """The error names the invalid value or its type."""
    with pytest.raises(error, match=named):
        export_onnx(
            seeded(Tiny),
            tmp_path / "m.onnx",
            images(2, 3, 8, 8),
            preprocessing=preprocessing,  # type: ignore[arg-type]
        )


def test_preprocessing_of_several_inputs_is_refused(tmp_path: Path) -> None:
    """The error names the number of inputs."""
    both = (images(2, 3, 8, 8), images(2, 3, 8, 8))
    with pytest.raises(InvalidArgumentError, match="got 2"):
        export_onnx(Difference(), tmp_path / "m.onnx", both, preprocessing=(0.5, 0.5))


def test_a_softmax_needs_an_output_of_shape_batch_and_classes(tmp_path: Path) -> None:
    """The error names the shape of the output."""
    with pytest.raises(InvalidArgumentError, match=r"\(2, 5, 3\)"):
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", samples(2, 5, 4), softmax=True)


def test_structured_metadata_is_stored_as_json(
    pipeline: tuple[nn.Module, ExportReport],
) -> None:
    """Programs in other languages can parse the verification."""
    import onnx

    texts = {entry.key: entry.value for entry in onnx.load(pipeline[1].path).metadata_props}
    assert json.loads(texts["verification"])["status"] == "verified"
