"""Samples that count differently: in the loss, the gradients and the metrics."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import Trainer, build_mlp
from finetunelib.data import TensorBatches
from finetunelib.errors import (
    DataError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.training import Accuracy, StepOutput, Task, TokenTask

ROWS = 22
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(ROWS, 6, generator=GENERATOR)
CLASSES = torch.arange(ROWS) % 3
IGNORING = CLASSES.masked_fill(torch.arange(ROWS) % 5 == 0, -100)
NUMBERS = torch.randn(ROWS, 3, generator=GENERATOR)
LABELS = (NUMBERS > 0).float()
PROBABILITIES = NUMBERS.softmax(1)
#: Whole numbers: a sample with the weight 2 counts like two samples.
WEIGHTS = torch.arange(ROWS) % 4
REPEATED = torch.arange(ROWS).repeat_interleave(WEIGHTS)


class OwnLoss(nn.Module):
    """A user's loss, which follows its attribute `reduction`."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean, or one value for each sample."""
        losses = (outputs - targets).square().sum(1)
        return losses if self.reduction == "none" else losses.mean()


def own_function(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean, or one value for each sample."""
    losses = (outputs - targets).abs().sum(1)
    return losses if reduction == "none" else losses.mean()


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
LOSSES: dict[str, tuple[Any, Tensor]] = {
    "default": (None, CLASSES),
    "ignored targets": (None, IGNORING),
    "class weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.1), IGNORING),
    "probabilities": (nn.CrossEntropyLoss(CLASS_WEIGHTS), PROBABILITIES),
    "a function": (functional.cross_entropy, CLASSES),
    "a partial": (functools.partial(functional.cross_entropy, weight=CLASS_WEIGHTS), IGNORING),
    "squares": (nn.MSELoss(), NUMBERS),
    "labels": (nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), LABELS),
    "margins": (nn.MultiMarginLoss(), CLASSES),
    "a module of the user's": (OwnLoss(), NUMBERS),
    "a function of the user's": (own_function, NUMBERS),
}


def network() -> nn.Module:
    """Return a small network, always the same."""
    return build_mlp(6, [8], 3, seed=0)


def trainer(**options: Any) -> Trainer:
    """Return a silent Trainer."""
    return Trainer(network(), progress=False, **options)


def weighted(targets: Tensor, size: int = ROWS, **options: Any) -> TensorBatches:
    """Return batches whose samples have weights."""
    options = {"sample_weight": WEIGHTS} | options
    return TensorBatches(INPUTS, targets, batch_size=size, **options)


def close(one: nn.Module, other: nn.Module, tolerance: float = 2e-6) -> bool:
    """Return whether the weights of two models are equal to rounding."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("case", LOSSES)
def test_a_weight_counts_like_repeated_samples(case: str) -> None:
    """The loss, the gradients, and in accumulated micro-batches too."""
    loss_fn, targets = LOSSES[case]
    repeated = trainer(loss_fn=loss_fn, batch_size=len(REPEATED), lr=0.1)
    repeated.fit((INPUTS[REPEATED], targets[REPEATED]), epochs=2)
    for size, steps in ((ROWS, 1), (4, 6)):
        used = trainer(loss_fn=loss_fn, lr=0.1, gradient_accumulation_steps=steps)
        history = used.fit(weighted(targets, size), epochs=2)
        assert close(used.model, repeated.model)
        assert history["train_loss"] == pytest.approx(repeated.history["train_loss"], rel=1e-5)
    found = used.evaluate(weighted(targets, 5))
    expected = used.evaluate((INPUTS[REPEATED], targets[REPEATED]))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", LOSSES)
def test_weights_of_one_give_the_unweighted_run_to_rounding(case: str) -> None:
    """The sums are divided in another order."""
    loss_fn, targets = LOSSES[case]
    one, other = trainer(loss_fn=loss_fn, batch_size=4), trainer(loss_fn=loss_fn)
    one.fit((INPUTS, targets), epochs=1)
    other.fit(weighted(targets, 4, sample_weight=np.ones(ROWS)), epochs=1)
    assert close(one.model, other.model)
    assert one.history["train_loss"] == pytest.approx(other.history["train_loss"], rel=1e-5)


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of each sample."""
    return (outputs - targets).abs().mean(1)


def test_metrics_are_weighted() -> None:
    """Accuracy, and functions with a value for each sample, which need no weights either."""
    metrics = {"accuracy": Accuracy(), "top": Accuracy(2)}
    used = trainer(metrics=metrics)
    found = used.evaluate(weighted(IGNORING, 4))
    assert found == pytest.approx(used.evaluate((INPUTS[REPEATED], IGNORING[REPEATED])), rel=1e-5)
    labels = trainer(loss_fn=nn.BCEWithLogitsLoss(), metrics={"accuracy": Accuracy()})
    expected = labels.evaluate((INPUTS[REPEATED], LABELS[REPEATED]))
    assert labels.evaluate(weighted(LABELS, 4)) == pytest.approx(expected, rel=1e-5)
    several = {
        "error": absolute,
        "both": lambda outputs, targets: {"error": absolute(outputs, targets)},
    }
    numbers = trainer(loss_fn=nn.MSELoss(), metrics=several, batch_size=4)
    expected = numbers.evaluate((INPUTS[REPEATED], NUMBERS[REPEATED]))
    assert sorted(expected) == ["both_error", "error", "loss"]
    error = absolute(numbers.predict(INPUTS), NUMBERS)
    assert expected["error"] == pytest.approx(float(error[REPEATED].mean()), rel=1e-6)
    assert numbers.evaluate(weighted(NUMBERS, 4)) == pytest.approx(expected, rel=1e-5)


def test_a_metric_for_each_class_keeps_its_columns() -> None:
    """Also where a batch has as many samples as there are classes."""

    def of_class(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.one_hot(outputs.argmax(1), 3).float().mean(0)

    used = trainer(metrics={"predicted": of_class}, batch_size=3)
    found = used.evaluate((INPUTS[:21], CLASSES[:21]))
    assert {"predicted_0", "predicted_1", "predicted_2"} < found.keys()


class WithoutWeights:
    """A metric object that takes no weights."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add nothing."""

    def compute(self) -> float:
        """Return a number."""
        return 1.0

    def reset(self) -> None:
        """Start over."""


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "length": ({"sample_weight": WEIGHTS[1:]}, {}, DataError, "(22,)"),
    "a column": ({"sample_weight": WEIGHTS[:, None]}, {}, DataError, "(22, 1)"),
    "negative": ({"sample_weight": WEIGHTS - 1}, {}, InvalidArgumentError, "-1.0 for sample 0"),
    "nan": ({"sample_weight": WEIGHTS / 0 * 0}, {}, InvalidArgumentError, "nan"),
    "infinite": ({"sample_weight": WEIGHTS / 0}, {}, InvalidArgumentError, "sample 0"),
    "zeros": ({"sample_weight": WEIGHTS * 0}, {}, InvalidArgumentError, "zeros"),
    "a list": ({"sample_weight": [1.0] * ROWS}, {}, InvalidTypeError, "list"),
    "a task of tokens": ({}, {"task": TokenTask()}, InvalidArgumentError, "each token equally"),
    "a loss without reduction": (
        {},
        {"loss_fn": lambda outputs, targets: functional.cross_entropy(outputs, targets) * 1.0},
        InvalidArgumentError,
        "`reduction`",
    ),
    "another mean": (
        {},
        {
            "loss_fn": lambda outputs, targets, reduction="mean": (
                functional.cross_entropy(outputs, targets, reduction=reduction)
                * (2 if reduction == "none" else 1)
            )
        },
        InvalidArgumentError,
        "not their mean",
    ),
    "a metric of the batch": (
        {},
        {"metrics": {"m": lambda outputs, targets: outputs.mean()}},
        InvalidArgumentError,
        "one value for each sample",
    ),
    "a metric object": (
        {},
        {"metrics": {"m": WithoutWeights()}},
        InvalidArgumentError,
        "sample_weight=None",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_weighted_is_refused_before_training(case: str) -> None:
    """The message says what to do."""
    data, options, kind, words = REFUSED[case]
    used = trainer(**options)
    with pytest.raises(kind) as caught:
        used.fit(weighted(CLASSES, **data), epochs=1)
    assert words in str(caught.value)
    assert used.state.step == 0


def test_weights_need_inputs_and_targets() -> None:
    """They do not say what else they weight."""
    with pytest.raises(InvalidArgumentError, match="inputs and targets"):
        TensorBatches(INPUTS, sample_weight=WEIGHTS)


def test_a_batch_whose_weights_are_zeros_changes_nothing() -> None:
    """It has no loss and no gradient."""
    used = trainer(lr=1.0)
    before = copy.deepcopy(used.model)
    none = torch.zeros(ROWS)
    none[0] = 1
    batches = TensorBatches(INPUTS, CLASSES, batch_size=1, sample_weight=none)
    used.fit(list(batches.in_order())[1:4], epochs=1)
    assert close(used.model, before, 0.0)


def test_batches_are_named_tuples_in_the_same_order() -> None:
    """A task of the user's takes them apart; its metrics are weighted if it says so."""

    class Weighted(Task):
        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            inputs, targets, weight = batch
            assert batch.sample_weight is weight
            outputs = model(inputs)
            losses = functional.cross_entropy(outputs, targets, reduction="none")
            total = weight.sum()
            return StepOutput((losses * weight).sum() / total, outputs, targets, total, weight)

    used = trainer(task=Weighted(), metrics={"accuracy": Accuracy()})
    used.fit(weighted(CLASSES, 4), weighted(CLASSES, 4), epochs=1)
    default = trainer()
    default.fit(weighted(CLASSES, 4), weighted(CLASSES, 4), epochs=1)
    assert close(used.model, default.model)
    assert used.history["val_accuracy"] == default.history["val_accuracy"]
    plain = TensorBatches(INPUTS, CLASSES, batch_size=4)
    for batch, pair in zip(weighted(CLASSES, 4).epoch(3), plain.epoch(3), strict=True):
        assert all(map(torch.equal, batch[:2], pair))


def test_a_weighted_run_resumes_exactly(tmp_path: Path) -> None:
    """The sums of the metrics are restored as they are."""
    whole = trainer()
    whole.fit(weighted(CLASSES, 4), epochs=2)
    first = trainer()
    first.fit(weighted(CLASSES, 4), epochs=1)
    first.save_checkpoint(tmp_path / "one")
    resumed = trainer()
    resumed.fit(weighted(CLASSES, 4), epochs=2, resume_from=tmp_path / "one")
    assert close(resumed.model, whole.model, 0.0)
    assert resumed.history["train_accuracy"] == whole.history["train_accuracy"]
    assert torch.equal(whole.predict(weighted(CLASSES, 4)), whole.predict(INPUTS))
