"""Small real programs whose loss needs a task.

Each has the weights of its hand-written loop bit for bit, and the metrics of scikit-learn.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from finetunelib import build_mlp
from finetunelib.data import TensorBatches
from finetunelib.training import Accuracy, StepOutput, Task
from integration.programs import BATCH, EPOCHS, Program, epochs_of, numbers, seeded

CLOSE: dict[str, Any] = {"rel": 1e-5}  # means of float32 and float64 numbers


class Language(nn.Module):
    """Predicts the next token: logits `(batch, classes, length)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.cells = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cells(self.embedding(tokens))[0])
        return logits.movedim(-1, 1)


class NextToken(Task):
    """Compares each position with the next token; 0 is padding."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        (tokens,) = batch
        targets = torch.where(tokens[:, 1:] == 0, -100, tokens[:, 1:])
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits, targets)
        return StepOutput(loss, logits, targets, weight=(targets != -100).sum())


def test_causal_language_model() -> None:
    """The loss is a mean over tokens, not over sentences."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(1, 12, (80, 1), generator=generator)
    tokens = (start + 2 * torch.arange(9)) % 11 + 1
    tokens[torch.arange(9) >= torch.randint(4, 10, (80, 1), generator=generator)] = 0
    train = TensorBatches(tokens[:56], batch_size=BATCH)
    val = TensorBatches(tokens[56:], batch_size=BATCH)
    task = NextToken()
    program = Program(Language, lambda m, b: task.step(m, b).loss, train)
    trainer = program.trained(val, task=task, metrics={"accuracy": Accuracy()})
    with torch.no_grad():
        output = task.step(trainer.model, (tokens[56:],))
    counted = output.targets != -100
    truth, logits = output.targets[counted], output.outputs.movedim(1, -1)[counted]
    row = trainer.history.rows[-1]
    expected = metrics.accuracy_score(truth, logits.argmax(-1))
    assert row["val_accuracy"] == pytest.approx(expected)
    probabilities = logits.double().softmax(-1)
    expected = metrics.log_loss(truth, probabilities, labels=range(12))
    assert row["val_loss"] == pytest.approx(expected, **CLOSE)


class Pair(Task):
    """Compares two inputs by the distance of their embeddings."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        left, right, same = batch
        distance = (model(left) - model(right)).square().sum(1)
        loss = (same * distance + (1 - same) * (2 - distance).clamp_min(0)).mean()
        return StepOutput(loss, -distance, same.long(), weight=len(same))


def test_siamese_pair() -> None:
    """One network for both inputs; the score is the negative distance."""
    kinds = torch.arange(120) % 4
    centers = numbers(4, 5)
    left, right = centers[kinds] + 0.5 * numbers(120, 5), numbers(120, 5, seed=1)
    same = (torch.arange(120) % 3 == 0).float()
    right = torch.where(same[:, None] > 0, centers[kinds], centers[(kinds + 1) % 4]) + 0.5 * right
    train = TensorBatches(left[:80], right[:80], same[:80], batch_size=BATCH)
    val = TensorBatches(left[80:], right[80:], same[80:], batch_size=BATCH)
    task = Pair()
    program = Program(
        lambda: build_mlp(5, [8], 3), lambda m, b: task.step(m, b).loss, train, torch.optim.SGD
    )
    trainer = program.trained(val, task=task, metrics={"auc": _Probability(BinaryAUROC())})
    expected = metrics.roc_auc_score(same[80:], trainer.predict(val))
    assert trainer.evaluate(val)["auc"] == pytest.approx(expected, **CLOSE)


class _Probability:
    """Passes scores to a metric of probabilities."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.metric.update(outputs.double().exp(), targets)

    def compute(self) -> float:
        return float(self.metric.compute())

    def reset(self) -> None:
        self.metric.reset()


class Autoencoder(nn.Module):
    """A variational autoencoder, which draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(inputs).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


class Evidence(Task):
    """The evidence lower bound; targets are the inputs."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        (inputs,) = batch
        outputs, mean, log_variance = model(inputs)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
        loss = (outputs - inputs).square().sum(1).mean() + divergence
        return StepOutput(loss, outputs, inputs, weight=len(inputs))


def test_variational_autoencoder() -> None:
    """The noise depends on the seed and the epoch only, so both loops draw the same."""
    inputs = numbers(90, 2) @ numbers(2, 6, seed=1)
    train = TensorBatches(inputs[:60], batch_size=BATCH)
    val = TensorBatches(inputs[60:], batch_size=BATCH)
    task = Evidence()
    program = Program(Autoencoder, lambda m, b: task.step(m, b).loss, train)

    def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    trainer = program.trained(val, task=task, metrics={"mse": squared_error})
    expected = metrics.mean_squared_error(inputs[60:], trainer.predict(val))
    assert trainer.evaluate(val)["mse"] == pytest.approx(expected, **CLOSE)


class Distillation(Task):
    """Learns from the probabilities of a teacher, at a temperature that is learned too."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        logits = model(inputs)
        soft = (self.teacher(inputs) / self.temperature).softmax(1)
        loss = nn.functional.cross_entropy(logits / self.temperature, soft)
        loss = loss + nn.functional.cross_entropy(logits, targets)
        return StepOutput(loss, logits, targets, weight=len(targets))

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch[0])
        return outputs


def test_distillation() -> None:
    """The student and the temperature are trained, and the frozen teacher is not."""
    inputs = numbers(120, 6)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    train, val = (inputs[:80], targets[:80]), (inputs[80:], targets[80:])
    teacher = seeded(lambda: build_mlp(6, [32], 3, normalization=nn.BatchNorm1d))
    task, by_hand = Distillation(teacher), Distillation(copy.deepcopy(teacher))
    before = copy.deepcopy(teacher.state_dict())
    program = Program(lambda: build_mlp(6, [8], 3), lambda m, b: by_hand.step(m, b).loss, train)
    expected, losses = program.by_hand([by_hand.temperature])
    trainer = program.trained_with(expected, val, task=task, metrics={"accuracy": Accuracy()})
    assert torch.equal(task.temperature, by_hand.temperature)
    assert task.temperature.item() != 2.0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    found = trainer.predict(val[0]).argmax(1)
    accuracy = metrics.accuracy_score(val[1], found)
    assert trainer.evaluate(val)["accuracy"] == pytest.approx(accuracy)
    assert len(list(epochs_of(train))) == EPOCHS
    assert trainer.history["train_loss"][-1] == pytest.approx(sum(losses) / len(losses), **CLOSE)
