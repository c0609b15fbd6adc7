"""Dynamic axes other than the batch."""

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
    """A recurrent model with a dynamic length."""
    model = seeded(Reader)
    path = tmp_path_factory.mktemp("reader") / "reader.onnx"
    open_length = {"tokens": {1: "length"}, "mask": {1: "length"}}
    return model, export_onnx(model, path, text(3, 9), dynamic_shapes=open_length)


def test_a_dynamic_axis_is_named_in_the_graph(reader: tuple[nn.Module, ExportReport]) -> None:
    """The shapes of both inputs contain the names of the batch and the length."""
    assert [info.shape for info in reader[1].inputs] == [("batch", "length")] * 2


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (5, 17)])
def test_the_file_agrees_with_the_model_at_other_lengths(
    reader: tuple[nn.Module, ExportReport], batch: int, length: int
) -> None:
    """Texts may be shorter or longer than the example."""
    model, report = reader
    given = text(batch, length)
    with torch.no_grad():
        expected = model.eval()(**given).numpy()
    np.testing.assert_allclose(run(report.path, **given)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_verification_covers_other_lengths(
    reader: tuple[nn.Module, ExportReport],
) -> None:
    """The file is compared at lengths below and above that of the example."""
    verification = reader[1].verification
    assert verification is not None
    assert verification.batch_sizes[:4] == (1, 2, 7, 2)
    assert min(verification.sizes["length"]) < 9 < max(verification.sizes["length"])


@pytest.mark.parametrize(
    "shapes", [[{1: "length"}], {"inputs": {1: Dim("length", min=2, max=64)}}, [{-2: "length"}]]
)
def test_axes_are_named_by_order_or_by_input(tmp_path: Path, shapes: Any) -> None:
    """Accepts lists in the order of the inputs, dicts by name, bounded `Dim`s and negative axes."""
    report = export_onnx(
        Function(lambda x: x.mean(1)), tmp_path / "m.onnx", samples(3, 6, 4), dynamic_shapes=shapes
    )
    assert report.inputs[0].shape == ("batch", "length", 4)


def test_an_axis_can_be_dynamic_with_a_fixed_batch(tmp_path: Path) -> None:
    """`dynamic_batch=False` fixes only the batch."""
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
    """The error names the fixed size."""
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
def test_invalid_dynamic_shapes_are_refused(
    tmp_path: Path, shapes: Any, error: type[Exception], named: str
) -> None:
    """The error names the invalid entry and is raised before anything is exported."""
    model = Function(lambda x: x * 2)
    with pytest.raises(error, match=named):
        export_onnx(model, tmp_path / "m.onnx", samples(3, 6, 1), dynamic_shapes=shapes)
    assert list(tmp_path.iterdir()) == []
