"""`predict` returns exactly one row for each sample, in the order of the data, or raises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from finetunelib.errors import DataError, InvalidArgumentError, InvalidInputError
from finetunelib.training import Callback, StepOutput, Task, TrainContext
from training.tiny import (
    Untouched,
    modes_of,
    network,
    plain_network,
    points,
    quiet_trainer,
    ready_batches,
    weights_of,
)

INPUTS, TARGETS = points(10)
PAIRS = TensorDataset(INPUTS, TARGETS)


class Stream(IterableDataset[Any]):
    """Yields every pair in every worker."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(INPUTS, TARGETS, strict=True))


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(PAIRS, 4, shuffle=True),
        lambda: DataLoader(PAIRS, 4, sampler=SubsetRandomSampler(range(10))),
        lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 4, False)),
        lambda: DataLoader(PAIRS, batch_sampler=[[3, 1], [0, 2]]),
        lambda: DataLoader(PAIRS, None, shuffle=True),
        lambda: DataLoader(PAIRS, 4, drop_last=True),
        lambda: DataLoader(Stream(), 4, num_workers=2),
    ],
    ids=["shuffle", "sampler", "shuffled batches", "batches", "no batches", "drop_last", "workers"],
)
def test_loader_in_another_order_is_refused(loader: Callable[[], Any]) -> None:
    """The error is raised before the data is read, and says what to pass."""
    with pytest.raises(DataError, match="DataLoader"):
        quiet_trainer(network()).predict(loader())


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(PAIRS, 4),
        lambda: DataLoader(PAIRS, 5, drop_last=True),
        lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 4, False)),
        lambda: list(DataLoader(PAIRS, 4)),
        lambda: DataLoader(Stream(), 4),
    ],
    ids=["plain", "nothing to drop", "batches in order", "list", "stream"],
)
def test_loader_in_order_is_accepted(loader: Callable[[], Any]) -> None:
    """Each row belongs to the sample at its position."""
    trainer = quiet_trainer(plain_network())
    assert torch.allclose(trainer.predict(loader()), trainer.model(INPUTS), atol=1e-6)


@pytest.mark.slow
def test_stream_is_read_by_one_worker() -> None:
    """Several workers would repeat its samples. Evaluation also counts each sample once."""
    trainer = quiet_trainer(plain_network(), num_workers=2)
    assert torch.allclose(trainer.predict(Stream()), trainer.model(INPUTS), atol=1e-6)
    expected = quiet_trainer(trainer.model).evaluate((INPUTS, TARGETS))
    assert trainer.evaluate(Stream()) == pytest.approx(expected)


class Skips(TensorDataset):
    """Leaves out samples that are read together."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices if index != 3]


def test_missing_rows_are_an_error() -> None:
    """This holds for a dataset and for a loader. The result never contains uninitialized memory."""
    data = Skips(INPUTS, TARGETS)
    for source in (data, DataLoader(data, 4)):
        with pytest.raises(DataError, match=r"9 samples|10 samples|3 samples"):
            quiet_trainer(network()).predict(source)


def test_more_rows_than_samples_are_an_error() -> None:
    """A collate function may repeat samples by mistake."""
    loader = DataLoader(PAIRS, 4, collate_fn=lambda samples: torch.stack([samples[0][0]] * 9))
    with pytest.raises(DataError, match="10 samples"):
        quiet_trainer(network()).predict(loader)


def test_outputs_of_different_shapes_are_a_list() -> None:
    """The list has one entry per sample, even if the number of samples is unknown."""
    batches = [torch.ones(2, length, 6) for length in (5, 5, 7)]
    model = nn.Linear(6, 3)
    for data in (batches, iter(batches)):
        rows = quiet_trainer(model).predict(data)
        assert [tuple(row.shape) for row in rows] == [(5, 3)] * 4 + [(7, 3)] * 2

    class Ragged:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Tensor:
            return torch.full((index + 1, 6), float(index))

    rows = quiet_trainer(model, batch_size=1).predict(Ragged())
    assert [tuple(row.shape) for row in rows] == [(1, 3), (2, 3)]
    assert torch.equal(rows[1][0], model(torch.ones(6)))


class Structured(nn.Module):
    """Returns logits and a size in some structure."""

    def __init__(self, structure: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.structure = structure

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.inner(inputs)
        return self.structure(outputs, outputs.sum(1))


def test_outputs_of_several_tensors_keep_their_structure() -> None:
    """Mappings and tuples contain tensors of all rows, and a list has one entry per sample."""
    named: Any = quiet_trainer(Structured(lambda a, b: {"logits": a, "size": b})).predict(INPUTS)
    assert (named["logits"].shape, named["size"].shape) == ((10, 3), (10,))
    first, second = quiet_trainer(Structured(lambda a, b: (a, b))).predict(INPUTS)
    assert torch.allclose(first.sum(1), second)
    entries: Any = quiet_trainer(
        Structured(lambda a, b: [{"logits": a[i], "size": b[i]} for i in range(len(a))])
    ).predict(INPUTS)
    assert len(entries) == 10
    assert entries[9]["logits"].shape == (3,)


@pytest.mark.parametrize(
    "structure",
    [
        lambda a, b: [a, b],
        lambda a, b: {"mean": a.mean()},
        lambda a, b: None,
        lambda a, b: (a, None),
    ],
    ids=["two tensors", "one number", "nothing", "half"],
)
def test_outputs_without_a_row_for_each_sample_are_an_error(structure: Any) -> None:
    """The message describes the outputs and suggests a custom task."""
    with pytest.raises(DataError, match="task"):
        quiet_trainer(Structured(structure)).predict(INPUTS)


def test_mixed_precision_returns_float32_also_to_metrics() -> None:
    """NumPy does not support bfloat16."""

    def share(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.numpy().argmax(1) == targets.numpy()).mean())

    trainer = quiet_trainer(plain_network(), precision="bf16-mixed", metrics={"share": share})
    assert trainer.predict(INPUTS).dtype == torch.float32
    history = trainer.fit((INPUTS, TARGETS), (INPUTS, TARGETS), epochs=1)
    assert history["val_share"][0] == trainer.evaluate((INPUTS, TARGETS))["share"]


class Pairs(Task):
    """Needs targets."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        inputs, targets = batch
        outputs = model(inputs)
        return StepOutput(nn.functional.cross_entropy(outputs, targets), outputs, targets, 1)


class Silent(Pairs):
    """Returns no outputs."""

    def step(self, model: nn.Module, batch: Any) -> StepOutput:
        return StepOutput(super().step(model, batch).loss, None, None, 1)


def test_error_of_a_task_that_cannot_predict_says_what_to_define() -> None:
    """Its step needs targets or returns no outputs. Other errors keep their type."""
    with pytest.raises(DataError, match=r"`Pairs\.predict"):
        quiet_trainer(plain_network(), task=Pairs()).predict(INPUTS)
    with pytest.raises(DataError, match=r"`Silent\.predict"):
        quiet_trainer(plain_network(), task=Silent()).predict((INPUTS, TARGETS))
    with pytest.raises(IndexError):
        quiet_trainer(plain_network(), task=Pairs()).predict((INPUTS, TARGETS + 9))


def test_refused_inputs_leave_the_model_unchanged() -> None:
    """Buffers that the forward changed before it failed are restored."""

    class Counting(nn.Module):
        rows: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)
            self.register_buffer("rows", torch.zeros(()))
            self.last: Any = None

        def forward(self, inputs: Tensor) -> Any:
            self.rows += len(inputs)
            self.last = inputs
            return self.inner(inputs)

    model = Counting()
    untouched = Untouched(model)
    with pytest.raises(InvalidInputError, match="`data`"):
        quiet_trainer(model).predict(INPUTS[:, :5])
    untouched.check()
    assert model.last is None
    quiet_trainer(model).predict(INPUTS)
    assert model.rows == 10


def test_several_threads_get_the_right_rows() -> None:
    """Modes and buffers are unchanged afterwards, although each call changes them temporarily."""
    model = network()
    trainer = quiet_trainer(model)
    expected, modes, before = trainer.predict(INPUTS), modes_of(model), weights_of(model)
    assert model.training
    results: list[Tensor] = []

    def work() -> None:
        for _ in range(5):
            results.append(trainer.predict(INPUTS))  # noqa: PERF401 - each one is a call

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(torch.equal(rows, expected) for rows in results)
    assert modes_of(model) == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_prediction_of_another_thread_during_a_fit_is_refused() -> None:
    """The model would be trained in eval mode. The thread that trains may predict."""
    found: list[Any] = []

    class Predicts(Callback):
        def on_step_end(self, context: TrainContext) -> None:
            def work() -> None:
                try:
                    found.append(trainer.predict(INPUTS))
                except InvalidArgumentError as error:
                    found.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            found.append(trainer.predict(INPUTS))

    trainer = quiet_trainer(plain_network(), callbacks=[Predicts()])
    trainer.fit(ready_batches((INPUTS, TARGETS), 10), epochs=1)
    refused, rows = found
    assert "thread" in str(refused)
    assert rows.shape == (10, 3)
