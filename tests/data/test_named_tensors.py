"""Data in memory whose inputs or targets are tensors by name."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetunelib import Trainer
from finetunelib.callbacks import ModelCheckpoint
from finetunelib.data import TensorBatches, in_memory
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.training import Callback, StepOutput, Task, TrainContext

ROWS = 22
GENERATOR = torch.Generator().manual_seed(0)
LEFT = torch.randn(ROWS, 3, generator=GENERATOR)
RIGHT = torch.randn(ROWS, 2, generator=GENERATOR)
TARGETS = torch.arange(ROWS) % 4
INPUTS = {"left": LEFT, "right": RIGHT}


class TwoInputs(nn.Module):
    """A model with two inputs, which are passed by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(5, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(torch.cat([left, right], 1))
        return logits


def trainer(**options: Any) -> Trainer:
    """Return a silent Trainer of a model with two inputs."""
    return Trainer(TwoInputs(), batch_size=4, progress=False, **options)


def weights(used: Trainer) -> Tensor:
    """Return the weights of the head."""
    (weight, _) = used.model.parameters()
    return weight.detach().clone()


def test_batches_have_the_rows_of_each_tensor_in_the_order_of_a_tuple() -> None:
    """Shuffling does not depend on the form of the data."""
    named = TensorBatches(INPUTS, TARGETS, batch_size=4, seed=3)
    plain = TensorBatches(LEFT, RIGHT, TARGETS, batch_size=4, seed=3)
    for batches in (
        zip(named.epoch(1, skip=2), plain.epoch(1, skip=2), strict=True),
        zip(named.in_order(), plain.in_order(), strict=True),
        [(named.peek(0, "train"), plain.peek(0, "train"))],
    ):
        for (inputs, targets), (left, right, expected) in batches:
            assert list(inputs) == ["left", "right"]
            assert torch.equal(inputs["left"], left)
            assert torch.equal(inputs["right"], right)
            assert torch.equal(targets, expected)
    assert (named.samples, named.steps, named.last_batch_size) == (22, 6, 2)
    assert named.all_targets() is named.tensors[1]
    assert TensorBatches(TARGETS, {"class": TARGETS}).all_targets() is None
    assert "'left': (22, 3)" in repr(named)


def test_training_equals_ready_batches_bit_for_bit() -> None:
    """So do evaluation and prediction; arrays and other mappings are the same data."""
    one, other = trainer(), trainer()
    data: Any = (UserDict({"left": LEFT.numpy(), "right": RIGHT}), TARGETS.numpy())
    one.fit(data, (INPUTS, TARGETS), epochs=2)
    for epoch in range(2):
        batches = TensorBatches(INPUTS, TARGETS, batch_size=4, seed=0).epoch(epoch)
        other.fit(list(batches), epochs=1)
    assert torch.equal(weights(one), weights(other))
    assert one.evaluate(data) == other.evaluate(list(TensorBatches(*data, batch_size=4).in_order()))
    assert torch.equal(one.predict(INPUTS), one.predict((INPUTS, TARGETS)))
    assert torch.equal(one.predict(INPUTS | {"labels": TARGETS}), one.predict(INPUTS))
    assert torch.equal(one.predict(INPUTS), one.model(**INPUTS).detach())


class Halt(Callback):
    """Writes a checkpoint inside the second epoch, and fails after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, context: TrainContext) -> None:
        """Fail at step 9."""
        if context.state.step == 8:
            context.request_checkpoint(self.path)
        elif context.state.step == 9:
            raise InterruptedError


def test_a_run_resumes_exactly_inside_an_epoch(tmp_path: Path) -> None:
    """The remaining batches are those of the run that was not stopped."""
    whole = trainer()
    whole.fit((INPUTS, TARGETS), epochs=2)
    with pytest.raises(InterruptedError):
        trainer(callbacks=[Halt(tmp_path / "half")]).fit((INPUTS, TARGETS), epochs=2)
    resumed = trainer()
    resumed.fit((INPUTS, TARGETS), epochs=2, resume_from=tmp_path / "half")
    assert resumed.history["step"] == [6, 12]
    assert torch.equal(weights(resumed), weights(whole))


def test_the_same_tensors_are_the_same_validation_data(tmp_path: Path) -> None:
    """The best checkpoint of an earlier call is kept if a new dict has the same tensors."""
    used = trainer(lr=0.5, callbacks=[ModelCheckpoint(tmp_path, monitor="val_loss")])
    for _ in range(2):
        used.fit((INPUTS, TARGETS), (dict(INPUTS), TARGETS), epochs=1)
    assert len(used.history) == 2


class Named(Task):
    """Compares one output with targets by name."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        """Return the loss."""
        inputs, targets = batch
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs, targets["class"])
        return StepOutput(loss, outputs, targets["class"], len(outputs))


def test_targets_by_name_are_processed_by_a_task() -> None:
    """The default task names it."""
    data = (INPUTS, {"class": TARGETS, "other": LEFT})
    used = trainer(task=Named())
    used.fit(data, data, epochs=1)
    plain = trainer()
    plain.fit((INPUTS, TARGETS), epochs=1)
    assert torch.equal(weights(used), weights(plain))
    with pytest.raises(InvalidTypeError, match=r"`task` \(finetunelib.training.Task\)"):
        trainer().fit(data, epochs=1)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "length": (({"left": LEFT, "right": RIGHT[1:]}, TARGETS), DataError, "['right']` 21"),
    "targets": ((INPUTS, {"class": TARGETS[2:]}), DataError, "`targets['class']` 20"),
    "a list": ((INPUTS | {"left": [1, 2]}, TARGETS), InvalidTypeError, "`inputs['left']`"),
    "a number": ((INPUTS | {"left": torch.tensor(1)}, TARGETS), DataError, "`inputs['left']`"),
    "a name": (({1: LEFT}, TARGETS), InvalidTypeError, "strings"),
    "nothing": (({}, TARGETS), EmptyDataError, "empty mapping"),
    "no rows": (({"left": LEFT[:0]}, TARGETS[:0]), EmptyDataError, "'left': (0, 3)"),
    "no targets": (INPUTS, InvalidTypeError, "(inputs, targets)"),
    "labels": (INPUTS | {"labels": TARGETS}, InvalidTypeError, 'data["labels"]'),
    "two batches": (({"labels": TARGETS}, {"labels": TARGETS}), InvalidTypeError, "as a list"),
    "an unknown name": ((INPUTS | {"middle": LEFT}, TARGETS), InvalidInputError, "'middle'"),
    "a missing name": (({"left": LEFT}, TARGETS), InvalidInputError, "takes: left, right"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["train", "val"])
def test_data_that_does_not_fit_names_the_entry(case: str, name: str) -> None:
    """Nothing is trained; validation data too is checked before the first step."""
    data, kind, words = REFUSED[case]
    used = trainer()
    before = weights(used)
    with pytest.raises(kind) as caught:
        used.fit(*((data,) if name == "train" else ((INPUTS, TARGETS), data)), epochs=1)
    assert words in str(caught.value)
    assert torch.equal(before, weights(used))
    assert used.state.step == 0


def test_datasets_by_name_are_not_training_data() -> None:
    """Only validation data may have several sets."""
    with pytest.raises(InvalidTypeError, match="one of its values"):
        trainer().fit({"train": [1]}, epochs=1)


def test_predict_names_an_entry_that_the_model_does_not_take() -> None:
    """As `fit` does."""
    with pytest.raises(InvalidInputError, match=r"'middle'.*takes: left, right"):
        trainer().predict(INPUTS | {"middle": LEFT})
    with pytest.raises(InvalidTypeError, match="'left'"):
        trainer().predict({"left": [1], "right": RIGHT})


class Rows:
    """A dataset of inputs by name, with the labels beside or among them."""

    def __init__(self, *, bare: bool) -> None:
        self.bare = bare

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        inputs = {"right": RIGHT[index].tolist(), "left": LEFT[index].numpy()}
        target = int(TARGETS[index])
        return inputs | {"labels": target} if self.bare else (inputs, target)


@pytest.mark.parametrize("bare", [False, True])
def test_samples_with_mappings_are_read_into_memory(bare: bool) -> None:
    """A batch has the form of a batch of the dataset."""
    dataset = in_memory(Rows(bare=bare), progress=False)
    assert len(dataset) == ROWS
    assert "'left': torch.float32[3]" in repr(dataset)
    sample = dataset[5]
    assert torch.equal((sample if bare else sample[0])["left"], LEFT[5])
    one, other = trainer(), trainer()
    one.fit(dataset, epochs=1)
    other.fit((INPUTS, TARGETS), epochs=1)
    assert torch.equal(weights(one), weights(other))
    assert one.evaluate(dataset) == other.evaluate((INPUTS, TARGETS))
    doubled = in_memory(
        Rows(bare=bare),
        batch_transform=lambda rows: {**rows, "left": rows["left"] * 2},
        progress=False,
    )
    sample = doubled[5]
    assert torch.equal((sample if bare else sample[0])["left"], LEFT[5] * 2)


def test_samples_with_other_names_are_refused() -> None:
    """The message names the sample."""
    samples = [{"a": np.zeros(2)}, {"b": np.zeros(2)}]
    with pytest.raises(DataError, match=r"Sample 1 .*'b'"):
        in_memory(samples, progress=False)
