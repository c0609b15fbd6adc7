"""Evaluating and predicting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _parts.paired import HAND, Prepared, alternate, with_noise
from _peers.base import Arrays, Job
from _peers.names import peer_of
from finetunelib import build_mlp


def measure(names: Sequence[str], rounds: int, folder: Path, rows: int = 10_000) -> dict[str, Any]:
    """Return the times of `evaluate` and `predict` on an MLP, whose results must agree."""
    torch.manual_seed(0)
    data = torch.rand(rows, 784), torch.randint(0, 10, (rows,))
    model, job = build_mlp(784, [500], 10, seed=0), Job(folder=folder)
    expected = peer_of(HAND)(model, job).predict(data[0])
    labels = with_noise(names)
    evaluations = {label: partial(_evaluation, name, model, job, data) for label, name in labels}
    predictions = {
        label: partial(_prediction, name, model, job, data[0], expected) for label, name in labels
    }
    return {"evaluate": alternate(evaluations, rounds), "predict": alternate(predictions, rounds)}


def _evaluation(name: str, model: nn.Module, job: Job, data: Arrays) -> Prepared:
    peer = peer_of(name)(model, job)
    return partial(peer.evaluate, data)


def _prediction(
    name: str, model: nn.Module, job: Job, inputs: Tensor, expected: Tensor
) -> Prepared:
    peer = peer_of(name)(model, job)

    def predict() -> None:
        outputs = peer.predict(inputs)
        if not torch.allclose(outputs, expected, atol=1e-4):
            raise RuntimeError("The predictions differ from those of the hand-written loop.")

    return predict
