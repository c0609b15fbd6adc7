"""Models and arguments that are refused at the door, and some that must not be."""

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
    """A model whose state holds something else than tensors too."""

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
    """A file of a small model."""
    return write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3))


@pytest.mark.slow
def test_a_state_of_more_than_tensors_is_no_obstacle(tmp_path: Path) -> None:
    """What a module keeps beside its tensors does not go into a file."""
    report = export_onnx(WithState(), tmp_path / "model.onnx", samples(2, 4))
    assert report.verification is not None
    assert report.verification.status == "verified"


def test_lazy_layers_are_an_error_and_stay_lazy(tmp_path: Path) -> None:
    """A dry run would give the model its weights."""
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "model.onnx", samples(2, 4))
    assert "lazy" in str(caught.value)
    assert isinstance(model[0], nn.LazyLinear)


def test_a_tolerance_that_everything_meets_is_an_error(file: Path) -> None:
    """Infinity would verify any file."""
    for call in (
        lambda: verify_onnx(file, linear(), [samples(2, 4)], tolerance=float("inf")),
        lambda: export_onnx(linear(), file, samples(2, 4), tolerance=float("inf")),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert "`tolerance`" in str(caught.value)
        assert "inf" in str(caught.value)


@pytest.mark.parametrize("inputs", [torch.ones(2, 4), {"inputs": torch.ones(2, 4)}])
def test_one_batch_in_place_of_a_list_is_an_error(file: Path, inputs: Any) -> None:
    """The message says how to pass it."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, linear(), inputs)
    assert "`[inputs]`" in str(caught.value)


def test_something_else_than_a_module_is_an_error(file: Path) -> None:
    """The type is named."""
    with pytest.raises(InvalidTypeError) as caught:
        verify_onnx(file, len, [samples(2, 4)])  # type: ignore[arg-type]
    assert "builtin_function_or_method" in str(caught.value)
