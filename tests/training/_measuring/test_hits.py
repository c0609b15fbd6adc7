"""The count of hits, and the accuracy that is measured with it while training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib.training import Accuracy
from finetunelib.training._measuring.hits import HitCount
from training.tiny import CLASSES, WIDTH, plain_network, quiet_trainer


def test_count_is_the_number_of_true_values() -> None:
    """For any number of tensors of any shape, from a start, and however often it is read."""
    generator = torch.Generator().manual_seed(0)
    count, expected = HitCount(5), 5
    for number in range(150):
        hits = torch.rand((number % 4, 3), generator=generator) > 0.5
        count.add(hits)
        expected += int(hits.sum())
        if number % 50 == 7:
            assert count.read() == expected
    assert count.read() == count.read() == expected
    assert HitCount().read() == 0


def test_few_values_are_kept() -> None:
    """Neither many small tensors nor one large tensor stay in memory."""
    count, largest = HitCount(), 0
    for _ in range(200):
        count.add(torch.ones(3, dtype=torch.bool))
        largest = max(largest, len(count._kept))
    assert 1 < largest < 100
    count.add(torch.ones(1 << 17, dtype=torch.bool))
    assert (count._kept, count.read()) == ([], 600 + (1 << 17))


def test_tensors_of_two_devices_are_counted() -> None:
    """A metric may be used with outputs on one device after another."""
    count = HitCount()
    count.add(torch.ones(3, dtype=torch.bool))
    count.add(torch.ones(3, dtype=torch.bool, device="meta"))
    assert [hits.device.type for hits in count._kept] == ["meta"]


class Recording(nn.Module):
    """A model that keeps its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, with equal values in some rows."""
        outputs: Tensor = self.inner(inputs).round()
        if self.training:
            self.seen.append(outputs.detach().clone())
        return outputs


def batches(ignored: int | None) -> list[tuple[Tensor, Tensor]]:
    """Return 70 batches, some of whose targets are ignored."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(70):
        inputs = torch.randn(3, WIDTH, generator=generator)
        targets = torch.randint(CLASSES, (3,), generator=generator)
        if ignored is not None and number % 3 == 0:
            targets[0] = ignored
        made.append((inputs, targets))
    return made


@pytest.mark.parametrize(
    ("loss_fn", "ignored"),
    [
        (None, None),
        (None, -100),
        (nn.CrossEntropyLoss(ignore_index=1), None),
        (nn.CrossEntropyLoss(ignore_index=-1), -1),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), None),
    ],
    ids=["plain", "ignored", "a class", "minus one", "weights"],
)
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"ignore_index": 0}], ids=["top 1", "top 2", "own"]
)
def test_accuracy_of_an_epoch_is_that_of_its_batches(
    loss_fn: Any, ignored: int | None, options: dict[str, Any]
) -> None:
    """Whether or not the loss has counted the targets, which may be ignored."""
    data, model = batches(ignored), Recording()
    trainer = quiet_trainer(
        model, loss_fn=loss_fn, metrics={"accuracy": Accuracy(**options)}, lr=0.01
    )
    measured = trainer.fit(data, epochs=1)["train_accuracy"][0]
    hits = counted = 0
    skipped = options.get("ignore_index", getattr(loss_fn, "ignore_index", -100))
    seen = model.seen[-len(data) :]
    for outputs, (_, targets) in zip(seen, data, strict=True):
        for row, target in zip(outputs, targets, strict=True):
            if int(target) != skipped:
                counted += 1
                hits += int(target) in row.topk(options.get("top_k", 1)).indices.tolist()
    assert measured == hits / counted
