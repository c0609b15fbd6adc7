"""The five entry points in sequence, as a user of the installed package calls them."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetunelib import Trainer, build_mlp, export_onnx, freeze_and_replace_head, visualize
from finetunelib.finetuning import load_weights, save_weights


def blobs(classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return 40 points around each of several corners of a cube, which a small model separates."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(classes).repeat(40)
    corners = torch.tensor([[float(c >> bit & 1) for bit in range(3)] for c in range(classes)])
    noise = 0.1 * torch.randn(len(targets), 3, generator=generator)
    return corners[targets] + noise, targets


@pytest.mark.slow
def test_build_train_fine_tune_export_and_view(tmp_path: Path) -> None:
    """Both models are accurate, the frozen backbone is unchanged, and the file is verified."""
    train, val = blobs(8, seed=1), blobs(8, seed=2)
    model = build_mlp(3, [32], 8, seed=0)
    history = Trainer(model, lr=0.1, batch_size=16, progress=False).fit(train, val, epochs=20)
    assert history["val_accuracy"][-1] > 0.95

    weights = save_weights(model, tmp_path / "model.safetensors")
    restored = build_mlp(3, [32], 8)
    load_weights(restored, weights)
    backbone = [tensor.clone() for tensor in restored.backbone.state_dict().values()]

    torch.manual_seed(0)
    tuned = freeze_and_replace_head(restored, num_classes=4)
    train, val = blobs(4, seed=3), blobs(4, seed=4)
    trainer = Trainer(tuned, lr=0.1, batch_size=16, progress=False)
    history = trainer.fit(train, val, epochs=20)
    assert history["val_accuracy"][-1] > 0.95
    after = restored.backbone.state_dict().values()
    assert all(map(torch.equal, backbone, after))

    report = export_onnx(tuned, tmp_path / "model.onnx", val[0][:2])
    assert report.verification is not None
    assert report.verification.status == "verified"
    with visualize(report.path, browser=False) as server:
        page = urllib.request.urlopen(server.url, timeout=10).read().decode()
    assert '<meta name="file" content="/data/model.onnx">' in page
