"""`TokenTask`: one class for each token, of which padding does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetunelib import Trainer
from finetunelib.errors import (
    FinetuneLibError,
    InvalidArgumentError,
    InvalidTargetError,
    InvalidTypeError,
)
from finetunelib.training import Accuracy, TokenTask

WORDS, TAGS, ROWS, LENGTH = 11, 4, 16, 6


class Tagger(nn.Module):
    """A model of logits `(batch, tokens, classes)`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.body(tokens))
        return logits


def tagger(classes: int = TAGS) -> Tagger:
    """Return a model of `classes` tags."""
    return Tagger(classes)


def in_batches(size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the texts and their tags in batches."""
    rows = range(0, ROWS, size)
    return [(texts()[row : row + size], tags()[row : row + size]) for row in rows]


def gradient_of(model: Tagger) -> Tensor:
    """Return the gradient of the head's weight."""
    assert model.head.weight.grad is not None
    return model.head.weight.grad


class TinyForCausalLM(nn.Module):
    """A model whose class says that it predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = tagger(WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits of the next tokens."""
        logits: Tensor = self.layers(input_ids)
        return logits


class TinyForTokenClassification(TinyForCausalLM):
    """A model whose class says that it labels each token."""


def texts() -> Tensor:
    """Return rows of token indices."""
    return torch.randint(1, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def tags() -> Tensor:
    """Return a tag for each token; rows are padded on the right to different lengths."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(0, TAGS, (ROWS, LENGTH), generator=generator)
    lengths = torch.arange(ROWS)[:, None] % LENGTH + 1
    return found.masked_fill(torch.arange(LENGTH) >= lengths, -100)


def fit(model: nn.Module, data: Any, **options: Any) -> Any:
    """Train for one epoch and return the history."""
    return Trainer(model, progress=False, **options).fit(data, epochs=1)


def test_accumulated_micro_batches_weight_each_token_equally() -> None:
    """4 x 4 padded rows are one batch of 16, though the parts count different numbers of tokens."""
    trained = []
    for size, steps in ((16, 1), (4, 4)):
        model = tagger()
        data = in_batches(size)
        history = fit(model, data, task=TokenTask(), lr=1.0, gradient_accumulation_steps=steps)
        trained.append((model.head.weight.detach(), history["train_loss"][0]))
    (one, loss), (other, accumulated) = trained
    assert torch.allclose(one, other, rtol=0, atol=1e-6)
    assert accumulated == pytest.approx(loss, abs=1e-6)


def test_a_step_has_the_bits_of_the_mean_cross_entropy() -> None:
    """The sum over the counted tokens is divided as PyTorch's mean is."""
    model, batch = tagger(), (texts(), tags())
    output = TokenTask().step(model, batch)
    torch.autograd.backward(output.loss)
    gradient = gradient_of(model)
    model.zero_grad()
    expected = functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
    torch.autograd.backward(expected)
    assert torch.equal(output.loss, expected)
    assert torch.equal(gradient, gradient_of(model))
    assert int(output.weight) == int((batch[1] != -100).sum())


def test_a_batch_without_a_counted_token_has_no_gradient() -> None:
    """Its loss is 0, and it is not counted in the mean of the epoch."""
    model = tagger()
    before = [p.detach().clone() for p in model.parameters()]
    batches = [(texts(), torch.full((ROWS, LENGTH), -100))]
    history = fit(model, batches, task=TokenTask(), lr=1.0)
    assert math.isnan(history["train_loss"][0])
    assert all(map(torch.equal, before, model.parameters()))
    output = TokenTask().step(model, batches[0])
    torch.autograd.backward(output.loss)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_metrics_are_accuracy_and_perplexity_over_counted_tokens() -> None:
    """The perplexity is the exponential of the mean loss, not a mean of exponentials."""
    model = tagger()
    batches = in_batches(4)
    found = Trainer(model, task=TokenTask(), progress=False).evaluate(batches)
    logits, targets = model(texts()).movedim(-1, 1), tags()
    loss = functional.cross_entropy(logits, targets).item()
    counted = targets != -100
    assert list(found) == ["loss", "accuracy", "perplexity"]
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == math.exp(found["loss"])
    assert found["accuracy"] == (logits.argmax(1) == targets)[counted].sum() / counted.sum()


def test_accuracy_takes_the_last_axis_as_the_classes() -> None:
    """Also where there are as many tokens as classes."""
    model, targets = tagger(LENGTH), torch.randint(0, LENGTH, (ROWS, LENGTH))
    data = (texts(), targets)
    found = Trainer(model, task=TokenTask(), progress=False).evaluate(data)
    assert found["accuracy"] == (model(texts()).argmax(-1) == targets).float().mean()
    top = {"top": Accuracy(top_k=2)}
    found = Trainer(model, task=TokenTask(), metrics=top, progress=False).evaluate(data)
    largest = model(texts()).topk(2).indices
    assert found["top"] == (largest == targets[..., None]).any(-1).float().mean()


def test_shifted_targets_are_those_of_the_next_position() -> None:
    """The last position has none, and padding does not count."""
    tokens = texts()
    labels = tokens.masked_fill(tags() == -100, -100)
    output = TokenTask(shift=True).step(TinyForCausalLM(), (tokens, labels))
    logits = TinyForCausalLM()(tokens)[:, :-1]
    expected = functional.cross_entropy(logits.movedim(-1, 1), labels[:, 1:])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(output.targets[:, :-1], labels[:, 1:])
    assert bool((output.targets[:, -1] == -100).all())


TOKENS = texts()
NEXT = functional.pad(TOKENS[:, 1:], (0, 1), value=-100)
REFUSED: dict[str, tuple[Callable[[], nn.Module], TokenTask, Tensor, type[Exception], str]] = {
    "not at all": (TinyForCausalLM, TokenTask(), TOKENS, InvalidTargetError, "shift=True"),
    "twice": (TinyForCausalLM, TokenTask(shift=True), NEXT, InvalidTargetError, "twice"),
    "labels of positions": (
        TinyForTokenClassification,
        TokenTask(shift=True),
        TOKENS,
        InvalidArgumentError,
        "label of each position",
    ),
    "classes": (tagger, TokenTask(), TOKENS + 1, InvalidTargetError, "0 to 3"),
    "dtype": (tagger, TokenTask(), tags().int(), InvalidTargetError, ".long()"),
    "length": (tagger, TokenTask(), tags()[:, 1:], InvalidTargetError, "targets"),
    "one class per row": (tagger, TokenTask(), tags()[:, 0], InvalidTargetError, "position"),
    "nothing counts": (
        tagger,
        TokenTask(),
        torch.full((ROWS, LENGTH), -100),
        InvalidTargetError,
        "-100",
    ),
    "another index": (
        tagger,
        TokenTask(),
        tags().masked_fill(tags() == -100, -1),
        InvalidTargetError,
        "TokenTask(ignore_index=-1)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_training(case: str) -> None:
    """The message names what to pass."""
    make, task, targets, kind, words = REFUSED[case]
    model = make()
    with pytest.raises(kind) as caught:
        fit(model, (TOKENS, targets), task=task)
    assert words in str(caught.value)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "task", "targets"),
    [
        (TinyForCausalLM, TokenTask(shift=True), TOKENS),
        (TinyForCausalLM, TokenTask(), NEXT),
        (TinyForTokenClassification, TokenTask(), TOKENS),
        (tagger, TokenTask(ignore_index=-1), tags().masked_fill(tags() == -100, -1)),
    ],
)
def test_what_the_messages_suggest_trains(
    make: Callable[[], nn.Module], task: TokenTask, targets: Tensor
) -> None:
    """Each choice of `shift` is right for some targets."""
    assert math.isfinite(fit(make(), (TOKENS, targets), task=task)["train_loss"][0])


def test_a_model_of_an_unknown_class_may_copy_its_inputs() -> None:
    """It is only warned that `shift=True` predicts the next token."""
    with pytest.warns(UserWarning, match="shift=True"):
        fit(tagger(WORDS), (TOKENS, TOKENS), task=TokenTask())


def test_predictions_are_cut_to_the_length_of_each_row() -> None:
    """The mask tells, on either side; without one the ignored targets at the end do."""
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    ids, model = TOKENS[:2], TinyForCausalLM()
    logits = model(ids)
    trainer = Trainer(model, task=TokenTask(shift=True), progress=False)
    rows = trainer.predict([{"input_ids": ids, "attention_mask": mask}])
    assert torch.equal(rows[0], logits[0, :3])
    assert torch.equal(rows[1], logits[1, 2:])
    labels = ids.clone()
    labels[0, 3:] = -100
    labels[1, :2] = -100
    assert [len(row) for row in trainer.predict((ids, labels))] == [3, 6]
    assert [len(row) for row in trainer.predict(ids)] == [6, 6]
    padded = Trainer(model, task=TokenTask(shift=True, pad_predictions=True), progress=False)
    assert torch.equal(padded.predict([{"input_ids": ids, "attention_mask": mask}]), logits)


@pytest.mark.parametrize("classes", [TAGS, LENGTH])
@pytest.mark.parametrize("loss_fn", [None, nn.CrossEntropyLoss()])
def test_the_default_task_refuses_targets_of_tokens(
    classes: int, loss_fn: nn.Module | None
) -> None:
    """Also where there are as many tokens as classes; its hint trains."""
    data = (TOKENS, tags())
    with pytest.raises(InvalidTargetError, match=r"task=TokenTask\(\)"):
        fit(tagger(classes), data, loss_fn=loss_fn)
    fit(tagger(classes), data, task=TokenTask())


def test_the_default_task_suggests_the_shift_of_a_language_model() -> None:
    """Targets that are the input tokens are those of the next token."""
    with pytest.raises(InvalidTargetError, match=r"task=TokenTask\(shift=True\)"):
        fit(TinyForCausalLM(), [{"input_ids": TOKENS, "labels": TOKENS}])


@pytest.mark.parametrize("loss_fn", [None, nn.CrossEntropyLoss()])
def test_classes_on_axis_1_are_trained_as_before(loss_fn: nn.Module | None) -> None:
    """A segmentation of a sequence has as many targets as positions."""
    model = nn.Conv1d(2, LENGTH, 1)
    data = (torch.randn(ROWS, 2, LENGTH), torch.randint(0, LENGTH, (ROWS, LENGTH)))
    assert math.isfinite(fit(model, data, loss_fn=loss_fn)["train_loss"][0])


@pytest.mark.parametrize("options", [{"shift": 1}, {"ignore_index": 0.5}, {"pad_predictions": 0}])
def test_arguments_are_checked(options: Any) -> None:
    """Each has its type."""
    with pytest.raises(InvalidTypeError):
        TokenTask(**options)


def test_a_target_that_is_no_class_is_reported_in_a_later_batch() -> None:
    """The first batch cannot show it."""
    batches = [(TOKENS, tags()), (TOKENS, tags() + 50)]
    with pytest.raises(FinetuneLibError, match="0 to 3"):
        fit(tagger(), batches, task=TokenTask())
