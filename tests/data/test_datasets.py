"""Batches of datasets, and of iterables that yield ready batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from finetunelib._typing import SizedDataset
from finetunelib.data import TensorBatches
from finetunelib.data._datasets import DatasetBatches
from finetunelib.data._ready import ReadyBatches, batch_stream
from finetunelib.data._samples import collate


class Numbers(Dataset[int]):
    """A dataset whose samples are their own numbers; it records which were read."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        assert isinstance(index, int)
        self.read.append(index)
        return index


class Noise(Dataset[Tensor]):
    """Samples drawn from the global generator, as an augmentation does."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(1)


class Stream(IterableDataset[int]):
    """An iterable dataset."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def batches_of(
    dataset: SizedDataset[Any], *, batch_size: int = 4, seed: int = 0, num_workers: int = 0
) -> DatasetBatches:
    """Return batches of a dataset with a length."""
    return DatasetBatches(dataset, batch_size=batch_size, num_workers=num_workers, seed=seed)


def samples_of(batches: Iterator[Tensor]) -> list[int]:
    """Return the samples of all batches."""
    return [int(sample) for batch in batches for sample in batch]


# DatasetBatches


def test_epoch_contains_every_sample_once() -> None:
    """An epoch is a permutation of the dataset."""
    assert sorted(samples_of(batches_of(Numbers(21)).epoch(0))) == list(range(21))


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    """The order is the same for the same two numbers and differs for others."""
    orders = {
        (seed, number): samples_of(batches_of(Numbers(50), seed=seed).epoch(number))
        for seed in (0, 1)
        for number in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    again = batches_of(Numbers(50), seed=1)
    samples_of(again.epoch(7))
    assert samples_of(again.epoch(0)) == orders[1, 0]


def test_order_is_that_of_tensors_in_memory() -> None:
    """The same samples as a dataset or as tensors have the same order."""
    in_memory = TensorBatches(torch.arange(50), batch_size=4, seed=3)
    expected = [int(sample) for (rows,) in in_memory.epoch(2) for sample in rows]
    assert samples_of(batches_of(Numbers(50), seed=3).epoch(2)) == expected


def test_in_order_yields_the_samples_in_their_order() -> None:
    """Evaluation reads the dataset from the first sample to the last, in batches."""
    batches = batches_of(Numbers(6), batch_size=4)
    assert [batch.tolist() for batch in batches.in_order()] == [[0, 1, 2, 3], [4, 5]]


def test_reading_does_not_change_the_global_generator() -> None:
    """Neither `epoch` nor `in_order` changes the global random state."""
    batches = batches_of(Numbers(6))
    before = torch.get_rng_state()
    samples_of(batches.epoch(0))
    samples_of(batches.in_order())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("samples", "sizes"), [(8, [4, 4]), (9, [4, 4, 1]), (3, [3])])
def test_short_last_batch_is_kept(samples: int, sizes: list[int]) -> None:
    """All batches except the last are full, and `steps` counts them all."""
    batches = batches_of(Numbers(samples), batch_size=4)
    assert [len(batch) for batch in batches.epoch(0)] == sizes
    assert batches.steps == len(sizes)


def test_samples_are_counted() -> None:
    """`samples` is the length of the dataset, whatever the batch size."""
    assert batches_of(Numbers(9), batch_size=4).samples == 9


def test_samples_are_read_when_their_batch_is_due() -> None:
    """Without workers, samples are not read ahead."""
    dataset = Numbers(8)
    next(batches_of(dataset, batch_size=2).in_order())
    assert dataset.read == [0, 1]


def test_dataset_is_replayable_and_hides_its_targets() -> None:
    """A dataset can be read again, and its targets are not collected."""
    batches = batches_of(TensorDataset(torch.zeros(3, 2), torch.zeros(3)))
    assert batches.replayable
    assert batches.all_targets() is None


def test_samples_of_several_parts_are_collated() -> None:
    """Samples that are tuples give batches with one tensor per part."""
    dataset = TensorDataset(torch.zeros(3, 2), torch.arange(3))
    inputs, targets = next(batches_of(dataset).in_order())
    assert inputs.shape == (3, 2)
    assert targets.tolist() == [0, 1, 2]


def augmented_epoch(number: int, *, num_workers: int) -> Tensor:
    """Return an epoch of images that are erased at random in the workers.

    Dataset and transform come from torchvision, because worker processes must be able to import
    them with any start method.
    """
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32), v2.RandomErasing(p=1.0, value=0.0)]
    )
    dataset = FakeData(size=6, image_size=(3, 8, 8), num_classes=2, transform=transform)
    batches = batches_of(dataset, batch_size=2, num_workers=num_workers)
    return torch.cat([images for images, _ in batches.epoch(number)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_workers_repeat_an_epoch_bit_for_bit() -> None:
    """Order and augmentation depend only on (seed, epoch), also in worker processes."""
    first = augmented_epoch(0, num_workers=2)
    torch.rand(1)
    assert torch.equal(augmented_epoch(0, num_workers=2), first)
    assert not torch.equal(augmented_epoch(1, num_workers=2), first)


# ReadyBatches


def test_ready_batches_have_the_order_of_the_source() -> None:
    """The epoch's number does not change the order of the source."""
    source = [torch.zeros(2), torch.ones(3)]
    batches = ReadyBatches(source)
    assert all(one is other for one, other in zip(batches.epoch(0), source, strict=True))
    assert all(one is other for one, other in zip(batches.in_order(), source, strict=True))


def test_ready_batches_count_the_steps_of_a_source_with_a_length() -> None:
    """`steps` is the length of a list or DataLoader."""
    assert ReadyBatches([torch.zeros(2)] * 3).steps == 3
    assert ReadyBatches(DataLoader(Numbers(5), batch_size=2)).steps == 3


def test_ready_batches_do_not_know_the_steps_of_a_generator() -> None:
    """Without a length, `steps` is `None`."""
    assert ReadyBatches(iter([torch.zeros(2)])).steps is None


def test_ready_batches_do_not_know_the_steps_of_a_stream() -> None:
    """It is also `None` for a DataLoader of an iterable dataset."""
    assert ReadyBatches(DataLoader(Stream(), batch_size=2)).steps is None


class Again:
    """An iterable that can be read repeatedly."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(2)])


@pytest.mark.parametrize(
    ("source", "replayable"),
    [
        ([torch.zeros(2)], True),
        (Again(), True),
        (DataLoader(Numbers(5)), True),
        (iter([torch.zeros(2)]), False),
        ((batch for batch in [torch.zeros(2)]), False),
    ],
    ids=["list", "iterable", "DataLoader", "iterator", "generator"],
)
def test_only_iterators_cannot_be_read_again(source: Any, replayable: bool) -> None:
    """An iterator is empty after one epoch."""
    assert ReadyBatches(source).replayable is replayable


def test_asking_an_iterator_whether_it_can_be_read_again_reads_nothing() -> None:
    """All of its batches are still available."""
    batches = ReadyBatches(iter([torch.zeros(2), torch.ones(2)]))
    assert len(list(batches.epoch(0))) == 2


def test_ready_batches_hide_their_targets() -> None:
    """The targets are inside the batches."""
    assert ReadyBatches([(torch.zeros(2), torch.zeros(2))]).all_targets() is None


def test_ready_batches_do_not_count_their_samples() -> None:
    """The number of samples is unknown before the batches are read."""
    assert ReadyBatches([torch.zeros(2)] * 3).samples is None


# batch_stream


def test_stream_is_collated_into_batches() -> None:
    """The samples are collated in their own order, including a short last batch."""
    batches = batch_stream(Stream(), batch_size=2, num_workers=0, pin_memory=False)
    assert [batch.tolist() for batch in batches.epoch(0)] == [[0, 1], [2, 3], [4]]


def test_stream_can_be_read_again_and_has_no_steps() -> None:
    """Each epoch starts the stream again, and its length is unknown."""
    batches = batch_stream(Stream(), batch_size=2, num_workers=0, pin_memory=False)
    assert (batches.replayable, batches.steps) == (True, None)
    assert samples_of(batches.epoch(0)) == samples_of(batches.epoch(1)) == list(range(5))


# collate


def test_collate_stacks_samples() -> None:
    """Tensors are stacked along a new first dimension, and numbers become a tensor."""
    inputs, targets = collate([(torch.zeros(3), 1), (torch.ones(3), 2)])
    assert torch.equal(inputs, torch.stack([torch.zeros(3), torch.ones(3)]))
    assert targets.tolist() == [1, 2]


def test_collate_treats_a_list_in_a_mapping_as_a_row() -> None:
    """Lists of tokens, as in Hugging Face datasets, become `(batch, tokens)`."""
    batch = collate([{"tokens": [1, 2, 3], "labels": 0}, {"tokens": [4, 5, 6], "labels": 1}])
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["labels"].tolist() == [0, 1]


def test_collate_does_not_change_the_samples() -> None:
    """The samples of a dataset in memory are not changed."""
    sample = {"tokens": [1, 2, 3]}
    collate([sample])
    assert sample == {"tokens": [1, 2, 3]}
