"""Small real programs with a loss of outputs and targets.

Each has the weights of its hand-written loop bit for bit, and the metrics of scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryF1Score,
    MulticlassJaccardIndex,
    MultilabelF1Score,
)

from finetunelib import build_mlp
from finetunelib.training import Accuracy
from integration.programs import BATCH, Program, numbers

CLOSE: dict[str, Any] = {"rel": 1e-5}  # means of float32 and float64 numbers


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error."""
    return (outputs - targets).abs().mean()


def test_regression() -> None:
    """Two outputs, squared error."""
    inputs = numbers(90, 5)
    targets = torch.stack([inputs.sum(1), inputs[:, 0] - inputs[:, 1]], 1) + numbers(90, 2, seed=1)
    train, val = (inputs[:60], targets[:60]), (inputs[60:], targets[60:])
    mse = nn.MSELoss()
    program = Program(
        lambda: build_mlp(5, [8], 2, dropout=0.2), lambda m, b: mse(m(b[0]), b[1]), train
    )
    trainer = program.trained(val, loss_fn=mse, metrics={"mae": absolute_error})
    outputs = trainer.predict(val[0])
    row = trainer.history.rows[-1]
    assert row["val_loss"] == pytest.approx(metrics.mean_squared_error(val[1], outputs), **CLOSE)
    assert row["val_mae"] == pytest.approx(metrics.mean_absolute_error(val[1], outputs), **CLOSE)


def test_binary_classification() -> None:
    """One logit, with a weight for the rare class."""
    inputs = numbers(120, 6)
    targets = (inputs[:, :1] + 0.5 * numbers(120, 1, seed=1) > 0.8).float()
    train, val = (inputs[:80], targets[:80]), (inputs[80:], targets[80:])
    bce = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
    program = Program(lambda: build_mlp(6, [8], 1), lambda m, b: bce(m(b[0]), b[1]), train)
    trainer = program.trained(
        val, loss_fn=bce, metrics={"f1": BinaryF1Score(), "auc": _Flat(BinaryAUROC())}
    )
    scores, truth = trainer.predict(val[0])[:, 0], val[1][:, 0]
    found = trainer.evaluate(val)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, scores > 0), **CLOSE)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores), **CLOSE)


class _Flat:
    """Passes the targets of a column to a metric as whole numbers."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.metric.update(outputs[:, 0], targets[:, 0].long())

    def compute(self) -> float:
        return float(self.metric.compute())

    def reset(self) -> None:
        self.metric.reset()


def test_multi_label_classification() -> None:
    """Four labels for each sample."""
    inputs = numbers(120, 6)
    targets = (inputs[:, :4] + 0.5 * numbers(120, 4, seed=1) > 0).float()
    train, val = (inputs[:80], targets[:80]), (inputs[80:], targets[80:])
    bce = nn.BCEWithLogitsLoss()
    program = Program(
        lambda: build_mlp(6, [16], 4, normalization=nn.BatchNorm1d),
        lambda m, b: bce(m(b[0]), b[1]),
        train,
    )
    f1 = MultilabelF1Score(num_labels=4, average="macro")
    trainer = program.trained(val, loss_fn=bce, metrics={"f1": f1})
    expected = metrics.f1_score(val[1], trainer.predict(val[0]) > 0, average="macro")
    assert trainer.evaluate(val)["f1"] == pytest.approx(expected, **CLOSE)


def test_segmentation_with_ignored_pixels() -> None:
    """The border of each image, with the class 255, counts in neither the loss nor the metrics."""
    inputs = numbers(40, 2, 8, 8)
    targets = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
    targets[:, 0] = targets[:, :, 0] = 255
    train, val = (inputs[:30], targets[:30]), (inputs[30:], targets[30:])
    loss = nn.CrossEntropyLoss(ignore_index=255)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)
        )

    program = Program(make, lambda m, b: loss(m(b[0]), b[1]), train)
    iou = MulticlassJaccardIndex(num_classes=3, ignore_index=255)
    trainer = program.trained(val, loss_fn=loss, metrics={"iou": iou})
    logits = trainer.predict(val[0])
    counted = val[1] != 255
    truth, found = val[1][counted], logits.argmax(1)[counted]
    values = trainer.evaluate(val)
    expected = metrics.jaccard_score(truth, found, average="macro")
    assert values["iou"] == pytest.approx(expected, **CLOSE)
    probabilities = logits.double().softmax(1).movedim(1, -1)[counted]
    assert values["loss"] == pytest.approx(metrics.log_loss(truth, probabilities), **CLOSE)


class Tagger(nn.Module):
    """Returns logits `(batch, classes, length)` for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.mix = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.embedding(tokens))[0])
        return logits.movedim(-1, 1)


def test_token_classification() -> None:
    """Sentences of different lengths; the targets of padding are -100."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (70, 7), generator=generator)
    lengths = torch.randint(2, 8, (70, 1), generator=generator)
    tokens[torch.arange(7) >= lengths] = 0
    tags = torch.where(tokens == 0, -100, tokens % 3)
    train, val = (tokens[:50], tags[:50]), (tokens[50:], tags[50:])
    loss = nn.CrossEntropyLoss()
    program = Program(Tagger, lambda m, b: loss(m(b[0]), b[1]), train)
    trainer = program.trained(val, loss_fn=loss, metrics={"accuracy": Accuracy()})
    counted = val[1] != -100
    logits = trainer.predict(val[0])
    truth, found = val[1][counted], logits.argmax(1)[counted]
    values = trainer.evaluate(val)
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(truth, found))
    probabilities = logits.double().softmax(1).movedim(1, -1)[counted]
    assert values["loss"] == pytest.approx(metrics.log_loss(truth, probabilities), **CLOSE)


class Forecaster(nn.Module):
    """Predicts the next two values of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(1, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, series: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cells(series)[0][:, -1])
        return outputs


def test_time_series() -> None:
    """Windows of a noisy sine, with a loss that is robust to outliers."""
    series = torch.sin(torch.arange(120) / 5.0) + 0.1 * numbers(120)
    windows = series.unfold(0, 12, 1)
    inputs, targets = windows[:, :10, None].contiguous(), windows[:, 10:].contiguous()
    train, val = (inputs[:80], targets[:80]), (inputs[80:], targets[80:])
    loss = nn.HuberLoss()
    program = Program(Forecaster, lambda m, b: loss(m(b[0]), b[1]), train)
    trainer = program.trained(val, loss_fn=loss, metrics={"mae": absolute_error})
    expected = metrics.mean_absolute_error(val[1], trainer.predict(val[0]))
    assert trainer.evaluate(val)["mae"] == pytest.approx(expected, **CLOSE)


class Tabular(nn.Module):
    """Embeds two categories and adds numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(4, 2)])
        self.norm = nn.BatchNorm1d(6)
        self.layers = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = [layer(categories[:, i]) for i, layer in enumerate(self.embeddings)]
        logits: Tensor = self.layers(torch.cat([*embedded, self.norm(numbers)], 1))
        return logits


def test_tabular_data_with_embeddings() -> None:
    """Inputs by name, in ready batches, with class weights in the loss."""
    generator = torch.Generator().manual_seed(0)
    categories = torch.randint(0, 4, (112, 2), generator=generator)
    values = numbers(112, 6)
    targets = (categories[:, 0] + (values[:, 0] > 0).long()) % 3
    batches = [
        ({"categories": categories[a : a + BATCH], "numbers": values[a : a + BATCH]}, t)
        for a, t in zip(range(0, 112, BATCH), torch.split(targets, BATCH), strict=True)
    ]
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    program = Program(Tabular, lambda m, b: loss(m(**b[0]), b[1]), batches[:5])
    trainer = program.trained(batches[5:], loss_fn=loss, metrics={"accuracy": Accuracy()})
    found, truth = trainer.predict(batches[5:]).argmax(1), targets[80:]
    row = trainer.history.rows[-1]
    assert row["val_accuracy"] == pytest.approx(metrics.accuracy_score(truth, found))
    weights = np.array([1.0, 2.0, 0.5])[truth]
    probabilities = trainer.predict(batches[5:]).double().softmax(1)
    expected = metrics.log_loss(truth, probabilities, sample_weight=weights)
    assert row["val_loss"] == pytest.approx(expected, **CLOSE)
