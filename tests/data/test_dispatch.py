"""How a user's data becomes batches, by its type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from finetunelib.data import InMemoryDataset, TensorBatches
from finetunelib.data._batches import Batches
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError

INPUTS = torch.arange(10.0).reshape(5, 2)
TARGETS = torch.arange(5)


class Pair(NamedTuple):
    """Inputs and targets as a named tuple."""

    inputs: Tensor
    targets: Tensor


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """A dataset with a length."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return INPUTS[index], TARGETS[index]


class Doubled(TensorDataset):
    """A tensor dataset that changes its samples, as an augmentation does."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, targets = (tensor[index] for tensor in self.tensors)
        return inputs * 2, targets


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A dataset without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(INPUTS, TARGETS, strict=True)


class Rows:
    """A table with a length whose rows are mappings, like a Hugging Face dataset."""

    def __init__(self, samples: int = 5) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.samples:
            raise IndexError(index)
        return {"inputs": INPUTS[index], "labels": int(TARGETS[index])}


class Unsized(Dataset[Tensor]):
    """A dataset with items by index and without a length."""

    def __getitem__(self, index: int) -> Tensor:
        return INPUTS[index]


def dispatched(data: Any, *, inputs_only: bool = False, seed: int = 0) -> Batches:
    """Return data as batches of two."""
    return as_batches(
        data, name="train", batch_size=2, num_workers=0, seed=seed, inputs_only=inputs_only
    )


def assert_pairs_in_order(batches: Batches) -> None:
    """Check that the batches are (inputs, targets) of two samples each."""
    found = list(batches.in_order())
    assert [len(inputs) for inputs, _ in found] == [2, 2, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in found]), INPUTS)
    assert torch.equal(torch.cat([targets for _, targets in found]), TARGETS)


# Accepted data


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, TARGETS),
        (INPUTS.numpy(), TARGETS.numpy()),
        (INPUTS, TARGETS.numpy()),
        Pair(INPUTS, TARGETS),
        TensorDataset(INPUTS, TARGETS),
        Samples(),
        Subset(Samples(), range(5)),
        Stream(),
        DataLoader(Samples(), batch_size=2),
        DataLoader(Stream(), batch_size=2),
        [(INPUTS[:2], TARGETS[:2]), (INPUTS[2:4], TARGETS[2:4]), (INPUTS[4:], TARGETS[4:])],
        TensorBatches(INPUTS, TARGETS, batch_size=2),
        InMemoryDataset(INPUTS, TARGETS),
    ],
    ids=[
        "tensors",
        "arrays",
        "tensor and array",
        "named tuple",
        "TensorDataset",
        "Dataset",
        "Subset",
        "IterableDataset",
        "DataLoader",
        "DataLoader of a stream",
        "list of batches",
        "TensorBatches",
        "InMemoryDataset",
    ],
)
def test_every_type_of_data_gives_the_same_batches(data: Any) -> None:
    """Inputs and targets are the same for every type of data."""
    assert_pairs_in_order(dispatched(data))


@pytest.mark.parametrize(
    "data",
    [(INPUTS, TARGETS), TensorDataset(INPUTS, TARGETS), Samples()],
    ids=["tensors", "TensorDataset", "Dataset"],
)
def test_data_that_is_batched_here_has_the_order_of_the_seed(data: Any) -> None:
    """The order is the same for tensors and datasets."""
    expected = [rows.tolist() for (rows,) in TensorBatches(TARGETS, batch_size=2, seed=3).epoch(1)]
    assert [targets.tolist() for _, targets in dispatched(data, seed=3).epoch(1)] == expected


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        ((INPUTS, TARGETS), 3),
        (TensorDataset(INPUTS, TARGETS), 3),
        (Samples(), 3),
        (Rows(), 3),
        (DataLoader(Samples(), batch_size=5), 1),
        ([(INPUTS, TARGETS)], 1),
        (Stream(), None),
        (iter([(INPUTS, TARGETS)]), None),
    ],
    ids=[
        "tensors",
        "TensorDataset",
        "Dataset",
        "rows",
        "DataLoader",
        "list",
        "IterableDataset",
        "iterator",
    ],
)
def test_steps_are_known_if_the_data_has_a_length(data: Any, steps: int | None) -> None:
    """`steps` is the number of batches, or `None` for a stream."""
    assert dispatched(data).steps == steps


@pytest.mark.parametrize(
    "data",
    [iter([(INPUTS, TARGETS)]), ((INPUTS, TARGETS) for _ in range(3))],
    ids=["iterator", "generator"],
)
def test_iterator_is_not_replayable(data: Any) -> None:
    """Data that can be read only once is marked as such."""
    assert not dispatched(data).replayable


@pytest.mark.parametrize(
    "data",
    [(INPUTS, TARGETS), Samples(), Rows(), Stream(), [(INPUTS, TARGETS)], DataLoader(Samples())],
    ids=["tensors", "Dataset", "rows", "IterableDataset", "list", "DataLoader"],
)
def test_other_data_is_replayable(data: Any) -> None:
    """Everything except an iterator can be read in each epoch."""
    assert dispatched(data).replayable


def test_rows_by_index_are_batched_as_mappings() -> None:
    """An object with a length and items, such as a Hugging Face dataset, is batched."""
    batches = list(dispatched(Rows()).in_order())
    assert [set(batch) for batch in batches] == [{"inputs", "labels"}] * 3
    assert torch.equal(torch.cat([batch["inputs"] for batch in batches]), INPUTS)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), TARGETS)


def test_ready_batches_keep_their_size() -> None:
    """`batch_size` does not change ready batches."""
    (batch,) = dispatched([(INPUTS, TARGETS)]).in_order()
    assert batch[0] is INPUTS


def test_tensor_batches_are_used_as_they_are() -> None:
    """They keep their own batch size and seed."""
    data = TensorBatches(INPUTS, TARGETS, batch_size=5, seed=9)
    assert dispatched(data) is data


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS.numpy()], ids=["tensor", "array"])
def test_inputs_alone_are_accepted_if_targets_are_not_needed(inputs: Any) -> None:
    """For predictions, a single tensor or array is inputs."""
    batches = list(dispatched(inputs, inputs_only=True).in_order())
    assert torch.equal(torch.cat([rows for (rows,) in batches]), INPUTS)


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        ((INPUTS, TARGETS), 5),
        (Samples(), 5),
        (Rows(), 5),
        (Stream(), None),
        ([(INPUTS, TARGETS)], None),
    ],
    ids=["tensors", "Dataset", "rows", "IterableDataset", "list"],
)
def test_samples_are_counted_if_the_data_is_batched_here(data: Any, samples: int | None) -> None:
    """`samples` is `None` for ready batches."""
    assert dispatched(data).samples == samples


def test_targets_in_memory_are_available() -> None:
    """The targets of tensors and TensorDatasets are available before training."""
    for data in ((INPUTS, TARGETS), TensorDataset(INPUTS, TARGETS)):
        found = dispatched(data).all_targets()
        assert found is not None
        assert torch.equal(found, TARGETS)


def test_dataset_in_memory_is_transformed_per_batch() -> None:
    """`batch_transform` is applied to batches, not to samples."""
    sizes: list[int] = []

    def doubled(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return inputs * 2

    data = InMemoryDataset(INPUTS, TARGETS, batch_transform=doubled)
    batches = list(dispatched(data).in_order())
    assert sizes == [2, 2, 1]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), INPUTS * 2)


def test_subclass_of_tensor_dataset_is_read_by_getitem() -> None:
    """The `__getitem__` of a TensorDataset subclass is called."""
    batches = list(dispatched(Doubled(INPUTS, TARGETS)).in_order())
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), INPUTS * 2)


# Errors


@pytest.mark.parametrize("data", [INPUTS, np.zeros((3, 2))], ids=["tensor", "array"])
def test_inputs_alone_are_an_error_if_targets_are_needed(data: Any) -> None:
    """The message names the argument and what it must contain."""
    with pytest.raises(InvalidTypeError) as caught:
        dispatched(data)
    assert "`train`" in str(caught.value)
    assert "(inputs, targets)" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("data.csv", "str"),
        (b"data", "bytes"),
        ({"inputs": INPUTS}, "dict"),
        (None, "NoneType"),
        (3, "int"),
        (object(), "object"),
        ((INPUTS,), "tuple (Tensor)"),
        ((INPUTS, TARGETS, TARGETS), "tuple (Tensor, Tensor, Tensor)"),
        ((INPUTS, [0, 1, 2, 3, 4]), "tuple (Tensor, list)"),
        ((), "tuple"),
    ],
    ids=[
        "text",
        "bytes",
        "dict",
        "None",
        "number",
        "object",
        "tuple of one",
        "tuple of three",
        "tuple with a list",
        "empty tuple",
    ],
)
def test_other_values_are_an_error_that_names_argument_and_type(data: Any, named: str) -> None:
    """The message contains the argument and the type of its value."""
    with pytest.raises(InvalidTypeError) as caught:
        dispatched(data)
    assert "`train`" in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [[], Rows(0), TensorDataset(INPUTS[:0], TARGETS[:0]), (INPUTS[:0], TARGETS[:0])],
    ids=["list", "rows", "TensorDataset", "tensors"],
)
def test_data_of_length_zero_is_an_error(data: Any) -> None:
    """Empty data raises an error."""
    with pytest.raises(EmptyDataError):
        dispatched(data)


def test_empty_dataset_is_named() -> None:
    """The message contains the argument and the type of the dataset."""
    with pytest.raises(EmptyDataError) as caught:
        dispatched(Rows(0))
    assert "`train`" in str(caught.value)
    assert "Rows" in str(caught.value)


def test_inputs_and_targets_of_different_lengths_are_an_error() -> None:
    """The message contains both shapes."""
    with pytest.raises(DataError) as caught:
        dispatched((INPUTS, TARGETS[:4]))
    assert "(5, 2)" in str(caught.value)
    assert "(4,)" in str(caught.value)


def test_dataset_without_a_length_is_an_error_that_names_its_type() -> None:
    """A dataset with items and no length must not be treated as batches."""
    with pytest.raises(InvalidTypeError, match="Unsized"):
        dispatched(Unsized())
