"""Tests of training on a dataset whose samples are kept in memory."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from finetunelib import Trainer, build_mlp
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.data._cache import batches as cached_batches
from finetunelib.errors import InvalidArgumentError
from finetunelib.training import Callback, History, StepOutput, Task, TrainContext

SAMPLES = 40
INPUTS = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))


class Points(Dataset[Any]):
    """Points with a class, changed by `transform`. The reads are counted where nobody looks."""

    def __init__(self, transform: Callable[[Tensor], Any] | None = None) -> None:
        self.inputs = INPUTS.clone()
        self.classes = [index % 3 for index in range(SAMPLES)]
        self.scales = np.ones(SAMPLES, np.float32)
        self.transform = transform
        self.counter = count()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        next(self.counter)
        inputs = self.inputs[index] * float(self.scales[index])
        return self.transform(inputs) if self.transform else inputs, self.classes[index]

    @property
    def reads(self) -> int:
        """How often a sample was read."""
        return next(self.counter)


class Pair(NamedTuple):
    """A sample with names."""

    inputs: Tensor
    target: int


class Named(Points):
    """Points as named tuples."""

    def __getitem__(self, index: int) -> Pair:
        return Pair(*super().__getitem__(index))


class Labelled(Points):
    """Points as dicts, with a list of numbers among the values."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, target = super().__getitem__(index)
        return {"input": inputs.tolist(), "labels": target}


class TakesPoints(Task):
    """Takes the batches of `Labelled`."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        outputs = model(batch["input"])
        loss = nn.functional.cross_entropy(outputs, batch["labels"])
        return StepOutput(loss, outputs, batch["labels"], weight=len(outputs))


def fitted(
    data: Any, cache: Any = "auto", *, val: Any = None, resume: Path | None = None, **options: Any
) -> tuple[Trainer, History]:
    """Train a network with dropout for three epochs."""
    limits = {"epochs": 3, "max_steps": None, "validate_every_n_steps": None}
    limits = {name: options.pop(name, value) for name, value in limits.items()}
    trainer = Trainer(
        build_mlp(6, [8], 3, dropout=0.5, normalization=nn.BatchNorm1d, seed=0),
        **{"batch_size": 12, "progress": False, "cache_data": cache, **options},
    )
    return trainer, trainer.fit(data, val, resume_from=resume, **limits)


def measured(history: History) -> list[dict[str, float]]:
    """Return the rows without timings."""
    timings = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timings} for row in history]


def assert_same(one: tuple[Trainer, History], other: tuple[Trainer, History]) -> None:
    """Assert that two runs have the same bits and measures."""
    values = [list(trainer.model.state_dict().values()) for trainer, _ in (one, other)]
    assert all(map(torch.equal, *values))
    assert measured(one[1]) == measured(other[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"max_steps": 9, "epochs": None},
        {"val": Points(), "validate_every_n_steps": 3},
        {"val": {"one": Points(), "two": Subset(Points(), range(13))}},
        {"precision": "bf16-mixed"},
        pytest.param({"num_workers": 2, "val": Points()}, marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulated", "steps", "validated", "named", "bf16", "workers"],
)
def test_bits_are_those_without_a_cache(options: dict[str, Any]) -> None:
    """The order, the weights, the buffers and the history stay the same."""
    kept = fitted(Points(), **options)
    assert kept[1].cached_data
    plain = fitted(Points(), False, **options)
    assert not plain[1].cached_data
    assert_same(kept, plain)


@pytest.mark.parametrize(
    "data",
    [
        Named(),
        Labelled(),
        Subset(Points(), [7, *range(20)]),
        ConcatDataset([Points(), Subset(Points(), [1, 2])]),
        Points(lambda point: (point * 2).numpy()),
    ],
    ids=["named tuples", "dicts", "subset", "concatenated", "arrays"],
)
def test_samples_of_any_structure_are_kept(data: Any) -> None:
    """Batches have the types that a DataLoader gives them."""
    options: dict[str, Any] = {"task": TakesPoints()} if isinstance(data, Labelled) else {}
    kept = fitted(data, True, **options)
    assert kept[1].cached_data
    assert_same(kept, fitted(data, False, **options))


def test_each_sample_is_read_once() -> None:
    """Apart from the checks: two readings of 16 samples, the first batch, 16 in later epochs."""
    data, val = Points(), Points()
    fitted(data, val=val, epochs=5)
    checks = 2 * 16 + 4 * 16
    assert data.reads == SAMPLES + checks + 12
    assert val.reads == SAMPLES + checks + 12


def test_one_epoch_keeps_nothing() -> None:
    """There is nothing to gain, so the samples are not even read twice."""
    data = Points()
    history = fitted(data, epochs=1)[1]
    assert not history.cached_data
    assert data.reads == SAMPLES + 12


def test_a_second_fit_reads_anew() -> None:
    """What changed in between counts."""
    runs = []
    for cache in ("auto", False):
        data = Points()
        trainer, history = fitted(data, cache)
        data.inputs[:] += 1
        trainer.fit(data, epochs=2)
        runs.append((trainer, history))
    assert runs[0][1].cached_data
    assert_same(*runs)


@pytest.mark.parametrize("steps", [2, 6], ids=["first epoch", "second epoch"])
def test_resuming_inside_an_epoch_has_the_same_bits(steps: int, tmp_path: Path) -> None:
    """The rest of the epoch is read, and the next one is kept."""
    whole = fitted(Points(), False, val=Points())
    options: dict[str, Any] = {"val": Points(), "epochs": 3}
    saving = [ModelCheckpoint(tmp_path, every_n_steps=1)]
    fitted(Points(), **options, max_steps=steps, callbacks=saving)
    resumed = fitted(Points(), **options, callbacks=saving, resume=tmp_path)
    assert resumed[1].cached_data is (steps == 2)
    assert_same(resumed, whole)


class Does(Callback):
    """Calls a function at the start of each epoch, or after each step."""

    def __init__(self, function: Callable[[int], object], *, steps: bool = False) -> None:
        self.function = function
        self.steps = steps

    def on_epoch_start(self, context: TrainContext) -> None:
        if not self.steps:
            self.function(context.state.epoch)

    def on_step_end(self, context: TrainContext) -> None:
        if self.steps:
            self.function(context.state.step)


def set_item(values: Any, index: int, value: Any) -> None:
    """Change one value in place."""
    values[index] = value


CHANGES: dict[str, Callable[[Points, int], object]] = {
    "transform": lambda data, n: setattr(data, "transform", lambda point: point * n),
    "new attribute": lambda data, n: setattr(data, "epoch", n),
    "one label": lambda data, n: set_item(data.classes, 5, n % 3),
    "one row": lambda data, n: set_item(data.inputs, 5, n),
    "one value of an array": lambda data, n: set_item(data.scales, 5, n),
}


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        *((change, False) for change in CHANGES),
        *((change, True) for change in ("transform", "new attribute", "one row")),
    ],
)
def test_changes_by_callbacks_are_seen(change: str, steps: bool) -> None:
    """Attributes and tensors at the next batch, all other values at the next epoch."""
    runs = []
    for cache in ("auto", False):
        data = Points()
        start = 6 if steps else 2

        def act(number: int, data: Points = data, start: int = start) -> None:
            if number >= start:
                CHANGES[change](data, number)

        runs.append(fitted(data, cache, epochs=4, callbacks=[Does(act, steps=steps)]))
    assert not runs[0][1].cached_data
    assert_same(*runs)


def test_a_change_before_the_first_epoch_is_kept_with_it() -> None:
    """The checks before training read the dataset as it was before the callbacks."""
    runs = []
    for cache in (True, False):
        data = Points()

        def act(epoch: int, data: Points = data) -> None:
            if epoch == 0:
                data.transform = torch.neg

        runs.append(fitted(data, cache, callbacks=[Does(act)]))
    assert runs[0][1].cached_data
    assert_same(*runs)


def seeded(point: Tensor) -> Tensor:
    """Set the seed of a global generator, which draws the same number each time."""
    random.seed(3)
    return point + random.random()


class OfFile(Points):
    """Reads its samples from a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def __getitem__(self, index: int) -> Any:
        inputs, target = super().__getitem__(index)
        return inputs * float(self.file.read_text()), target


def test_a_file_that_changes_is_noticed_with_a_warning(tmp_path: Path) -> None:
    """Some samples are read again in each epoch."""
    file, runs = tmp_path / "scale", []
    for cache in ("auto", False):
        file.write_text("1")

        def act(epoch: int) -> None:
            file.write_text("1" if epoch < 2 else "2")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs.append(fitted(OfFile(file), cache, epochs=4, callbacks=[Does(act)]))
        found = [str(each.message) for each in caught]
        assert [("cache_data=False" in text) for text in found] == [True] * (cache == "auto")
    assert_same(*runs)


def rarely(point: Tensor) -> Tensor:
    """Draw a random number for one sample in all."""
    return point + torch.rand(1) if torch.equal(point, INPUTS[1]) else point


class WithGenerator(Points):
    """Draws from a generator of its own, for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        inputs, target = super().__getitem__(index)
        return inputs + (self.generator.random() if index == 1 else 0), target


class ByEpoch(Points):
    """Yields other samples in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the samples."""
        self.epoch = epoch


class Counting(Points):
    """Returns how often it was read, from the 30th time on."""

    total = 0

    def __getitem__(self, index: int) -> Any:
        self.total += 1
        inputs, target = super().__getitem__(index)
        return inputs + max(0, self.total - 30), target


RANDOM: dict[str, Callable[[], Any]] = {
    "torch": lambda: Points(lambda point: point + torch.rand(6)),
    "numpy": lambda: Points(lambda point: point * float(np.random.rand())),  # noqa: NPY002
    "python": lambda: Points(lambda point: point * random.random()),
    "seeded": lambda: Points(seeded),
    "generator": WithGenerator,
    "set_epoch": ByEpoch,
    "counter": Counting,
}


@pytest.mark.parametrize("kind", RANDOM)
def test_samples_that_differ_each_time_are_never_kept(kind: str) -> None:
    """The check leaves no trace: the run has the bits of one without a cache."""
    auto = fitted(RANDOM[kind]())
    assert not auto[1].cached_data
    assert_same(auto, fitted(RANDOM[kind](), False))
    with pytest.raises(InvalidArgumentError, match="train"):
        fitted(RANDOM[kind](), True)


def test_samples_from_the_system_are_read_twice_and_differ() -> None:
    """Nothing but the samples shows that they are random."""
    data = Points(lambda point: point + os.urandom(1)[0] / 256)
    assert not fitted(data)[1].cached_data
    with pytest.raises(InvalidArgumentError, match="twice"):
        fitted(data, True)


def test_one_random_sample_is_noticed_in_the_first_epoch() -> None:
    """Each reading is watched, not only those of the check."""
    with pytest.warns(UserWarning, match="random generators"):
        auto = fitted(Points(rarely))
    assert not auto[1].cached_data
    assert_same(auto, fitted(Points(rarely), False))
    with pytest.raises(InvalidArgumentError, match="random generators"):
        fitted(Points(rarely), True)


class Stream(IterableDataset[Any]):
    """Yields points."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(point, 0) for point in INPUTS])


@pytest.mark.parametrize(
    ("data", "options", "word"),
    [
        (DataLoader(Points(), 8), {}, "ready batches"),
        (Stream(), {}, "IterableDataset"),
        (Points(), {"collate_fn": torch.utils.data.default_collate}, "collate_fn"),
        (Points(lambda point: {"name": "text", "point": point}), {}, "str"),
        (Points(lambda point: point.requires_grad_()), {}, "gradients"),
    ],
    ids=["loader", "stream", "collate_fn", "strings", "gradients"],
)
def test_true_is_an_error_that_names_the_reason(data: Any, options: Any, word: str) -> None:
    """It is raised before the first step."""
    trainer = Trainer(build_mlp(6, [], 3, seed=0), cache_data=True, progress=False, **options)
    with pytest.raises(InvalidArgumentError, match=word):
        trainer.fit(data, epochs=2)
    assert trainer.state.step == 0


def test_samples_that_take_too_much_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is estimated before anything is kept."""
    monkeypatch.setattr(cached_batches, "memory_for_data", lambda: 1000.0)
    data = Points()
    assert not fitted(data)[1].cached_data
    assert fitted(data, True)[1].cached_data
    monkeypatch.setattr(cached_batches, "available_memory", lambda: 1000.0)
    with pytest.raises(InvalidArgumentError, match="40 samples"):
        fitted(data, True)


def test_tensors_are_in_memory_anyway() -> None:
    """`True` is no error for them."""
    data = (INPUTS, torch.arange(SAMPLES) % 3)
    assert not fitted(data, True)[1].cached_data


def test_a_model_that_changes_its_inputs_does_not_change_the_samples() -> None:
    """Batches are copies, those of validation too."""

    class Doubling(nn.Module):
        """Multiplies its inputs in place."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(inputs.mul_(2))
            return logits

    losses = []
    for cache in (True, False):
        torch.manual_seed(0)
        trainer = Trainer(Doubling(), cache_data=cache, progress=False)
        history = trainer.fit(Points(), Points(), epochs=3)
        losses.append(history["val_loss"][:])
    assert losses[0] == losses[1]


def test_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each set of data."""
    fitted(Points(), val=Points(), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines if "memory" in line] == ["`val`", "`train`"]


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_other_values_are_refused(value: Any) -> None:
    """`1` is not `True`."""
    with pytest.raises(InvalidArgumentError, match="cache_data"):
        Trainer(build_mlp(6, [], 3), cache_data=value)
