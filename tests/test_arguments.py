"""The checks of arguments that several packages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetunelib._arguments import (
    check_at_least,
    check_model,
    check_whole,
    is_whole,
    uninitialized,
)
from finetunelib.errors import InvalidArgumentError, InvalidTypeError


@pytest.mark.parametrize(
    ("value", "named"),
    [(nn.Linear, "Linear(...)"), (Path("model.pt"), "first argument"), (None, "NoneType")],
    ids=["class", "path", "None"],
)
def test_a_model_that_is_not_a_module_is_an_error(value: object, named: str) -> None:
    """The message says what to pass for the usual mistakes."""
    with pytest.raises(InvalidTypeError) as caught:
        check_model(value)
    assert named in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, np.int64(1)])
def test_only_an_int_is_a_whole_number(value: Any) -> None:
    """`True` and NumPy integers are not whole numbers."""
    assert is_whole(1)
    assert not is_whole(value)
    with pytest.raises(InvalidTypeError, match="`depth`"):
        check_whole(depth=value)


def test_a_number_below_the_least_is_an_error() -> None:
    """The argument, the bound and the value are named."""
    check_at_least(1, epochs=1, steps=2)
    with pytest.raises(InvalidArgumentError, match=r"`steps`.* 1, got 0"):
        check_at_least(1, epochs=1, steps=0)


def test_a_lazy_parameter_is_named() -> None:
    """The error contains its qualified name in the model."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    assert "`1.weight`" in (uninitialized(model) or "")
    assert "`body.1.weight`" in (uninitialized(model, "body") or "")
    assert uninitialized(model, recurse=False) is None
    model(torch.zeros(1, 2))
    assert uninitialized(model) is None


def test_a_lazy_buffer_is_named() -> None:
    """A lazy BatchNorm without affine parameters has nothing but buffers."""
    assert "`running_mean`" in (uninitialized(nn.LazyBatchNorm1d(affine=False)) or "")
