"""Further dynamic axes than the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from finetunelib import export_onnx
from finetunelib.errors import ExportError, InvalidArgumentError, InvalidTypeError
from finetunelib.export import ExportReport
from support_models import Function, linear, outputs_of, samples, seeded
from support_onnx import run


class Reader(nn.Module):
    """A recurrent classifier of texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        outputs: Tensor = self.head((states * mask[..., None]).sum(1))
        return outputs


def text(batch: int, length: int) -> dict[str, Tensor]:
    """Return tokens and their mask."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    tokens = torch.randint(0, 20, (batch, length), generator=generator)
    return {"tokens": tokens, "mask": torch.ones(batch, length)}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    """A recurrent model with an open length."""
    model = seeded(Reader)
    path = tmp_path_factory.mktemp("reader") / "reader.onnx"
    open_length = {"tokens": {1: "length"}, "mask": {1: "length"}}
    return model, export_onnx(model, path, text(3, 9), dynamic_shapes=open_length)


def test_an_open_axis_has_its_name_in_the_graph(reader: tuple[nn.Module, ExportReport]) -> None:
    """Batch and length stand in the shapes of both inputs."""
    assert [info.shape for info in reader[1].inputs] == [("batch", "length")] * 2


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (5, 17)])
def test_other_lengths_give_what_the_model_gives(
    reader: tuple[nn.Module, ExportReport], batch: int, length: int
) -> None:
    """Shorter and longer texts than the example."""
    model, report = reader
    given = text(batch, length)
    with torch.no_grad():
        expected = model.eval()(**given).numpy()
    np.testing.assert_allclose(run(report.path, **given)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_shorter_batch_is_among_those_compared(
    reader: tuple[nn.Module, ExportReport],
) -> None:
    """The open axis is proven at a second size, too."""
    verification = reader[1].verification
    assert verification is not None
    assert verification.batch_sizes[:4] == (1, 2, 7, 2)
    assert min(verification.sizes["length"]) < 9 < max(verification.sizes["length"])


@pytest.mark.parametrize(
    "shapes", [[{1: "length"}], {"inputs": {1: Dim("length", min=2, max=64)}}, [{-2: "length"}]]
)
def test_axes_are_named_by_order_or_by_input(tmp_path: Path, shapes: Any) -> None:
    """A list in the inputs' order, a dict by name, a Dim with bounds, an axis from the end."""
    report = export_onnx(
        Function(lambda x: x.mean(1)), tmp_path / "m.onnx", samples(3, 6, 4), dynamic_shapes=shapes
    )
    assert report.inputs[0].shape == ("batch", "length", 4)


def test_an_axis_is_dynamic_beside_a_fixed_batch(tmp_path: Path) -> None:
    """`dynamic_batch=False` fixes the batch alone."""
    report = export_onnx(
        linear(), tmp_path / "m.onnx", samples(3, 6, 4), dynamic_batch=False,
        dynamic_shapes=[{1: "length"}],
    )  # fmt: skip
    assert report.inputs[0].shape == (3, "length", 4)
    inputs = samples(3, 9, 4)
    np.testing.assert_allclose(
        run(report.path, inputs)[0], outputs_of(linear(), inputs).numpy(), rtol=1e-4, atol=1e-6
    )


def test_an_axis_that_the_model_fixes_is_an_error(tmp_path: Path) -> None:
    """The size that it is fixed to is named."""
    model = Function(lambda x: x.flatten(1) @ torch.ones(6 * 4, 2))
    with pytest.raises(ExportError, match="fixed to 6"):
        export_onnx(model, tmp_path / "m.onnx", samples(3, 6, 4), dynamic_shapes=[{1: "length"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shapes", "error", "named"),
    [
        ({"images": {1: "length"}}, InvalidArgumentError, "`images`"),
        ([{1: "length"}, None], InvalidArgumentError, "2 entries"),
        ([{3: "length"}], InvalidArgumentError, "axis 3"),
        ([{-4: "length"}], InvalidArgumentError, "axis -4"),
        ([{"1": "length"}], InvalidTypeError, "'1'"),
        ([{1: 6}], InvalidTypeError, "6"),
        ([{1: "a length"}], InvalidArgumentError, "'a length'"),
        ([["length"]], InvalidTypeError, r"\['length'\]"),
        ([{2: "one"}], InvalidArgumentError, "one element"),
    ],
)
def test_other_dynamic_shapes_are_refused(
    tmp_path: Path, shapes: Any, error: type[Exception], named: str
) -> None:
    """What there is not, is named before anything is exported."""
    model = Function(lambda x: x * 2)
    with pytest.raises(error, match=named):
        export_onnx(model, tmp_path / "m.onnx", samples(3, 6, 1), dynamic_shapes=shapes)
    assert list(tmp_path.iterdir()) == []
