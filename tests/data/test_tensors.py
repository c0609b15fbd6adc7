"""Batches of tensors in memory."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetunelib.data import TensorBatches
from finetunelib.data._parts import as_tensor, is_tensor_like
from finetunelib.errors import (
    DataError,
    EmptyDataError,
    InvalidArgumentError,
    InvalidTypeError,
)


def epoch_order(batches: TensorBatches, number: int) -> list[int]:
    """Return the samples of an epoch in their order; each sample is its own number."""
    return [int(sample) for (rows, *_) in batches.epoch(number) for sample in rows]


def numbered(samples: int, *, batch_size: int = 4, seed: int = 0) -> TensorBatches:
    """Return batches of samples that are their own numbers."""
    return TensorBatches(torch.arange(samples), batch_size=batch_size, seed=seed)


# Order


def test_epoch_contains_every_sample_once() -> None:
    """An epoch is a permutation of the data."""
    assert sorted(epoch_order(numbered(21), 0)) == list(range(21))


def test_epoch_is_shuffled() -> None:
    """The order of an epoch is not that of the rows."""
    assert epoch_order(numbered(100), 0) != list(range(100))


def test_order_is_the_same_for_the_same_seed_and_epoch() -> None:
    """It does not depend on epochs that were read before, or on the object."""
    batches = numbered(50)
    expected = epoch_order(batches, 3)
    epoch_order(batches, 0)
    assert epoch_order(batches, 3) == expected
    assert epoch_order(numbered(50), 3) == expected


def test_order_differs_from_epoch_to_epoch() -> None:
    """Each epoch has a different order."""
    batches = numbered(50)
    assert len({tuple(epoch_order(batches, number)) for number in range(10)}) == 10


def test_order_differs_from_seed_to_seed() -> None:
    """Each seed has a different order, also from the next epoch of another seed."""
    orders = {tuple(epoch_order(numbered(50, seed=seed), e)) for seed in range(5) for e in range(5)}
    assert len(orders) == 25


def test_order_does_not_depend_on_the_batch_size() -> None:
    """A different batch size splits the same order differently."""
    orders = [epoch_order(numbered(50, batch_size=size), 1) for size in (1, 7, 64)]
    assert orders[0] == orders[1] == orders[2]


def test_two_epochs_may_be_read_at_the_same_time() -> None:
    """Iterators of one object are independent."""
    batches = numbered(8, batch_size=2)
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert [int(row) for ((rows,), _) in pairs for row in rows] == epoch_order(batches, 0)
    assert [int(row) for (_, (rows,)) in pairs for row in rows] == epoch_order(batches, 1)


def test_first_batch_of_a_long_epoch_takes_no_memory_for_the_others() -> None:
    """An epoch of many batches is sliced one batch at a time."""
    batches = numbered(200_000, batch_size=1)
    tracemalloc.start()
    try:
        next(batches.epoch(0))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_peek_and_epoch_draw_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the order of many samples takes longer than the rest of the start of a run."""
    drawn: list[int] = []
    randperm = torch.randperm

    def counted(samples: int, **options: Any) -> Tensor:
        drawn.append(samples)
        return randperm(samples, **options)

    monkeypatch.setattr(torch, "randperm", counted)
    batches, expected = numbered(10), epoch_order(numbered(10), 1)
    assert batches.peek(1, "train")[0].tolist() == expected[:4]
    assert epoch_order(batches, 1) == expected
    assert len(drawn) == 2  # `expected` is the other one.


def test_peek_of_one_epoch_does_not_change_another() -> None:
    """Neither another number nor another seed takes the order that was drawn."""
    batches = numbered(10)
    batches.peek(0, "train")
    assert epoch_order(batches, 1) == epoch_order(numbered(10), 1)
    batches.peek(0, "train")
    batches.seed = 5
    assert epoch_order(batches, 0) == epoch_order(numbered(10, seed=5), 0)


def test_skipped_batches_are_left_out() -> None:
    """The rest of an epoch is what follows the skipped batches, also when nothing is left."""
    whole = epoch_order(numbered(10), 0)
    for skip, rest in ((1, whole[4:]), (2, whole[8:]), (3, []), (9, [])):
        assert [int(row) for (rows,) in numbered(10).epoch(0, skip=skip) for row in rows] == rest


def test_epoch_does_not_change_the_global_random_states() -> None:
    """No global generator is read or changed."""
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    python_state = random.getstate()
    expected = epoch_order(numbered(50), 0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state(legacy=False)["state"]["pos"] == numpy_state  # noqa: NPY002
    assert random.getstate() == python_state
    torch.rand(1)
    assert epoch_order(numbered(50), 0) == expected


def test_rows_of_all_tensors_stay_together() -> None:
    """Each input is returned with its target, shuffled or in order."""
    inputs = torch.arange(20.0).reshape(10, 2)
    batches = TensorBatches(inputs, torch.arange(10), batch_size=3)
    for rows, targets in [*batches.epoch(0), *batches.in_order()]:
        assert torch.equal(rows, inputs[targets])


def test_epoch_keeps_dtypes_and_inner_shapes() -> None:
    """A batch consists of rows of the tensors."""
    batches = TensorBatches(
        torch.zeros(5, 3, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), batch_size=2
    )
    inputs, targets = next(batches.epoch(0))
    assert (inputs.shape, inputs.dtype) == ((2, 3, 2), torch.uint8)
    assert (targets.shape, targets.dtype) == ((2,), torch.int64)


def test_in_order_yields_the_rows_in_their_order() -> None:
    """The rows are returned in their own order."""
    batches = numbered(10, batch_size=4)
    assert [rows.tolist() for (rows,) in batches.in_order()] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_in_order_copies_nothing() -> None:
    """The batches are views of the tensors."""
    data = torch.arange(10)
    (first,) = next(TensorBatches(data, batch_size=4).in_order())
    assert first.data_ptr() == data.data_ptr()


@pytest.mark.parametrize(
    ("samples", "sizes"), [(8, [4, 4]), (9, [4, 4, 1]), (3, [3]), (4, [4]), (1, [1])]
)
def test_short_last_batch_is_kept(samples: int, sizes: list[int]) -> None:
    """All batches except the last are full, and `steps` counts them all."""
    batches = numbered(samples, batch_size=4)
    assert [len(rows) for (rows,) in batches.epoch(0)] == sizes
    assert [len(rows) for (rows,) in batches.in_order()] == sizes
    assert batches.steps == len(sizes)


def test_tensor_batches_can_be_read_again() -> None:
    """Data in memory is replayable."""
    assert numbered(3).replayable


# Accepted data


def test_numpy_arrays_are_accepted() -> None:
    """Arrays give the same batches as tensors with the same values."""
    array = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    (from_array,) = next(TensorBatches(array, batch_size=4).epoch(0))
    (from_tensor,) = next(TensorBatches(torch.tensor(array), batch_size=4).epoch(0))
    assert torch.equal(from_array, from_tensor)
    assert from_array.dtype == torch.float32


def test_numpy_arrays_share_their_memory() -> None:
    """The data is not copied."""
    array = np.zeros((4, 2))
    assert TensorBatches(array).tensors[0].data_ptr() == array.ctypes.data


def test_tensors_are_not_copied() -> None:
    """The tensors share memory with the user's data."""
    tensor = torch.zeros(4, 2)
    assert TensorBatches(tensor).tensors[0].data_ptr() == tensor.data_ptr()


def test_batches_of_a_tensor_with_gradients_have_none() -> None:
    """Batches of a tensor that requires gradients have no graph."""
    data = torch.ones(4, 2, requires_grad=True) * 2
    (rows,) = next(TensorBatches(data).epoch(0))
    assert not rows.requires_grad


def test_arguments_can_be_read_back() -> None:
    """The object has the data and the arguments as attributes."""
    batches = TensorBatches(torch.zeros(4), torch.ones(4), batch_size=3, seed=7)
    assert (len(batches.tensors), batches.batch_size, batches.seed) == (2, 3, 7)


def test_batch_size_is_64_by_default() -> None:
    """Batches have 64 samples by default."""
    (rows,) = next(TensorBatches(torch.zeros(100)).epoch(0))
    assert len(rows) == 64


def test_samples_are_counted() -> None:
    """`samples` is the number of rows, whatever the batch size."""
    assert numbered(9, batch_size=4).samples == 9


@pytest.mark.parametrize("order", ["epoch", "in order"])
def test_batch_transform_receives_a_batch_of_inputs(order: str) -> None:
    """It is called once per batch with the rows of the first tensor."""
    shapes: list[tuple[int, ...]] = []

    def scaled(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        return images.float() / 255

    data = torch.full((5, 3), 255, dtype=torch.uint8)
    batches = TensorBatches(data, torch.arange(5), batch_size=2, batch_transform=scaled)
    found = list(batches.epoch(0) if order == "epoch" else batches.in_order())
    assert shapes == [(2, 3), (2, 3), (1, 3)]
    assert torch.equal(torch.cat([inputs for inputs, _ in found]), torch.ones(5, 3))


def test_batch_transform_does_not_change_the_targets() -> None:
    """Only the first tensor is transformed."""
    targets = torch.arange(5)
    batches = TensorBatches(torch.zeros(5), targets, batch_transform=lambda rows: rows + 1)
    ((_, found),) = batches.in_order()
    assert torch.equal(found, targets)


def test_batch_transform_is_not_applied_to_the_data_itself() -> None:
    """A second epoch transforms the original rows again."""
    batches = TensorBatches(torch.ones(5), batch_transform=lambda rows: rows * 2)
    first, second = ([rows.tolist() for (rows,) in batches.in_order()] for _ in range(2))
    assert first == second == [[2.0] * 5]


def test_all_targets_are_the_second_tensor() -> None:
    """Targets in memory are available before training."""
    targets = torch.arange(4)
    found = TensorBatches(torch.zeros(4), targets).all_targets()
    assert found is not None
    assert torch.equal(found, targets)


def test_inputs_alone_have_no_targets() -> None:
    """Without a second tensor there are no targets."""
    assert TensorBatches(torch.zeros(4)).all_targets() is None


# Errors


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_below_one_is_an_error_that_names_it(size: int) -> None:
    """A batch has at least one sample."""
    with pytest.raises(InvalidArgumentError) as caught:
        numbered(4, batch_size=size)
    assert "`batch_size`" in str(caught.value)
    assert str(size) in str(caught.value)


def test_lengths_that_differ_are_an_error_that_names_them() -> None:
    """The message contains both shapes."""
    with pytest.raises(DataError) as caught:
        TensorBatches(torch.zeros(5, 2), torch.zeros(4))
    assert "(5, 2)" in str(caught.value)
    assert "(4,)" in str(caught.value)


@pytest.mark.parametrize("name", ["batch_size", "seed"])
@pytest.mark.parametrize("value", ["a", 2.0, None, True], ids=repr)
def test_number_that_is_not_an_integer_is_an_error_that_shows_it(name: str, value: Any) -> None:
    """The error names the argument and its value."""
    with pytest.raises(InvalidTypeError, match=f"`{name}`.*{value!r}"):
        TensorBatches(torch.zeros(3), **{name: value})


def test_repr_is_one_line_with_the_shapes() -> None:
    """The data itself is not printed."""
    batches = TensorBatches(torch.zeros(5, 2), torch.zeros(5), batch_size=3, seed=7)
    assert repr(batches) == "TensorBatches((5, 2), (5,), batch_size=3, seed=7)"


def test_no_tensor_is_an_error() -> None:
    """At least one tensor is required."""
    with pytest.raises(EmptyDataError):
        TensorBatches()


def test_no_sample_is_an_error_that_names_the_shape() -> None:
    """Tensors without rows are empty data."""
    with pytest.raises(EmptyDataError) as caught:
        TensorBatches(torch.zeros(0, 3), torch.zeros(0))
    assert "(0, 3)" in str(caught.value)


def test_single_number_is_an_error_that_names_its_position() -> None:
    """A tensor without dimensions raises a different error than an empty one."""
    with pytest.raises(DataError, match="Tensor 1") as caught:
        TensorBatches(torch.zeros(1), torch.tensor(3.0))
    assert not isinstance(caught.value, EmptyDataError)


@pytest.mark.parametrize("value", [[1, 2], (1, 2), "ab", None, 3], ids=repr)
def test_value_that_is_not_a_tensor_is_an_error_that_names_its_type(value: Any) -> None:
    """Lists are not converted silently."""
    with pytest.raises(InvalidTypeError, match=type(value).__name__):
        TensorBatches(value)


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b"]), np.array([object()]), np.array(["2020-01-01"], dtype="datetime64[D]")],
    ids=["text", "objects", "dates"],
)
def test_array_of_a_dtype_that_torch_lacks_is_an_error(array: np.ndarray[Any, Any]) -> None:
    """The message contains the array's dtype."""
    with pytest.raises(InvalidTypeError) as caught:
        TensorBatches(array)
    assert array.dtype.type.__name__ in str(caught.value)


@pytest.mark.parametrize(
    "array", [np.arange(4)[::-1], np.arange(4, dtype=">i4")], ids=["reversed", "big-endian"]
)
def test_array_that_torch_cannot_view_is_an_error_of_the_library(
    array: np.ndarray[Any, Any],
) -> None:
    """A memory layout that PyTorch lacks raises the library's error."""
    with pytest.raises((InvalidTypeError, DataError), match="array"):
        TensorBatches(array)


# is_tensor_like and as_tensor


@pytest.mark.parametrize(
    ("value", "expected"),
    [(torch.zeros(1), True), (np.zeros(1), True), ([0.0], False), (None, False), (0.0, False)],
    ids=["tensor", "array", "list", "None", "number"],
)
def test_tensor_like_is_a_tensor_or_an_array(value: object, expected: bool) -> None:
    """Other types are not tensor-like."""
    assert is_tensor_like(value) is expected


def test_as_tensor_keeps_the_values_of_an_array() -> None:
    """An array becomes a tensor of its dtype and values."""
    tensor: Tensor = as_tensor(np.array([[1, 2], [3, 4]], dtype=np.int32))
    assert tensor.dtype == torch.int32
    assert tensor.tolist() == [[1, 2], [3, 4]]
