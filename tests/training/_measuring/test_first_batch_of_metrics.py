"""Metrics on the first batch: failures, broadcasting and columns are known before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from finetunelib import build_mlp
from finetunelib.errors import FinetuneLibError, InvalidArgumentError, InvalidTargetError
from finetunelib.training import StepOutput, Task
from training.tiny import plain_network, points, quiet_trainer, same_weights

INPUTS, TARGETS = points(12)
VALUES = INPUTS[:, 0] * 2


def squeezing(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss of outputs `(n, 1)` and targets `(n,)` that is right."""
    return F.mse_loss(outputs.squeeze(1), targets)


class Error:
    """The mean absolute error, as an object."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.sum += float((outputs - targets).abs().mean()) * len(targets)
        self.count += len(targets)

    def compute(self) -> float:
        return self.sum / self.count


def refused(data: Any, *words: str, outputs: int = 1, **options: Any) -> None:
    """Assert that `fit` refuses data before the first step and leaves the model as it was."""
    model, same = (build_mlp(6, [], outputs, seed=0) for _ in range(2))
    trainer = quiet_trainer(model, **options)
    with pytest.raises(FinetuneLibError) as caught:
        trainer.fit(*data, epochs=1)
    for word in words:
        assert word in str(caught.value)
    assert trainer.state.step == 0
    assert same_weights(model, same)


BROADCASTING: dict[str, Callable[..., Any]] = {
    "difference": lambda o, t: (o - t).square().mean(),
    "function": F.l1_loss,
    "two columns": lambda o, t: (o[:, 1:] - t).abs().mean(),
    "in between": lambda o, t: (o.exp() * (t + 1)).mean(),
}


@pytest.mark.parametrize("kind", BROADCASTING)
@pytest.mark.parametrize("samples", [12, 1])
def test_loss_that_broadcasts_is_refused(kind: str, samples: int) -> None:
    """Outputs `(n, 1)` and targets `(n,)`, also in a batch of one sample."""
    outputs = 2 if kind == "two columns" else 1
    data = ((INPUTS[:samples], VALUES[:samples]),)
    refused(data, "broadcast", outputs=outputs, loss_fn=BROADCASTING[kind], batch_size=12)


def numpy_error(outputs: Tensor, targets: Tensor) -> float:
    """Return an error that numpy broadcasts."""
    return float(abs(outputs.numpy() - targets.numpy()).mean())


@pytest.mark.parametrize(
    "metric",
    [Error(), BROADCASTING["difference"], numpy_error],
    ids=["object", "function", "numpy"],
)
def test_metric_that_broadcasts_is_refused(metric: Any) -> None:
    """In training and validation data, with the name of the metric."""
    refused(
        ((INPUTS, VALUES),), "'error'", "broadcast", loss_fn=squeezing, metrics={"error": metric}
    )


def test_shapes_that_are_meant_are_accepted() -> None:
    """Pairs of samples, single outputs that a metric handles, and images of one channel."""
    cases: list[tuple[Any, int, Tensor, Any]] = [
        (squeezing, 1, VALUES, lambda o, t: (o.squeeze(1) - t).abs().mean()),
        (squeezing, 1, VALUES, lambda o, t: (o.flatten() - t).abs().mean()),
        (lambda o, t: (o - o.T).square().mean() + 0 * t.sum(), 1, VALUES, None),
        (lambda o, t: (o[:, None] - o[None]).square().mean(), 3, INPUTS, None),
        (nn.MSELoss(), 1, VALUES[:, None], lambda o, t: (o - t).abs().mean()),
    ]
    for loss, outputs, targets, metric in cases:
        metrics = {} if metric is None else {"error": metric}
        trainer = quiet_trainer(build_mlp(6, [], outputs, seed=0), loss_fn=loss, metrics=metrics)
        assert trainer.fit((INPUTS, targets), epochs=1)["step"] == [3]


def strict(outputs: Tensor, targets: Tensor) -> float:
    """Accept only some classes."""
    if targets.max() > 1:
        raise ValueError("targets must be 0 or 1")
    return 1.0


def test_metric_that_fails_on_the_first_batch_is_named() -> None:
    """Of validation data too, before the first step."""
    binary = TARGETS.clamp(max=1)
    options: dict[str, Any] = {"outputs": 3, "metrics": {"strict": strict}}
    refused(((INPUTS, binary), (INPUTS, TARGETS)), "'strict'", "`val`", "0 or 1", **options)
    refused(((INPUTS, TARGETS),), "'strict'", "`train`", **options)


def test_metric_that_fails_later_keeps_its_type() -> None:
    """With the place as notes."""

    def fails(outputs: Tensor, targets: Tensor) -> float:
        if len(targets) < 4:
            raise ZeroDivisionError("short")
        return 1.0

    trainer = quiet_trainer(plain_network(), metrics={"fails": fails})
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit((INPUTS[:10], TARGETS[:10]), epochs=2)
    notes = " ".join(caught.value.__notes__)
    for value in ("metric 'fails'", "epoch 1, step 3", "(2, 6)"):
        assert value in notes


class Counts:
    """A value for each class."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(3)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.counts += targets.bincount(minlength=3)

    def compute(self) -> Tensor:
        return self.counts


def test_several_values_become_several_columns() -> None:
    """Tensors with a number, mappings with a name; callbacks know them from the start."""

    def named(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        return {"low": outputs.min(), "rows": float(len(outputs))}

    metrics: dict[str, Any] = {"count": Counts(), "named": named}
    trainer = quiet_trainer(plain_network(), metrics=metrics)
    history = trainer.fit((INPUTS, TARGETS), (INPUTS, TARGETS), epochs=2)
    assert [history[f"val_count_{place}"] for place in range(3)] == [[4.0, 4.0]] * 3
    assert history["train_named_rows"] == [4.0, 4.0]
    assert set(trainer.evaluate((INPUTS, TARGETS))) == {
        "loss", "count_0", "count_1", "count_2", "named_low", "named_rows",
    }  # fmt: skip


def test_values_that_are_no_columns_are_refused() -> None:
    """A matrix, two columns of one name, and a metric that cannot be copied."""

    def matrix(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(3, 3)

    class Locked(Counts):
        def __deepcopy__(self, memo: object) -> Any:
            raise TypeError("it has a lock")

    data, options = ((INPUTS, TARGETS),), {"outputs": 3}
    refused(data, "'matrix'", "(3, 3)", metrics={"matrix": matrix}, **options)
    clash = {"a": lambda o, t: {"b": 1.0}, "a_b": lambda o, t: 1.0}
    refused(data, "train_a_b", metrics=clash, **options)
    refused(data, "'locked'", "a lock", metrics={"locked": Locked()}, **options)


class Both(Task):
    """Has targets in a mapping."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        outputs = model(inputs)
        loss = F.cross_entropy(outputs, targets["kind"])
        return StepOutput(loss, {"kind": outputs}, targets, weight=len(inputs))


def test_metric_function_is_weighted_by_samples_of_any_targets() -> None:
    """A short last batch counts as much as it has samples; targets may be missing."""

    def share(outputs: Any, targets: Any) -> Any:
        return (outputs["kind"].argmax(1) == targets["kind"]).float().mean()

    model = plain_network()
    trainer = quiet_trainer(model, task=Both(), metrics={"share": share})
    batches = [
        (INPUTS[a:b], {"kind": TARGETS[a:b], "more": INPUTS[a:b]}) for a, b in ((0, 11), (11, 12))
    ]
    right = (model(INPUTS).argmax(1) == TARGETS).float().mean().item()
    assert trainer.evaluate(batches)["share"] == pytest.approx(right)


def test_task_of_the_user_is_checked_without_a_trace() -> None:
    """Its attributes and modules are restored, and its error keeps its type."""

    class Counting(Both):
        def __init__(self) -> None:
            self.steps, self.seen = 0, [0]
            self.norm = nn.BatchNorm1d(3)

        def step(self, model: nn.Module, batch: Any) -> StepOutput:
            self.steps += 1
            self.seen.append(len(batch[0]))
            output = super().step(model, batch)
            self.norm(output.outputs["kind"].detach())
            return output

    task = Counting()
    data = [(INPUTS[:6], {"kind": TARGETS[:6]}), (INPUTS[6:], {"kind": TARGETS[6:]})]
    quiet_trainer(plain_network(), task=task).fit(data, data, epochs=1)
    assert task.steps == 4
    assert task.seen == [0, 6, 6, 6, 6]
    assert task.norm.num_batches_tracked == 4
    with pytest.raises(KeyError, match="check of the first batch"):
        quiet_trainer(plain_network(), task=Both()).fit([(INPUTS, {"other": TARGETS})], epochs=1)


def test_targets_in_double_precision_are_refused_with_the_conversion() -> None:
    """The loss runs, but its gradient does not."""
    with pytest.raises(InvalidTargetError, match=r"\.float\(\)"):
        quiet_trainer(build_mlp(6, [], 1), loss_fn=nn.HuberLoss()).fit(
            (INPUTS, VALUES[:, None].double()), epochs=1
        )


def test_loss_without_a_gradient_is_refused() -> None:
    """It would train nothing."""
    with pytest.raises(InvalidArgumentError, match="gradient"):
        quiet_trainer(plain_network(), loss_fn=lambda o, t: F.cross_entropy(o.detach(), t)).fit(
            (INPUTS, TARGETS), epochs=1
        )
