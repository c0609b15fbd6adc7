"""Models and arguments that are refused before the export, and some that must be accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import export_onnx
from finetunelib.errors import ExportError, InvalidArgumentError, InvalidTypeError
from finetunelib.export import verify_onnx
from support_models import linear, samples
from support_onnx import write_mlp


class WithState(nn.Module):
    """A model whose state contains more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An ONNX file of a small model."""
    return write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3))


@pytest.mark.slow
def test_a_model_with_extra_state_is_exported(tmp_path: Path) -> None:
    """The extra state of a module is not written to the file."""
    report = export_onnx(WithState(), tmp_path / "model.onnx", samples(2, 4))
    assert report.verification is not None
    assert report.verification.status == "verified"


def test_lazy_layers_are_an_error_and_stay_lazy(tmp_path: Path) -> None:
    """The model is not run, because a forward pass would initialize its weights."""
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 4))
    assert "lazy" in str(caught.value)
    assert isinstance(model[0], nn.LazyLinear)


def test_an_infinite_tolerance_is_an_error(file: Path) -> None:
    """Any file would be verified with it."""
    for call in (
        lambda: verify_onnx(file, linear(), [samples(2, 4)], tolerance=float("inf")),
        lambda: export_onnx(linear(), file, samples(2, 4), tolerance=float("inf")),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert "`tolerance`" in str(caught.value)
        assert "inf" in str(caught.value)


@pytest.mark.parametrize("inputs", [torch.ones(2, 4), {"inputs": torch.ones(2, 4)}])
def test_one_batch_instead_of_a_list_is_an_error(file: Path, inputs: Any) -> None:
    """The error says how to pass the batch."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, linear(), inputs)
    assert "`[inputs]`" in str(caught.value)


def test_a_model_that_is_not_a_module_is_an_error(file: Path) -> None:
    """The error names the type."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, len, [samples(2, 4)])  # type: ignore[arg-type]
    assert "builtin_function_or_method" in str(caught.value)
