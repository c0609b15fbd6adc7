"""An export above 2 GB, the limit for one file. Run by hand; needs 10 GB of memory and disk.

pytest -m large tests/export/test_large_export.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from conformance.export_models import ROWS, wide
from finetunelib import export_onnx
from finetunelib.export import load_onnx_metadata, verify_onnx
from finetunelib.export._metadata.describe import weights_sha256

pytestmark = pytest.mark.large

#: A square layer of this width takes 2.1 GB, more than a Protocol Buffers file can contain.
WIDTH = 23_200


def test_model_above_2_gb_is_a_verified_pair(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Graph and weights are two files in one folder. They agree with the model."""
    model, samples = wide(WIDTH)
    digest = weights_sha256(model)
    path = tmp_path / "model.onnx"

    report = export_onnx(model, path, samples[:ROWS], labels=list("abcde"))

    data = tmp_path / "model.onnx.data"
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert path.stat().st_size < 1_000_000
    assert data.stat().st_size > 2**31
    assert report.data_path == data
    assert report.size == path.stat().st_size + data.stat().st_size
    assert "weights in model.onnx.data" in str(report)
    assert report.verification is not None
    assert report.verification.status == "verified"
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Exported" in printed.err
    assert weights_sha256(model) == digest

    metadata = load_onnx_metadata(path)
    assert metadata["weights_sha256"] == digest
    assert metadata["labels"] == list("abcde")
    assert metadata["verification"] is not None
    assert metadata["verification"]["status"] == "verified"

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output = np.asarray(session.run(None, {report.inputs[0].name: samples[ROWS:].numpy()})[0])
    with torch.no_grad():
        expected = model(samples[ROWS:]).numpy()
    np.testing.assert_allclose(output, expected, atol=1e-3 * float(np.ptp(expected)))
    del session
    assert verify_onnx(path, model, [samples[ROWS:]]).status == "verified"
