"""What `Accuracy` counts: classes, one output, several labels, probabilities, ignored targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from finetunelib import build_mlp
from finetunelib.errors import FinetuneLibError, InvalidArgumentError, InvalidTargetError
from finetunelib.training import Accuracy
from training.tiny import points, quiet_trainer

INPUTS, CLASSES = points(40)
ONE = (INPUTS[:, :1] > 0).float()
SEVERAL = (INPUTS[:, :3] > 0).float()


def accuracy_of(loss: Any, targets: Tensor, outputs: int, **options: Any) -> tuple[float, Tensor]:
    """Return the accuracy of an evaluation, and the outputs."""
    model = build_mlp(6, [8], outputs, seed=0)
    metrics = {"accuracy": Accuracy(**options)}
    trainer = quiet_trainer(model, loss_fn=loss, metrics=metrics, batch_size=32)
    return trainer.evaluate((INPUTS, targets))["accuracy"], trainer.predict(INPUTS)


@pytest.mark.parametrize("smooth", [False, True], ids=["zeros and ones", "smoothed"])
def test_one_logit_is_compared_with_zero(smooth: bool) -> None:
    """Of targets `(n, 1)` from 0 to 1, which are true above 0.5."""
    targets = ONE * 0.8 + 0.1 if smooth else ONE
    found, outputs = accuracy_of(nn.BCEWithLogitsLoss(), targets, 1)
    assert found == pytest.approx(((outputs > 0) == (ONE > 0.5)).float().mean().item())


def test_one_probability_is_compared_with_a_half() -> None:
    """The loss says that the outputs are probabilities."""
    model = nn.Sequential(build_mlp(6, [8], 1, seed=0), nn.Sigmoid())
    for loss in (nn.BCELoss(), F.binary_cross_entropy):
        trainer = quiet_trainer(model, loss_fn=loss, metrics={"accuracy": Accuracy()})
        right = ((trainer.predict(INPUTS) > 0.5) == (ONE > 0.5)).float().mean().item()
        assert trainer.evaluate((INPUTS, ONE))["accuracy"] == pytest.approx(right)


def test_several_labels_are_counted_each() -> None:
    """With a binary cross-entropy, or on request."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets)

    cases: list[tuple[Any, dict[str, Any]]] = [
        (nn.BCEWithLogitsLoss(), {}),
        (loss, {}),
        (loss, {"multilabel": True}),
    ]
    for loss_fn, options in cases:
        found, outputs = accuracy_of(loss_fn, SEVERAL, 3, **options)
        assert found == pytest.approx(((outputs > 0) == (SEVERAL > 0.5)).float().mean().item())


def test_probabilities_of_classes_are_compared_by_the_largest() -> None:
    """With cross-entropy, for hard and for soft labels."""
    one_hot = F.one_hot(CLASSES, 3).float()
    for targets in (one_hot, one_hot * 0.7 + 0.1):
        found, outputs = accuracy_of(nn.CrossEntropyLoss(), targets, 3)
        assert found == pytest.approx((outputs.argmax(1) == CLASSES).float().mean().item())


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "named"),
    [
        (lambda o, t: ((o - t) ** 2).mean(), F.one_hot(CLASSES, 3).float(), 3, "multilabel"),
        (nn.MSELoss(), ONE, 1, "threshold"),
        (
            lambda o, t: F.binary_cross_entropy(o.sigmoid(), t.clamp(0, 1)),
            INPUTS[:, :1],
            1,
            "0 to 1",
        ),
        (lambda o, t: F.cross_entropy(o, t.squeeze(1)), CLASSES[:, None], 3, "squeeze(1)"),
        (nn.MSELoss(), INPUTS[:, :3], 3, "multilabel"),
    ],
    ids=["one-hot", "regression", "numbers", "column", "several numbers"],
)
def test_targets_that_it_cannot_count_are_refused(
    loss: Any, targets: Tensor, outputs: int, named: str
) -> None:
    """Before the first step, with what to pass."""
    trainer = quiet_trainer(
        build_mlp(6, [8], outputs, seed=0), loss_fn=loss, metrics={"accuracy": Accuracy()}
    )
    with pytest.raises(FinetuneLibError) as caught:
        trainer.fit((INPUTS, targets), epochs=1)
    assert named in str(caught.value)
    assert trainer.state.step == 0


def test_outputs_between_0_and_1_need_a_threshold() -> None:
    """They may be probabilities, unless the loss or the user says it."""
    outputs, targets = torch.linspace(0.1, 0.9, 20), torch.ones(20)
    with pytest.raises(InvalidArgumentError, match="threshold"):
        Accuracy().update(outputs, targets)
    for threshold, expected in ((0.0, 1.0), (0.5, 0.5)):
        accuracy = Accuracy(threshold=threshold)
        accuracy.update(outputs, targets)
        assert accuracy.compute() == expected
    assert "threshold=0.5" in repr(Accuracy(threshold=0.5))


def test_ignored_index_is_that_of_the_loss_or_the_argument() -> None:
    """Targets of the index are neither hits nor misses, also if the model predicts it."""
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 9.0, 1.0]])
    targets = torch.tensor([1, 2, 1])
    for top_k, ignored, expected in ((1, 2, 0.5), (2, 2, 1.0), (1, 1, 0.0), (3, 2, 1.0)):
        accuracy = Accuracy(top_k, ignore_index=ignored)
        accuracy.update(logits, targets)
        assert accuracy.compute() == expected
    labels = Accuracy(ignore_index=-1)
    labels.update(torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))
    assert labels.compute() == 1.0
    marked = CLASSES.clone()
    marked[::2] = 2
    found, outputs = accuracy_of(nn.CrossEntropyLoss(ignore_index=2), marked, 3)
    counted = marked != 2
    right = (outputs.argmax(1) == marked)[counted].float().mean().item()
    assert found == pytest.approx(right)


def test_classes_on_the_last_axis_are_found() -> None:
    """As language models and token classifiers return them."""
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = logits.argmax(2)
    targets[0, 0] = (targets[0, 0] + 1) % 7
    accuracy = Accuracy()
    accuracy.update(logits, targets)
    assert accuracy.compute() == pytest.approx(19 / 20)
    with pytest.raises(InvalidTargetError, match=r"\(4, 5, 7\)"):
        Accuracy().update(logits, torch.zeros(4, 6).long())


@pytest.mark.parametrize(
    ("outputs", "targets", "known"),
    [
        (torch.rand(4, 3), torch.tensor([0, 1, 2, 1]), True),
        (torch.rand(4, 3), torch.tensor([0, 1, -100, 1]), True),
        (torch.rand(4, 3).half(), torch.tensor([0, 1, 2, 1]), True),
        (torch.rand(4, 1), torch.tensor([0, 1, 1, 1]), False),
        (torch.rand(4, 3), torch.tensor([0, 1, 2]), False),
        (torch.rand(4, 3), torch.rand(4, 3), False),
        (torch.rand(4, 3), torch.tensor([0, 1, 2, 1]).int(), False),
        (torch.rand(4, 3, 5), torch.zeros(4, 5).long(), False),
        (torch.ones(4, 3, dtype=torch.bool), torch.tensor([0, 1, 2, 1]), False),
        ([1, 2], torch.tensor([0, 1]), False),
    ],
    ids=[
        "classes",
        "one ignored",
        "half precision",
        "one output",
        "too few",
        "numbers",
        "int32",
        "pixels",
        "bools",
        "list",
    ],
)
def test_accuracy_knows_without_counting_what_it_accepts(
    outputs: Any, targets: Tensor, known: bool
) -> None:
    """The check of the first batch skips only what `update` accepts, and more than 1 of `top_k`."""
    accuracy = Accuracy()
    assert accuracy._accepts(outputs, targets) == known
    assert not Accuracy(top_k=2)._accepts(outputs, targets)
    if known:
        accuracy.update(outputs, targets)
        assert 0 <= accuracy.compute() <= 1


def test_copy_of_accuracy_counts_on_its_own() -> None:
    """Neither adds to the hits or the targets of the other."""
    one = Accuracy(ignore_index=2)
    one.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    other = one._copy()
    other.update(torch.tensor([[0.9, 0.1]]), torch.tensor([1]))
    assert (one.compute(), other.compute(), other.ignore_index) == (1.0, 0.5, 2)
