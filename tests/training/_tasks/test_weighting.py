"""What a loss is a mean over: known or measured, and refused where it cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from finetunelib.errors import FinetuneLibError, InvalidArgumentError
from finetunelib.training import Accuracy
from finetunelib.training._tasks.measured import measured_weighting
from finetunelib.training._tasks.supervised import SupervisedTask
from training.tiny import plain_network, points, quiet_trainer, ready_batches

INPUTS, TARGETS = points(19)
WEIGHTS = torch.tensor([1.0, 10.0, 3.0])
IGNORED = TARGETS.clone()
IGNORED[:6] = -100


class Derived(nn.CrossEntropyLoss):
    """Cross-entropy in a class of its own."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, outputs: Tensor, targets: Tensor
    ) -> Tensor:
        return super().forward(outputs, targets) * 2


class Wrapped(nn.Module):
    """Contains the loss that it uses."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.loss(outputs, targets)


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a mean over samples."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a ratio of sums over the batch, which is a mean over nothing."""
    chosen = outputs.softmax(1).gather(1, targets.unsqueeze(1))
    return 1 - chosen.sum() / outputs.softmax(1).square().sum()


EXACT: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "function": (F.cross_entropy, IGNORED),
    "partial": (partial(F.cross_entropy, weight=WEIGHTS), TARGETS),
    "partial that ignores": (partial(F.cross_entropy, ignore_index=1, weight=WEIGHTS), TARGETS),
    "lambda": (lambda o, t: F.cross_entropy(o, t) * 1.0, IGNORED),
    "lambda that ignores": (lambda o, t: F.cross_entropy(o, t, ignore_index=0), TARGETS),
    "lambda that ignores 255": (
        lambda o, t: F.cross_entropy(o, t, ignore_index=255),
        IGNORED.masked_fill(IGNORED < 0, 255),
    ),
    "derived": (Derived(weight=WEIGHTS), IGNORED),
    "wrapped": (Wrapped(nn.CrossEntropyLoss()), IGNORED),
    "focal": (focal, TARGETS),
    "divergence": (
        lambda o, t: nn.KLDivLoss(reduction="batchmean")(o.log_softmax(1), t),
        F.one_hot(TARGETS, 3).float(),
    ),
}
REFUSED: dict[str, Callable[..., Any]] = {
    "class weights": lambda o, t: F.cross_entropy(o, t, WEIGHTS),
    "wrapped class weights": Wrapped(nn.CrossEntropyLoss(WEIGHTS)),
    "dice": dice,
    "root": lambda o, t: F.cross_entropy(o, t).sqrt(),
}


def trained(loss: Any, targets: Tensor, size: int) -> tuple[float, Tensor]:
    """Return the loss and the weights after one update of all samples in batches of a size."""
    model, steps = plain_network(), -(-len(INPUTS) // size)
    trainer = quiet_trainer(model, loss_fn=loss, lr=0.1, gradient_accumulation_steps=steps)
    history = trainer.fit(ready_batches((INPUTS, targets), size), epochs=1)
    return history["train_loss"][0], torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", EXACT)
def test_accumulated_batches_equal_the_large_one(kind: str) -> None:
    """Also the short last one; the loss of an epoch and of `evaluate` is that of all samples."""
    loss, targets = EXACT[kind]
    (first, weights), (whole, expected) = trained(loss, targets, 8), trained(loss, targets, 19)
    assert first == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(weights, expected, atol=1e-6)
    trainer = quiet_trainer(plain_network(), loss_fn=loss, batch_size=8)
    in_parts = trainer.evaluate((INPUTS, targets))["loss"]
    assert in_parts == pytest.approx(loss(trainer.model(INPUTS), targets).item(), rel=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_loss_that_is_a_mean_over_nothing_known_needs_equal_batches(kind: str) -> None:
    """Accumulation and a short batch are refused before the first step; equal ones are trained."""
    loss = REFUSED[kind]
    data = (INPUTS[:16], TARGETS[:16])
    trainer = quiet_trainer(plain_network(), loss_fn=loss, batch_size=8)
    assert trainer.fit(data, epochs=1)["step"] == [2]
    accumulating = quiet_trainer(plain_network(), loss_fn=loss, gradient_accumulation_steps=2)
    calls: list[Callable[[], Any]] = [
        lambda: accumulating.fit(data, epochs=1),
        lambda: quiet_trainer(plain_network(), loss_fn=loss).fit((INPUTS, TARGETS), epochs=1),
        lambda: trainer.evaluate((INPUTS, TARGETS)),
        lambda: trainer.evaluate(ready_batches((INPUTS, TARGETS))),
        lambda: trainer.evaluate(iter(ready_batches((INPUTS, TARGETS)))),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match=r"StepOutput\.weight"):
            call()
    assert accumulating.state.step == 0


def test_loss_that_sums_is_refused() -> None:
    """As a partial, a function, or a module of the user's."""
    losses: list[Any] = [
        partial(F.cross_entropy, reduction="sum"),
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
        Wrapped(nn.CrossEntropyLoss(reduction="sum")),
    ]
    for loss in losses:
        with pytest.raises(InvalidArgumentError, match="average"):
            quiet_trainer(plain_network(), loss_fn=loss).fit((INPUTS, TARGETS), epochs=1)


def test_equal_outputs_do_not_hide_class_weights() -> None:
    """The outputs of a head of zeros are the same for each sample."""
    found = measured_weighting(REFUSED["class weights"], torch.zeros(12, 3), TARGETS[:12])
    assert not found.known


def test_next_token_loss_counts_the_tokens_after_the_first() -> None:
    """Whether the first batch has padding or not."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    tokens = torch.arange(30).view(6, 5) % 7
    padded = tokens.clone()
    padded[:2, 3:] = -100
    for first in (tokens, padded):
        found = measured_weighting(loss, torch.zeros(6, 5, 7), first)
        assert found.known
        assert float(found.weight(padded)) == 6 * 4 - 4


def test_rows_of_another_shape_are_refused_if_elements_may_count() -> None:
    """A mean over rows and a mean over elements are the same within one batch."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()

    task = SupervisedTask(loss)
    assert task.weight(torch.zeros(4, 5), torch.ones(4, 5)) == 4
    with pytest.raises(InvalidArgumentError, match=r"\(7,\).*\(5,\)"):
        task.weight(torch.zeros(4, 7), torch.ones(4, 7))


@pytest.mark.parametrize("size", [4, 8], ids=["accumulated", "whole"])
def test_update_without_weight_has_zero_gradients(size: int) -> None:
    """Of ignored targets, and of classes without weight: never nan."""
    nothing = torch.full((8,), -100)
    zeros = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0]))
    for loss, targets in ((None, nothing), (zeros, torch.zeros(8).long())):
        model = plain_network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = quiet_trainer(model, loss_fn=loss, gradient_accumulation_steps=8 // size)
        trainer.fit(ready_batches((INPUTS[:8], targets), size), epochs=1)
        assert trainer.state.step == 1
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


def test_micro_batch_without_weight_leaves_the_others_as_they_are() -> None:
    """Its loss is nan, and so are its gradients."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 2.0]))
    targets = torch.tensor([0, 0, 0, 0, 1, 2, 1, 2])
    states = []
    for size, steps in ((4, 2), (8, 1)):
        model = plain_network()
        trainer = quiet_trainer(model, loss_fn=loss, gradient_accumulation_steps=steps)
        trainer.fit(ready_batches((INPUTS[:8], targets), size), epochs=1)
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(states[0], states[1], atol=1e-7)


def test_weights_are_divided_in_double_precision() -> None:
    """A model in float64 is accurate to its own precision."""
    results = []
    for size in (8, 19):
        model = plain_network().double()
        trainer = quiet_trainer(model, lr=0.1, gradient_accumulation_steps=-(-19 // size))
        trainer.fit(ready_batches((INPUTS.double(), IGNORED), size), epochs=1)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (results[0] - results[1]).abs().max() < 1e-14


def test_measuring_leaves_a_module_as_it_was() -> None:
    """It is called several times on values that are not the user's."""

    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(outputs, targets)

    loss = Counting()
    quiet_trainer(plain_network(), loss_fn=loss).fit((INPUTS[:16], TARGETS[:16]), epochs=1)
    assert loss.calls == 4


def test_accuracy_follows_what_a_function_ignores() -> None:
    """The index was found by measuring."""
    loss, targets = EXACT["lambda that ignores 255"]
    trainer = quiet_trainer(plain_network(), loss_fn=loss, metrics={"accuracy": Accuracy()})
    right = (trainer.predict(INPUTS).argmax(1) == targets)[6:].float().mean().item()
    assert trainer.evaluate((INPUTS, targets))["accuracy"] == pytest.approx(right)


def test_divergence_may_average_over_the_batch() -> None:
    """`batchmean` is the mean that the name of the class promises."""
    trainer = quiet_trainer(
        nn.Sequential(plain_network(), nn.LogSoftmax(1)),
        loss_fn=nn.KLDivLoss(reduction="batchmean"),
    )
    targets = F.one_hot(TARGETS, 3).float()
    expected = F.kl_div(trainer.model(INPUTS), targets, reduction="batchmean").item()
    assert trainer.evaluate((INPUTS, targets))["loss"] == pytest.approx(expected)
    with pytest.raises(FinetuneLibError, match="sum"):
        quiet_trainer(plain_network(), loss_fn=nn.KLDivLoss(reduction="sum"))
