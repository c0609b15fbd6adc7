"""Metrics: functions, objects and those of torchmetrics, weighted by samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from finetunelib.errors import FinetuneLibError, InvalidArgumentError, InvalidTypeError
from finetunelib.training import Accuracy, Callback, StepOutput, Task, TrainContext
from training.tiny import CLASSES, plain_network, points, quiet_trainer


def error_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute difference between the first logit and the class."""
    return (outputs[:, 0] - targets).abs().mean()


class Count:
    """Counts its calls and samples."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.samples = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.calls.append("update")
        self.samples += len(targets)

    def compute(self) -> float:
        self.calls.append("compute")
        return float(self.samples)

    def reset(self) -> None:
        self.calls.append("reset")
        self.samples = 0


# Names


def test_default_metric_is_accuracy() -> None:
    """Without `metrics`, the history and `evaluate` contain the accuracy."""
    trainer = quiet_trainer(plain_network())
    history = trainer.fit(points(), points(8), epochs=1)
    assert {"train_accuracy", "val_accuracy"} <= set(history.names)
    assert set(trainer.evaluate(points())) == {"loss", "accuracy"}


def test_no_metrics_gives_losses_alone() -> None:
    """With `metrics={}` only the losses, the learning rate and the times are left."""
    trainer = quiet_trainer(plain_network(), metrics={})
    history = trainer.fit(points(), points(8), epochs=1)
    assert history.names == (
        "epoch",
        "step",
        "train_loss",
        "val_loss",
        "lr",
        "seconds",
        "samples_per_second",
    )
    assert set(trainer.evaluate(points())) == {"loss"}


def test_loss_of_the_user_has_no_default_metric() -> None:
    """Accuracy may not apply to a custom loss."""
    trainer = quiet_trainer(plain_network(), loss_fn=nn.CrossEntropyLoss())
    assert set(trainer.evaluate(points())) == {"loss"}


def test_task_of_the_user_has_no_default_metric() -> None:
    """The meaning of a custom task's outputs is unknown."""

    class Plain(Task):
        """Computes the cross-entropy."""

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            outputs = model(batch[0])
            loss = nn.functional.cross_entropy(outputs, batch[1])
            return StepOutput(loss, outputs, batch[1], len(batch[1]))

    assert set(quiet_trainer(plain_network(), task=Plain()).evaluate(points())) == {"loss"}


def test_metrics_have_their_names() -> None:
    """Each metric is in the history and in `evaluate`, in the given order."""
    metrics = {"error": error_of, "top2": Accuracy(2)}
    trainer = quiet_trainer(plain_network(), metrics=metrics)
    names = trainer.fit(points(), points(8), epochs=1).names
    assert names[2:8] == (
        "train_loss",
        "train_error",
        "train_top2",
        "val_loss",
        "val_error",
        "val_top2",
    )
    assert list(trainer.evaluate(points())) == ["loss", "error", "top2"]


# Functions


def test_function_is_averaged_over_samples() -> None:
    """A short last batch is weighted by its samples."""
    inputs, targets = points(9)
    model = plain_network()
    measured = quiet_trainer(model, metrics={"error": error_of}).evaluate((inputs, targets))
    # The mean of batch means of float32 is rounded in the last place.
    assert measured["error"] == pytest.approx(
        float(error_of(model(inputs).detach(), targets)), rel=1e-6
    )


def test_function_may_return_a_number() -> None:
    """Python numbers are averaged like tensors."""
    trainer = quiet_trainer(
        plain_network(), metrics={"size": lambda outputs, targets: len(targets)}
    )
    assert trainer.evaluate(points(9))["size"] == (4 * 4 + 4 * 4 + 1 * 1) / 9


def test_function_sees_detached_outputs() -> None:
    """A metric has no access to the graph, also during training."""
    graphs: list[bool] = []

    def look(outputs: Tensor, targets: Tensor) -> float:
        graphs.append(outputs.requires_grad)
        return 0.0

    quiet_trainer(plain_network(), metrics={"look": look}).fit(points(), epochs=1)
    assert graphs == [False] * 7  # the first is the check's


def test_function_is_reset_each_epoch() -> None:
    """With a learning rate of 0 each epoch has the same value."""
    history = quiet_trainer(plain_network(), lr=0.0, metrics={"error": error_of}).fit(
        points(20), epochs=3
    )
    # The same values, added in the order of another epoch.
    assert history["train_error"] == pytest.approx([history["train_error"][0]] * 3, rel=1e-6)


# Objects


def test_object_is_reset_updated_and_computed() -> None:
    """A pass is one reset, one update per batch, and one compute."""
    count = Count()
    quiet_trainer(plain_network(), metrics={"count": count}).evaluate(points(9))
    assert count.calls == ["reset", "update", "update", "update", "compute"]


def test_evaluate_after_fit_measures_its_own_data_only() -> None:
    """Values left by validation are not included."""
    trainer = quiet_trainer(plain_network(), metrics={"count": Count(), "top1": Accuracy()})
    trainer.fit(points(), points(8), epochs=1)
    inputs = points(6)[0]
    predicted = trainer.predict(inputs).argmax(1)
    assert trainer.evaluate((inputs, predicted)) | {"loss": 0} == {
        "loss": 0,
        "count": 6.0,
        "top1": 1.0,
    }


def test_object_counts_training_and_validation_apart() -> None:
    """One object is used for both without mixing their values."""
    history = quiet_trainer(plain_network(), metrics={"count": Count()}).fit(
        points(22), points(9), epochs=2
    )
    assert history["train_count"] == [22.0, 22.0]
    assert history["val_count"] == [9.0, 9.0]


def test_evaluate_twice_measures_the_same() -> None:
    """Values left by an earlier pass are not included."""
    trainer = quiet_trainer(plain_network(), metrics={"count": Count(), "top2": Accuracy(2)})
    assert trainer.evaluate(points(9)) == trainer.evaluate(points(9))


def test_evaluation_from_a_callback_does_not_disturb_the_epoch() -> None:
    """`evaluate` in the middle of an epoch does not change the epoch's row."""

    class MeasureBetween(Callback):
        """Evaluates after each step."""

        def on_step_end(self, context: TrainContext) -> None:
            trainer.evaluate(points(9))

    metrics = {"count": Count()}
    trainer = quiet_trainer(plain_network(), metrics=metrics, callbacks=[MeasureBetween()])
    assert trainer.fit(points(22), epochs=1)["train_count"] == [22.0]


# Accuracy


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.75), (3, 1.0)])
def test_accuracy_is_the_fraction_of_classes_among_the_largest(k: int, expected: float) -> None:
    """A sample counts if its class is among the k largest logits."""
    logits = torch.tensor([[0.9, 0.5, 0.1]] * 4)
    accuracy = Accuracy(k)
    accuracy.update(logits, torch.tensor([0, 1, 1, 2]))
    assert accuracy.compute() == expected


def test_accuracy_of_several_batches_is_over_samples() -> None:
    """Three of four and none of one are three of five."""
    accuracy = Accuracy()
    logits = torch.tensor([[1.0, 0.0]] * 4)
    accuracy.update(logits, torch.tensor([0, 0, 0, 1]))
    accuracy.update(logits[:1], torch.tensor([1]))
    assert accuracy.compute() == 0.6


@pytest.mark.parametrize("k", [1, 2])
def test_accuracy_counts_every_pixel(k: int) -> None:
    """Segmentation logits `(batch, classes, height, width)` are counted per pixel."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator)
    targets = torch.randint(0, 4, (2, 3, 5), generator=generator)
    accuracy, flat = Accuracy(k), Accuracy(k)
    accuracy.update(logits, targets)
    flat.update(logits.permute(0, 2, 3, 1).reshape(-1, 4), targets.reshape(-1))
    assert accuracy.compute() == flat.compute()


def test_accuracy_of_nothing_is_nan() -> None:
    """Without samples the accuracy is nan, before the first update and after a reset."""
    accuracy = Accuracy()
    assert math.isnan(accuracy.compute())
    accuracy.update(torch.zeros(2, 3), torch.zeros(2).long())
    accuracy.reset()
    assert math.isnan(accuracy.compute())


@pytest.mark.parametrize("k", [0, -1])
def test_accuracy_of_less_than_one_is_an_error_that_shows_it(k: int) -> None:
    """`top_k` must be at least 1."""
    with pytest.raises(InvalidArgumentError, match=f"`top_k`.*{k}"):
        Accuracy(k)


@pytest.mark.parametrize("k", [1.5, "2", True], ids=repr)
def test_top_k_that_is_not_an_integer_is_an_error_that_shows_it(k: Any) -> None:
    """The message contains the argument and its value."""
    with pytest.raises(InvalidTypeError, match=f"`top_k`.*{k!r}"):
        Accuracy(k)


def test_repr_of_accuracy_shows_its_argument() -> None:
    """It is the call that creates the metric."""
    assert repr(Accuracy(top_k=3)) == "Accuracy(top_k=3)"


def test_accuracy_among_more_classes_than_there_are_is_an_error_that_names_both() -> None:
    """`top_k=5` is an error for three classes, before any training."""
    trainer = quiet_trainer(plain_network(), metrics={"top5": Accuracy(5)})
    with pytest.raises(FinetuneLibError) as caught:
        trainer.fit(points(), epochs=1)
    assert "top_k" in str(caught.value)
    assert "5" in str(caught.value)


def test_accuracy_skips_ignored_targets() -> None:
    """Targets that the default loss ignores are not counted."""
    inputs, targets = points(8)
    predicted = plain_network()(inputs).argmax(1)
    targets = predicted.clone()
    targets[:4] = -100
    assert quiet_trainer(plain_network()).evaluate((inputs, targets))["accuracy"] == 1.0


# torchmetrics


@pytest.mark.parametrize("k", [1, 2])
def test_accuracy_of_torchmetrics_agrees_with_ours(k: int) -> None:
    """Both have the same value in training, in validation and in `evaluate`."""
    theirs = MulticlassAccuracy(num_classes=CLASSES, average="micro", top_k=k)
    trainer = quiet_trainer(plain_network(), metrics={"ours": Accuracy(k), "theirs": theirs})
    history = trainer.fit(points(), points(9), epochs=2)
    # torchmetrics divides in float32.
    assert history["train_theirs"] == pytest.approx(history["train_ours"], rel=1e-6)
    assert history["val_theirs"] == pytest.approx(history["val_ours"], rel=1e-6)
    measured = trainer.evaluate(points(9))
    assert measured["theirs"] == pytest.approx(measured["ours"], rel=1e-6)


def test_metric_that_is_not_a_mean_is_computed_over_all_batches() -> None:
    """The F1 score over all samples is not the mean of the batches' scores."""
    inputs, targets = points()
    model = plain_network()
    score = MulticlassF1Score(num_classes=CLASSES)
    measured = quiet_trainer(model, metrics={"f1": score}).evaluate((inputs, targets))
    whole = MulticlassF1Score(num_classes=CLASSES)
    assert measured["f1"] == float(whole(model(inputs).detach(), targets))


def test_regression_metric_of_torchmetrics_works() -> None:
    """The squared error as a metric equals the squared error as the loss."""
    inputs, _ = points()
    trainer = quiet_trainer(
        nn.Linear(6, 1), loss_fn=nn.MSELoss(), metrics={"mse": MeanSquaredError()}
    )
    measured = trainer.evaluate((inputs, inputs.sum(1, keepdim=True)))
    # The same squares, summed in another order in float32.
    assert measured["mse"] == pytest.approx(measured["loss"], rel=1e-5)


# Errors


def test_metric_without_compute_is_an_error_that_names_both() -> None:
    """The message contains the metric's name and the missing method."""

    class NoCompute:
        """Has two of three methods."""

        def update(self, outputs: Tensor, targets: Tensor) -> None: ...

        def reset(self) -> None: ...

    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), metrics={"half": NoCompute()})
    assert "'half'" in str(caught.value)
    assert "`compute`" in str(caught.value)


@pytest.mark.parametrize("metric", [Accuracy, MulticlassAccuracy])
def test_class_of_a_metric_is_an_error_that_names_both(metric: Any) -> None:
    """The message contains the metric's name and the class."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), metrics={"score": metric})
    assert "'score'" in str(caught.value)
    assert metric.__name__ in str(caught.value)


@pytest.mark.parametrize("metric", [0.5, "accuracy", None], ids=repr)
def test_value_that_is_not_a_metric_is_an_error_that_names_its_type(metric: Any) -> None:
    """Numbers and strings are not metrics."""
    with pytest.raises(InvalidTypeError) as caught:
        quiet_trainer(plain_network(), metrics={"score": metric})
    assert "'score'" in str(caught.value)
    assert type(metric).__name__ in str(caught.value)


@pytest.mark.parametrize("metrics", [[Accuracy()], Accuracy(), "accuracy"], ids=["list", "one", ""])
def test_metrics_that_are_not_a_mapping_are_an_error_that_names_the_argument(metrics: Any) -> None:
    """Metrics need names, so a list or a single metric is an error."""
    with pytest.raises(InvalidTypeError, match="`metrics`"):
        quiet_trainer(plain_network(), metrics=metrics)


def test_metric_named_loss_is_an_error_that_names_it() -> None:
    """It would replace the loss in the history."""
    with pytest.raises(InvalidArgumentError, match="'loss'"):
        quiet_trainer(plain_network(), metrics={"loss": error_of})
