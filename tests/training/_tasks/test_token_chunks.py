"""`TokenTask(chunk_size=...)`: the logits of a few tokens at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib.errors import InvalidArgumentError, InvalidTargetError, InvalidTypeError
from finetunelib.training import Accuracy, TokenTask

WORDS, ROWS, LENGTH = 11, 6, 5
TOKENS = torch.randint(0, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
LABELS = TOKENS.masked_fill(torch.arange(LENGTH) >= torch.arange(ROWS)[:, None] % LENGTH + 1, -100)


class Model(nn.Module):
    """A model whose head shares its weight with the embedding, and may be followed by a factor."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 8)
        self.mix = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.factor = factor
        self.largest = 0

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, and note how many there were at most."""
        logits: Tensor = self.head(self.drop(self.mix(self.words(tokens)).relu()))
        self.largest = max(self.largest, logits[..., 0].numel())
        return logits if self.factor is None else logits * self.factor


def step(model: nn.Module, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a step and all gradients."""
    torch.manual_seed(1)
    output = TokenTask(shift=True, **options).step(model, (TOKENS, LABELS))
    torch.autograd.backward(output.loss)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == 3
    return output.loss.detach(), gradients


@pytest.mark.parametrize("factor", [None, 0.5])
@pytest.mark.parametrize("size", [1, 7, ROWS * LENGTH, 1000])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    factor: float | None, size: int
) -> None:
    """One chunk gives the same bits. A model that scales its logits is computed in chunks too."""
    loss, gradients = step(Model(factor))
    model = Model(factor)
    chunked, others = step(model, chunk_size=size)
    if size >= ROWS * LENGTH:
        assert torch.equal(loss, chunked)
        assert all(map(torch.equal, gradients, others))
    assert torch.allclose(loss, chunked, rtol=1e-6)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_model_never_makes_all_logits() -> None:
    """It makes those of one token of each row; of a row at most, to find the head."""
    model = Model()
    trainer = Trainer(model, task=TokenTask(shift=True, chunk_size=4), progress=False)
    trainer.fit((TOKENS, LABELS), (TOKENS, LABELS), epochs=2)
    assert model.largest == max(ROWS, LENGTH)
    assert not model.head._forward_hooks
    assert not model.head._forward_pre_hooks


def test_a_run_in_chunks_is_the_run_without() -> None:
    """Weights, loss, accuracy and perplexity are equal to rounding."""
    one = Trainer(Model(), task=TokenTask(shift=True), lr=0.5, progress=False)
    task = TokenTask(shift=True, chunk_size=4)
    other = Trainer(Model(), task=task, lr=0.5, progress=False)
    for trainer in (one, other):
        trainer.fit((TOKENS, LABELS), (TOKENS, LABELS), epochs=3)
    for name in ("train_loss", "val_accuracy", "val_perplexity"):
        assert other.history[name] == pytest.approx(one.history[name], rel=1e-5)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, other.predict(TOKENS), other.model.eval()(TOKENS)))


def test_hooks_of_the_head_are_applied_once() -> None:
    """Hooks of the user's get the chunks, with the values that they would get at once."""

    def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + 1

    models = [Model(), Model()]
    for model in models:
        model.head.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
        model.head.register_forward_hook(add)
    loss, _ = step(models[0])
    chunked, _ = step(models[1], chunk_size=4)
    assert torch.allclose(loss, chunked, rtol=1e-6)


def test_a_head_that_is_not_last_in_training_is_refused() -> None:
    """It was last when it was looked for."""

    class Other(Model):
        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = super().forward(tokens)
            return logits * 0.5 if self.training else logits

    trainer = Trainer(Other(), task=TokenTask(shift=True, chunk_size=4), progress=False)
    with pytest.raises(InvalidArgumentError, match="chunk_size"):
        trainer.fit((TOKENS, LABELS), epochs=1)


def test_an_argument_without_rows_may_be_as_long_as_the_batch() -> None:
    """One row of the batch then does not fit to it, and the whole batch does."""

    class Shifted(Model):
        def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
            assert places is not None
            assert places.shape == (ROWS,)
            logits: Tensor = super().forward(tokens)
            return logits

    inputs = {"tokens": TOKENS, "places": torch.arange(ROWS)}
    data = [{**inputs, "labels": LABELS}]
    losses = [
        Trainer(Shifted(), task=TokenTask(shift=True, chunk_size=size), progress=False).fit(
            data, epochs=1
        )["train_loss"][0]
        for size in (None, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    output = TokenTask(shift=True, chunk_size=4).step(Shifted(), data[0])
    assert output.outputs.shape == LABELS.shape


def test_what_does_not_fit_is_refused() -> None:
    """As without chunks; more than the largest class is not known."""
    task = TokenTask(shift=True, chunk_size=4)
    with pytest.raises(InvalidTargetError, match="0 to 10"):
        Trainer(Model(), task=task, progress=False).fit((TOKENS, TOKENS + 5), epochs=1)
    top = {"top": Accuracy(2)}
    with pytest.raises(InvalidArgumentError, match="top_k"):
        Trainer(Model(), task=task, metrics=top, progress=False).evaluate((TOKENS, LABELS))
    with pytest.raises(InvalidArgumentError, match="chunk_size"):
        TokenTask(chunk_size=0)
    wrong: Any = 0.5
    with pytest.raises(InvalidTypeError, match="chunk_size"):
        TokenTask(chunk_size=wrong)
