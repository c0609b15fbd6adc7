"""`fit` as a whole: repeated calls, limits, restored state, types of data, progress."""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetunelib import Trainer, freeze_and_replace_head
from finetunelib.data import TensorBatches, in_memory
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import Callback, TrainContext
from training.tiny import (
    BATCH,
    modes_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    random_states,
    ready_batches,
    same_bits,
    same_weights,
    weights_of,
)

STEPS = 6  # of an epoch: 22 samples in batches of 4


# A second fit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": torch.optim.AdamW},
        {"lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)},
        {
            "lr_scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
            "lr_scheduler_interval": "step",
        },
        {"precision": "fp16-mixed"},
        {"gradient_accumulation_steps": 4},
    ],
    ids=["SGD", "AdamW", "per epoch", "per step", "fp16", "accumulation"],
)
@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_two_fits_of_one_epoch_are_one_fit_of_two(kind: str, options: dict[str, Any]) -> None:
    """Optimizer, schedule, scaler, order of the data and dropout continue, bit for bit."""
    data: Any = points()
    if kind == "loader":
        data = DataLoader(TensorDataset(*points()), batch_size=BATCH, shuffle=True)
    parts, whole = network(), network()
    trainer = quiet_trainer(parts, **options)
    trainer.fit(data, epochs=1)
    trainer.fit(data, epochs=1)
    expected = quiet_trainer(whole, **options).fit(data, epochs=2)
    assert same_weights(parts, whole)
    for name in ("epoch", "step", "train_loss", "train_accuracy", "lr"):
        assert trainer.history[name] == expected[name]


def test_counters_continue_in_a_second_fit() -> None:
    """Epochs and steps count from the first `fit`, and one history has all rows."""
    trainer = quiet_trainer(plain_network())
    first = trainer.fit(points(), epochs=2)
    second = trainer.fit(points(), epochs=1)
    assert second is first is trainer.history
    assert second["epoch"] == [1, 2, 3]
    assert second["step"] == [6, 12, 18]
    assert (trainer.state.epoch, trainer.state.step) == (3, 18)


def test_optimizer_is_the_same_in_a_second_fit() -> None:
    """Its momentum is kept."""
    trainer = quiet_trainer(plain_network())
    trainer.fit(points(), epochs=1)
    optimizer = trainer.optimizer
    trainer.fit(points(), epochs=1)
    assert trainer.optimizer is optimizer


def test_second_fit_may_have_other_data() -> None:
    """Validation data that is added later fills its own column."""
    trainer = quiet_trainer(plain_network())
    trainer.fit(points(), epochs=1)
    history = trainer.fit(points(8), points(8), epochs=1)
    assert history["step"] == [6, 8]
    assert np.isnan(history["val_loss"]).tolist() == [True, False]


# Limits


def test_max_steps_ends_within_an_epoch() -> None:
    """An epoch that is cut short counts as an epoch, and its row is written."""
    trainer = quiet_trainer(plain_network())
    history = trainer.fit(points(), points(8), max_steps=8)
    assert history["step"] == [6, 8]
    assert history["epoch"] == [1, 2]
    assert len(history["val_loss"]) == 2


def test_steps_until_max_steps_are_those_of_a_longer_run() -> None:
    """A limit does not change the steps before it."""
    short, by_hand = plain_network(), plain_network()
    quiet_trainer(short, lr=0.1).fit(points(), max_steps=8)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    batches = TensorBatches(*points(), batch_size=BATCH)
    for inputs, targets in [*batches.epoch(0), *list(batches.epoch(1))[:2]]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(by_hand(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert same_weights(short, by_hand)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1, 100, [6]), (5, 2, [2]), (2, 12, [6, 12]), (3, 12, [6, 12]), (2, 6, [6])],
)
def test_first_limit_reached_ends_the_training(
    epochs: int, max_steps: int, steps: list[int]
) -> None:
    """No limit is exceeded, and no epoch without a step is started."""
    trainer = quiet_trainer(plain_network())
    assert trainer.fit(points(), epochs=epochs, max_steps=max_steps)["step"] == steps


def test_max_steps_counts_the_steps_of_its_fit() -> None:
    """A second `fit` takes as many further steps."""
    trainer = quiet_trainer(plain_network())
    trainer.fit(points(), max_steps=4)
    assert trainer.fit(points(), max_steps=3)["step"] == [4, 7]


def test_row_of_a_cut_epoch_covers_the_samples_that_were_used() -> None:
    """Two batches of four are eight samples."""
    history = quiet_trainer(
        plain_network(), metrics={"size": lambda outputs, targets: len(targets)}, lr=0.0
    ).fit(ready_batches(points()), max_steps=2)
    inputs, targets = points()
    expected = nn.functional.cross_entropy(plain_network()(inputs[:8]), targets[:8])
    # The mean of two means of four in float32.
    assert history["train_loss"] == pytest.approx([float(expected.detach())], rel=1e-6)


def test_times_are_positive() -> None:
    """Every row has `seconds` and `samples_per_second`."""
    history = quiet_trainer(plain_network()).fit(points(), points(8), epochs=2)
    assert min(history["seconds"]) > 0.0
    assert min(history["samples_per_second"]) > 0.0


class Clock:
    """Counts its calls as seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_time_of_reading_the_first_batch_is_part_of_an_epoch() -> None:
    """If the data is slow, every row shows it, including that of the first epoch."""

    class SlowToBegin:
        """Lets a thousand seconds pass before its first batch."""

        def __iter__(self) -> Iterator[Any]:
            clock.now += 1000.0
            return iter(ready_batches(points()))

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", clock)
        history = quiet_trainer(plain_network()).fit(SlowToBegin(), epochs=2)
    assert min(history["seconds"]) > 1000.0
    assert max(history["samples_per_second"]) < 1.0


def test_samples_per_second_are_those_of_training_alone() -> None:
    """Slow validation does not lower the throughput of training."""

    class SlowValidation(Callback):
        """Lets a thousand seconds pass."""

        def on_validation_start(self, context: TrainContext) -> None:
            clock.now += 1000.0

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", clock)
        history = quiet_trainer(plain_network(), callbacks=[SlowValidation()]).fit(
            points(), points(8), epochs=1
        )
    assert history["seconds"][0] > 1000.0
    assert history["samples_per_second"][0] > 1.0


# State that is restored


def test_model_in_eval_mode_is_trained_in_train_mode_as_a_whole() -> None:
    """A model in eval mode trains like one in train mode, and is in eval mode afterwards."""
    used, new = network().eval(), network()
    quiet_trainer(used).fit(points(), epochs=2)
    quiet_trainer(new).fit(points(), epochs=2)
    assert same_weights(used, new)
    assert not any(modes_of(used).values())
    assert all(modes_of(new).values())


def test_submodule_set_to_eval_by_hand_stays_so() -> None:
    """BatchNorm that the user set to eval keeps its statistics, with validation too."""
    model = network()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.eval()
    modes = modes_of(model)
    before = weights_of(model)
    quiet_trainer(model, lr=0.1).fit(points(), points(8), epochs=2)
    after = weights_of(model)
    assert modes_of(model) == modes
    statistics = {name for name in after if "running" in name or "num_batches" in name}
    assert len(statistics) == 3 * len(norms)
    assert all(torch.equal(after[name], before[name]) for name in statistics)
    assert not torch.equal(after["backbone.2.weight"], before["backbone.2.weight"])


def test_validation_restores_the_modes_of_training() -> None:
    """The second epoch trains in the modes of the first."""
    modes: list[dict[str, bool]] = []

    class Modes(Callback):
        """Records the modes after each step."""

        def on_step_end(self, context: TrainContext) -> None:
            modes.append(modes_of(context.model))

    model = network()
    model.get_submodule("backbone.2").eval()
    expected = modes_of(model)
    quiet_trainer(model, callbacks=[Modes()]).fit(points(8), points(8), epochs=2)
    assert modes == [expected] * 4


class Draws(nn.Module):
    """Draws from every global generator, and can fail in the second step."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.inner = network()
        self.steps_left = 1 if fails else 10**6

    def forward(self, inputs: Tensor) -> Any:
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        random.random()
        if self.training:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise KeyError("told to")
        return self.inner(inputs)


def test_random_states_are_restored() -> None:
    """The caller's generators of torch, numpy and Python are unchanged."""
    before = random_states()
    quiet_trainer(Draws(fails=False)).fit(points(), points(8), epochs=2)
    assert random_states() == before


def test_state_is_restored_after_an_error() -> None:
    """Modes, random states and gradients are restored if the model fails in training."""
    model = Draws(fails=True)
    model.inner.get_submodule("backbone.2").eval()
    states, modes = random_states(), modes_of(model)
    with pytest.raises(KeyError, match="told to"):
        quiet_trainer(model).fit(points(), epochs=2)
    assert random_states() == states
    assert modes_of(model) == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_model_draws_the_same_numbers_in_every_run() -> None:
    """All three global generators are seeded from (seed, epoch), not from the caller's state."""
    drawn: list[tuple[float, float, float]] = []

    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    class Draw(Callback):
        """Draws one number from each generator at the start of every epoch."""

        def on_epoch_start(self, context: TrainContext) -> None:
            drawn.append(draw())

    for _ in range(2):
        quiet_trainer(plain_network(), callbacks=[Draw()]).fit(points(4), epochs=2)
        draw()
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_gradients_are_cleared_after_a_run() -> None:
    """The user's own loop would add to gradients that are left."""
    model = network()
    quiet_trainer(model).fit(points(), epochs=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_outside_the_optimizer_are_cleared_too() -> None:
    """An optimizer over the head leaves no gradients in the backbone."""
    model = network()
    trainer = quiet_trainer(model, optimizer=torch.optim.SGD(model.head.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="not trained"):
        trainer.fit(points(), epochs=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_requires_grad_is_not_changed() -> None:
    """`requires_grad` of every parameter is the same before and after."""
    model = network()
    model.get_parameter("backbone.1.bias").requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    quiet_trainer(model).fit(points(), points(8), epochs=1)
    assert {n: parameter.requires_grad for n, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("in_eval_mode", [False, True], ids=["train mode", "eval mode"])
def test_frozen_model_is_fine_tuned_with_its_backbone_bit_for_bit(in_eval_mode: bool) -> None:
    """Dropout and BatchNorm before the head are in eval mode, so the features do not change."""
    model = freeze_and_replace_head(network(), num_classes=3)
    model.train(not in_eval_mode)
    before = weights_of(model)
    inputs, targets = points()
    with torch.no_grad():
        features = network().eval().get_submodule("backbone")(inputs)
    head = nn.Linear(8, 3)
    head.load_state_dict({"weight": before["head.weight"], "bias": before["head.bias"]})

    optimizer = partial(torch.optim.AdamW, weight_decay=0.5)
    quiet_trainer(model, optimizer=optimizer, lr=0.1).fit(
        ready_batches((inputs, targets)), points(8), epochs=2
    )
    by_hand = optimizer(head.parameters(), lr=0.1)
    for _ in range(2):
        for rows, classes in ready_batches((features, targets)):
            by_hand.zero_grad()
            loss = nn.functional.cross_entropy(head(rows), classes)
            loss.backward()  # type: ignore[no-untyped-call]
            by_hand.step()
    after = weights_of(model)
    assert same_bits(
        {n: t for n, t in after.items() if not n.startswith("head")},
        {n: t for n, t in before.items() if not n.startswith("head")},
    )
    # Kernels for 22 rows and for four add in a different order.
    torch.testing.assert_close(after["head.weight"], head.weight.detach(), rtol=1e-4, atol=1e-5)


def test_model_with_integer_and_bool_buffers_is_trained() -> None:
    """Buffers that are not floating point are left unchanged."""
    model = plain_network()
    model.register_buffer("steps", torch.tensor(3))
    model.register_buffer("mask", torch.tensor([True, False]))
    quiet_trainer(model).fit(points(), epochs=1)
    assert int(model.get_buffer("steps")) == 3


# Types of data


class Items(Dataset[Any]):
    """A dataset of pairs, whose targets are Python numbers."""

    def __init__(self) -> None:
        self.inputs, self.targets = points()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.targets[index])


class Rows:
    """A dataset like those of Hugging Face: not a PyTorch Dataset, with mappings of lists."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, targets = points()
        return {"inputs": inputs[index].tolist(), "labels": int(targets[index])}


class Stream(IterableDataset[Any]):
    """Yields the pairs one by one, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*points(), strict=True))


DATA: dict[str, Callable[[], Any]] = {
    "tensors": points,
    "arrays": lambda: tuple(tensor.numpy() for tensor in points()),
    "tensor dataset": lambda: TensorDataset(*points()),
    "dataset": Items,
    "in memory": lambda: in_memory(Items(), progress=False),
    "mappings": Rows,
    "stream": Stream,
    "loader": lambda: DataLoader(Items(), batch_size=BATCH),
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=BATCH),
    "list": lambda: ready_batches(points()),
    "generator": lambda: iter(ready_batches(points())),
    "batches of the library": lambda: TensorBatches(*points(), batch_size=BATCH),
}
SHUFFLED = {"tensors", "arrays", "tensor dataset", "dataset", "in memory", "mappings"}


class Named(nn.Module):
    """Takes its inputs by name or by position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()

    def forward(self, inputs: Tensor) -> Any:
        return self.inner(inputs)


@pytest.mark.parametrize("val", DATA)
@pytest.mark.parametrize("train", DATA)
def test_data_of_every_kind_is_trained_on_and_validated(train: str, val: str) -> None:
    """Any types can be combined, and each matches the hand-written loop bit for bit."""
    model, expected = Named(), plain_network()
    history = quiet_trainer(model, lr=0.1).fit(DATA[train](), DATA[val](), epochs=1)
    batches = TensorBatches(*points(), batch_size=BATCH)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    is_shuffled = train in SHUFFLED | {"batches of the library"}
    for inputs, targets in batches.epoch(0) if is_shuffled else batches.in_order():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(expected(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert same_weights(model.inner, expected)
    inputs, targets = points()
    whole = nn.functional.cross_entropy(expected(inputs), targets)
    # Means of batches against the mean of all, in float32.
    assert history["val_loss"] == pytest.approx([float(whole.detach())], rel=1e-5)
    assert history["step"] == [STEPS]


@pytest.mark.parametrize("train", sorted(set(DATA) - {"generator"}))
def test_data_of_every_kind_is_read_again_in_the_next_epoch(train: str) -> None:
    """Three epochs read the data three times."""
    assert quiet_trainer(Named()).fit(DATA[train](), epochs=3)["step"] == [6, 12, 18]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "mappings", "stream"])
def test_workers_do_not_change_the_weights(kind: str) -> None:
    """Two processes that read the data give the bits that one gives."""
    one, two = Named(), Named()
    kinds: dict[str, Callable[[], Any]] = {
        "dataset": Items,
        "mappings": Rows,
        "stream": SharedStream,
    }
    data = kinds[kind]
    quiet_trainer(one, lr=0.1).fit(data(), data(), epochs=2)
    history = quiet_trainer(two, lr=0.1, num_workers=2).fit(data(), data(), epochs=2)
    assert same_weights(one, two)
    assert history["step"] == [6, 12]


class SharedStream(IterableDataset[Any]):
    """Yields its samples from the first worker only, to read each sample once."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        return iter(zip(*points(), strict=True)) if worker is None or worker.id == 0 else iter(())


def test_batch_transform_of_data_in_memory_is_applied_to_every_batch() -> None:
    """Training on transformed bytes equals training on the floats, bit for bit."""
    _, targets = points()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (22, 6), dtype=torch.uint8, generator=generator)
    sizes = []

    def to_floats(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return rows.float() / 255

    data = in_memory(TensorDataset(images, targets), batch_transform=to_floats, progress=False)
    model, expected = network(), network()
    trainer = quiet_trainer(model, lr=0.1)
    trainer.fit(data, data, epochs=2)
    quiet_trainer(expected, lr=0.1).fit((images.float() / 255, targets), epochs=2)
    assert same_weights(model, expected)
    assert set(sizes) == {4, 2}
    reference = quiet_trainer(expected)
    assert torch.equal(trainer.predict(data), reference.predict(images.float() / 255))


def test_data_is_not_changed() -> None:
    """Training does not write to the user's tensors."""
    inputs, targets = points()
    quiet_trainer(network(), lr=0.1).fit((inputs, targets), (inputs, targets), epochs=2)
    assert torch.equal(inputs, points()[0])
    assert torch.equal(targets, points()[1])


def test_complex_inputs_are_trained_on() -> None:
    """They are passed to a model that accepts them."""

    class Complex(nn.Module):
        """Uses the absolute value of its inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Any:
            return self.inner(inputs.abs())

    inputs, targets = points()
    history = quiet_trainer(Complex()).fit((torch.complex(inputs, inputs), targets), epochs=1)
    assert history["step"] == [STEPS]


# Progress


LINE = re.compile(
    r"epoch (\d+)(?:/(\d+))?: train_loss \d+\.\d{4}, train_accuracy \d\.\d{4}"
    r"(, val_loss \d+\.\d{4}, val_accuracy \d\.\d{4})?, \d+\.\d s"
)


def reported(capsys: pytest.CaptureFixture[str]) -> list[re.Match[str]]:
    """Return the lines on stderr, which must all be lines of epochs; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    matches = [LINE.fullmatch(line) for line in err.splitlines()]
    assert all(matches), err
    return [match for match in matches if match]


def test_report_is_one_line_per_epoch_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, each epoch prints one plain line with its metrics."""
    quiet_trainer(plain_network(), progress=True).fit(points(), points(8), epochs=2)
    lines = reported(capsys)
    assert [line.group(1, 2) for line in lines] == [("1", "2"), ("2", "2")]
    assert all(line.group(3) for line in lines)


def test_report_without_validation_has_no_validation(capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics that were not measured are not shown."""
    quiet_trainer(plain_network(), progress=True).fit(points(), epochs=1)
    assert [line.group(3) for line in reported(capsys)] == [None]


def test_report_of_a_second_fit_continues_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Two further epochs after one are epochs two and three of three."""
    trainer = quiet_trainer(plain_network(), progress=True)
    trainer.fit(points(), epochs=1)
    trainer.fit(points(), epochs=2)
    numbers = [line.group(1, 2) for line in reported(capsys)]
    assert numbers == [("1", "1"), ("2", "3"), ("3", "3")]


def test_report_without_a_number_of_epochs_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    """With `max_steps` alone, the total is unknown."""
    quiet_trainer(plain_network(), progress=True).fit(points(), max_steps=2)
    assert [line.group(1, 2) for line in reported(capsys)] == [("1", None)]


def test_progress_can_be_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    """`progress=False` writes nothing."""
    trainer = quiet_trainer(plain_network(), progress=False)
    trainer.fit(points(), points(8), epochs=2)
    trainer.evaluate(points(8))
    trainer.predict(points(8))
    assert capsys.readouterr() == ("", "")


def test_progress_is_reported_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """A Trainer without the argument reports progress."""
    Trainer(plain_network(), batch_size=BATCH).fit(points(), epochs=1)
    assert len(reported(capsys)) == 1


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_report_on_a_terminal_is_a_bar_that_a_line_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bar counts steps, and the line of the epoch replaces it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    quiet_trainer(plain_network(), progress=True, gradient_accumulation_steps=2).fit(
        points(), epochs=1
    )
    text = terminal.getvalue()
    assert "epoch 1/1" in text
    assert "0/3" in text
    assert LINE.fullmatch(text.rpartition("\r")[2].strip())


def test_bar_is_removed_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bar is left before the traceback, and no line of an unfinished epoch."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError):
        quiet_trainer(Draws(fails=True), progress=True).fit(points(), epochs=1)
    assert terminal.getvalue().endswith(" \r")


# The object


def test_model_is_the_users_own() -> None:
    """`trainer.model` is the object that was passed, before and after."""
    model = network()
    trainer = quiet_trainer(model)
    assert trainer.model is model
    trainer.fit(points(), epochs=1)
    assert trainer.model is model


def test_new_trainer_has_counted_nothing() -> None:
    """It has no optimizer, no rows, no epochs and no steps."""
    trainer = quiet_trainer(network())
    assert trainer.optimizer is None
    assert len(trainer.history) == 0
    assert (trainer.state.epoch, trainer.state.step) == (0, 0)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_fit_inside_a_running_fit_is_refused_and_the_first_one_continues(hook: str) -> None:
    """Counters, rows and weights are those of a run without the attempt."""
    tried: list[str] = []
    refused: list[InvalidArgumentError] = []

    def fit_again(self: Callback, context: TrainContext) -> None:
        if tried:
            return
        tried.append(hook)
        with pytest.raises(InvalidArgumentError, match="`fit`") as caught:
            trainer.fit(points(8), epochs=1)
        refused.append(caught.value)

    nested = type("Nested", (Callback,), {hook: fit_again})()
    model, expected = network(), network()
    trainer = quiet_trainer(model, callbacks=[nested])
    history = trainer.fit(points(), epochs=2)
    quiet_trainer(expected).fit(points(), epochs=2)
    assert refused
    assert history["step"] == [6, 12]
    assert same_weights(model, expected)


def test_trainer_can_fit_again_after_a_fit_that_failed() -> None:
    """An error ends the first `fit`, so the second one is not inside it."""
    trainer = quiet_trainer(plain_network())
    with pytest.raises(InvalidArgumentError, match="limit"):
        trainer.fit(points())
    assert trainer.fit(points(), epochs=1)["step"] == [STEPS]


def test_repr_is_one_short_line() -> None:
    """It names the model, the device and the counters."""
    trainer = quiet_trainer(plain_network(), device="cpu")
    trainer.fit(points(), epochs=2)
    assert repr(trainer) == "Trainer(MLP, device='cpu', epoch=2, step=12)"


def test_two_trainers_of_one_model_are_independent() -> None:
    """Each has its own history, optimizer and metrics."""
    model = plain_network()
    one, two = quiet_trainer(model), quiet_trainer(model)
    one.fit(points(), epochs=2)
    assert len(two.fit(points(), epochs=1)) == 1
    assert len(one.history) == 2
    assert one.optimizer is not two.optimizer
