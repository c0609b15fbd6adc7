"""A recurrent language model that reads a text in order and carries its state from batch to batch.

The program of PyTorch's word-language-model example: clipped gradients, a learning rate that is
divided by four if the validation loss has not improved, and a report of the loss every few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from finetunelib import Trainer
from finetunelib._preserve import derive_seed, reseed
from finetunelib.training import Callback, StepOutput, Task, TrainContext
from finetunelib.training._optimization.schedule import SchedulerFactory
from integration.programs import seeded
from training._loop.stopping import StopAfter, Stopped

WORDS, WIDTH, LAYERS, LENGTH, EPOCHS = 12, 16, 2, 7, 5
LR, MAX_NORM, REPORT = 2.0, 0.25, 4

#: Segments of a text: inputs and targets `(length, columns)`, and whether it starts there.
Segment = tuple[Tensor, Tensor, bool]


def text(words: int, seed: int) -> Tensor:
    """Return a text in which each word mostly follows from the two before it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, WORDS, (words,), generator=generator)
    surprising = torch.rand(words, generator=generator) < 0.15
    found = [1, 2]
    for position in range(2, words):
        regular = (2 * found[-1] + found[-2]) % WORDS
        found.append(int(noise[position]) if surprising[position] else regular)
    return torch.tensor(found)


def segments(words: Tensor, columns: int) -> list[Segment]:
    """Return a text in columns that are read side by side, in pieces; the last one is shorter."""
    rows = len(words) // columns
    table = words[: rows * columns].view(columns, rows).t().contiguous()
    pieces = []
    for start in range(0, rows - 1, LENGTH):
        end = min(start + LENGTH, rows - 1)
        pieces.append((table[start:end], table[start + 1 : end + 1], start == 0))
    return pieces


TRAIN, VAL = segments(text(420, seed=0), columns=6), segments(text(150, seed=1), columns=5)


class Reader(nn.Module):
    """Predicts each next word from the words so far."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.cells = nn.RNN(WIDTH, WIDTH, LAYERS, dropout=0.2)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.cells(self.dropout(self.embedding(words)), state)
        return self.head(self.dropout(outputs)).flatten(0, 1), state


def at_the_start(words: Tensor) -> Tensor:
    """Return the state of a model that has read nothing."""
    return torch.zeros(LAYERS, words.shape[1], WIDTH)


class ReadOn(nn.Module, Task):
    """Carries the state of the model to the next segment, without its graph.

    The state of training is a buffer, so that checkpoints contain it.
    """

    counts_tokens = True
    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", at_the_start(TRAIN[0][0]))
        self.validation_state = torch.zeros(0)

    def step(self, model: nn.Module, batch: Segment) -> StepOutput:
        words, targets, starts = batch
        before = self.state if model.training else self.validation_state
        logits, after = model(words, at_the_start(words) if starts else before)
        if model.training:
            self.state = after.detach()
        else:
            self.validation_state = after.detach()
        loss = nn.functional.cross_entropy(logits, targets.flatten())
        return StepOutput(loss, logits, targets.flatten(), weight=targets.numel())


class ReportLoss(Callback):
    """Keeps the mean loss of every few steps, their number, and the norm of the last gradients."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, float, float]] = []
        self._losses: list[float] = []

    def on_step_end(self, context: TrainContext) -> None:
        assert context.last_loss is not None
        self._losses.append(context.last_loss)
        if context.state.step % REPORT == 0:
            assert context.grad_norm is not None
            mean = sum(self._losses) / len(self._losses)
            self.lines.append((context.state.step, mean, context.grad_norm))
            self._losses.clear()


@dataclass
class ByHand:
    """The loop without a Trainer."""

    model: nn.Module = field(default_factory=lambda: seeded(Reader))
    lr: float = LR
    lines: list[tuple[int, float, float]] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)

    def train(self) -> None:
        best, steps, losses = math.inf, 0, []
        for epoch in range(EPOCHS):
            reseed(derive_seed(0, epoch))
            for loss in self._losses_of(TRAIN):
                self.model.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        assert parameter.grad is not None
                        parameter.add_(parameter.grad, alpha=-self.lr)
                losses.append(loss.item())
                steps += 1
                if steps % REPORT == 0:
                    self.lines.append((steps, sum(losses) / len(losses), norm.item()))
                    losses.clear()
            self.val_losses.append(self._validated())
            self.lrs.append(self.lr)
            if self.val_losses[-1] < best:
                best = self.val_losses[-1]
            else:
                self.lr /= 4

    def _losses_of(self, pieces: list[Segment]) -> Iterator[Tensor]:
        state = at_the_start(pieces[0][0])
        for words, targets, _ in pieces:
            logits, state = self.model(words, state.detach())
            yield nn.functional.cross_entropy(logits, targets.flatten())

    def _validated(self) -> float:
        self.model.eval()
        with torch.no_grad():
            counts = [targets.numel() for _, targets, _ in VAL]
            total = 0.0
            for loss, count in zip(self._losses_of(VAL), counts, strict=True):
                total += loss.item() * count
        self.model.train()
        return total / sum(counts)


def divided_by_four(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return a schedule that acts at the first validation loss that has not improved."""
    return ReduceLROnPlateau(optimizer, factor=0.25, patience=0, threshold=0.0)


def made(*callbacks: Callback, schedule: SchedulerFactory | None = divided_by_four) -> Trainer:
    """Return a Trainer of the same program."""
    return Trainer(
        seeded(Reader),
        task=ReadOn(),
        optimizer=torch.optim.SGD,
        lr=LR,
        lr_scheduler=schedule,
        max_grad_norm=MAX_NORM,
        callbacks=callbacks,
        progress=False,
        device="cpu",
    )


@pytest.fixture(scope="module")
def by_hand() -> ByHand:
    """Return the hand-written loop after its training."""
    program = ByHand()
    program.train()
    return program


def check(trainer: Trainer, by_hand: ByHand) -> None:
    """Assert that weights and rows are those of the hand-written loop, bit for bit."""
    expected = by_hand.model.state_dict()
    assert all(t.equal(expected[name]) for name, t in trainer.model.state_dict().items())
    assert trainer.history["val_loss"] == by_hand.val_losses
    assert trainer.history["lr"] == by_hand.lrs


def test_the_text_is_read_as_by_the_hand_written_loop(by_hand: ByHand) -> None:
    """Weights, reported losses and norms, and the learning rates have the same bits."""
    report = ReportLoss()
    trainer = made(report)
    trainer.fit(TRAIN, VAL, epochs=EPOCHS)
    check(trainer, by_hand)
    assert report.lines == by_hand.lines
    assert len(report.lines) == EPOCHS * len(TRAIN) // REPORT
    assert by_hand.lrs[-1] == LR / 4  # One validation loss has not improved.
    assert by_hand.val_losses[-1] < 0.9 * math.log(WORDS)  # The loss of a guess.


def test_the_state_of_the_model_survives_a_restart(by_hand: ByHand, tmp_path: Path) -> None:
    """A run that is killed in the middle of the text goes on there."""
    step = len(TRAIN) + 4
    with pytest.raises(Stopped):
        made(StopAfter(step, tmp_path)).fit(TRAIN, VAL, epochs=EPOCHS)
    resumed = made()
    resumed.fit(TRAIN, VAL, epochs=EPOCHS, resume_from=tmp_path)
    check(resumed, by_hand)


def test_validation_in_the_middle_of_the_text_does_not_disturb_it(by_hand: ByHand) -> None:
    """The state of training is kept while the model reads the text of validation."""
    trainer = made(schedule=None)
    history = trainer.fit(TRAIN, VAL, epochs=1, validate_every_n_steps=3)
    assert len(history) == math.ceil(len(TRAIN) / 3)
    assert history["val_loss"][-1] == by_hand.val_losses[0]
