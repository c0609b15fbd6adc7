"""A wrong file is never reported as verified."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from finetunelib import export_onnx
from finetunelib.errors import FinetuneLibError
from support_wrong_models import WRONG, Call

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_not_verified(tmp_path: Path, name: str) -> None:
    """The export raises an error, or the comparison is inconclusive and gives its reasons."""
    wrong = WRONG[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = export_onnx(
                Call(wrong.function), tmp_path / "wrong.onnx", wrong.example, **wrong.options
            )
    except FinetuneLibError:
        assert list(tmp_path.iterdir()) == []
        return
    assert report.verification is not None
    assert report.verification.status == "inconclusive", report
    assert report.verification.reasons


def test_there_are_many_wrong_files() -> None:
    """Removing models from the collection does not go unnoticed."""
    assert len(WRONG) >= 50
