"""Errors for samples that cannot be read or combined into a batch name the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetunelib import Trainer, build_mlp
from finetunelib.data._dispatch import as_batches
from finetunelib.errors import DataError, InvalidTypeError

PLAIN = (torch.zeros(4), 0)


class Items(Dataset[Any]):
    """Ten equal samples, except that sample 7 differs or raises."""

    def __init__(self, odd: Any, usual: Any = PLAIN) -> None:
        self.odd, self.usual = odd, usual

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        if index != 7:
            return self.usual
        if isinstance(self.odd, Exception):
            raise self.odd
        return self.odd


def read(data: Any, workers: int = 0, **options: Any) -> list[Any]:
    """Return all batches of data in its order."""
    batches = as_batches(data, name="train", batch_size=10, num_workers=workers, seed=0, **options)
    return list(batches.in_order())


def message_of(data: Any, **options: Any) -> str:
    """Return the message of the DataError that reading raises."""
    with pytest.raises(DataError) as caught:
        read(data, **options)
    return str(caught.value)


@pytest.mark.parametrize("error", [FileNotFoundError("x.png"), StopIteration(), IndexError("end")])
def test_sample_that_raises_is_named(error: Exception) -> None:
    """The message contains the index and the original text, and the cause is chained."""
    for order in ("in_order", "epoch"):
        batches = as_batches(Items(error), name="val", batch_size=4, num_workers=0, seed=0)
        with pytest.raises(DataError, match=r"Sample 7 of `val` \(Items\)") as caught:
            list(batches.in_order() if order == "in_order" else batches.epoch(0))
        assert caught.value.__cause__ is error
        assert type(error).__name__ in str(caught.value)
        assert str(error) in str(caught.value)


class UnpicklableError(Exception):
    """An exception that cannot be sent from a process."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


@pytest.mark.slow
@pytest.mark.parametrize("error", [FileNotFoundError("x.png"), UnpicklableError("x.png", "more")])
def test_sample_that_raises_in_a_worker_is_named(error: Exception) -> None:
    """The cause is chained, and a note contains the worker's traceback."""
    with pytest.raises(DataError, match=r"Sample 7 .*x\.png") as caught:
        read(Items(error), workers=1)
    cause = caught.value.__cause__
    assert cause is not None
    assert "x.png" in str(cause)
    assert "__getitem__" in cause.__notes__[-1]


class Together(Items):
    """Reads several samples at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices if index != 3 or self.odd is not None]


def test_samples_that_are_read_together_are_checked() -> None:
    """A dataset that omits samples is refused, and a sample that raises is named."""
    assert "9 samples for the 10 indices" in message_of(Together(None))
    assert "Sample 7 of `train`" in message_of(Together(KeyError("label")))
    assert len(read(Together(PLAIN))[0][1]) == 10


@pytest.mark.parametrize(
    ("odd", "usual", "values"),
    [
        (None, PLAIN, ["is None", "collate_fn"]),
        ((torch.zeros(4), None), PLAIN, ["part 1", "is None"]),
        ((torch.zeros(5), 0), PLAIN, ["(5,)", "(4,)", "Resize", "collate_fn"]),
        ((np.zeros((3, 2)), 0), (np.zeros((2, 2)), 0), ["(3, 2)", "(2, 2)", "collate_fn"]),
        ((torch.zeros(4),), PLAIN, ["length 1", "length 2"]),
        ({"x": [1, 2, 3]}, {"x": [1, 2]}, ["part 'x'", "length 3", "length 2", "pad"]),
        ({"x": [[1], [2, 3]]}, {"x": [[1, 2], [3, 4]]}, ["part 'x'"]),
        ({"y": 0}, {"x": 0}, ["'y'", "'x'"]),
        (("a text", 0), PLAIN, ["of type str", "a tensor of shape (4,)"]),
        ((object(), 0), PLAIN, ["of type object", "collate_fn"]),
        ((np.array([None, 1]), 0), PLAIN, ["ndarray"]),
    ],
    ids=[
        "None",
        "None as a part",
        "another shape",
        "another shape of arrays",
        "another length",
        "another length of lists",
        "ragged lists",
        "other keys",
        "a text",
        "an object",
        "an array of objects",
    ],
)
def test_sample_that_differs_is_named(odd: Any, usual: Any, values: list[str]) -> None:
    """The message contains its index, its properties, those of the others, and what to do."""
    message = message_of(Items(odd, usual))
    for value in ("Sample 7 of `train`", *values):
        assert value in message


def test_sample_that_differs_is_named_if_it_is_the_first_of_its_batch() -> None:
    """The rare sample is named, whatever its position in the shuffled order."""
    order = [7, 1, 2, 3]
    data = torch.utils.data.Subset(Items((torch.zeros(9), 0)), order)
    assert "Sample 0 of `train`, part 0, is a tensor of shape (9,)" in message_of(data)


def test_images_need_a_transform() -> None:
    """The error for a PIL image suggests `ToTensor` and `collate_fn`."""
    image = (Image.fromarray(np.zeros((2, 3, 3), np.uint8)), 0)
    message = message_of(Items(image, image))
    for value in ("Sample 0", "PIL image (RGB, 3x2)", "ToTensor", "collate_fn"):
        assert value in message


def stacked(samples: list[Any]) -> Any:
    """Return the inputs of samples as floats, and their targets."""
    return torch.stack([x + 1 for x, _ in samples]), torch.tensor([y for _, y in samples])


def test_collate_fn_creates_the_batches() -> None:
    """It is used for datasets, tensor datasets and streams, by `fit` and by `predict`."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([PLAIN] * 3)

    tensors = TensorDataset(torch.zeros(3, 4), torch.zeros(3).long())
    for data in (Items(PLAIN), tensors, Stream()):
        inputs, targets = read(data, collate_fn=stacked)[0]
        assert inputs.unique().tolist() == [1.0]
        assert targets.dtype == torch.int64
    model = build_mlp(4, [], 2, seed=0)
    trainer = Trainer(model, collate_fn=stacked, progress=False)
    assert trainer.fit(Items(PLAIN), epochs=1)["step"] == [1]
    assert torch.allclose(trainer.predict(Items(PLAIN)), model(torch.ones(10, 4)))


def test_collate_fn_that_fails_is_named() -> None:
    """The message contains its error and the samples. Values that are not functions are refused."""

    def fails(samples: list[Any]) -> Any:
        raise ValueError(f"{len(samples)} lengths")

    message = message_of(Items(PLAIN), collate_fn=fails)
    for value in ("`collate_fn`", "0, 1, 2, 3, 4, 5, 6, 7, ...", "10 lengths"):
        assert value in message
    with pytest.raises(InvalidTypeError, match="`collate_fn`"):
        Trainer(build_mlp(4, [], 2), collate_fn="pad")  # type: ignore[arg-type]


def test_loader_that_fails_is_a_data_error_with_the_batch() -> None:
    """Only the loader knows the sample, so the batch is named."""
    message = message_of(DataLoader(Items(KeyError("label")), 4))
    for value in ("batch 1 of `train`", "KeyError", "label"):
        assert value in message
    message = message_of(DataLoader(Items((torch.zeros(9), 0)), 4))
    for value in ("batch 1 of `train`", "[9]", "collate_fn"):
        assert value in message


def test_error_of_another_iterable_keeps_its_type() -> None:
    """A note contains the batch."""

    def batches() -> Iterator[Any]:
        yield PLAIN
        raise KeyError("disk")

    with pytest.raises(KeyError, match="batch 1 of `train`"):
        read(batches())


class Shortened:
    """Has a length larger than the number of batches that it yields."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(2, 4), torch.zeros(2).long())] * 2)


@pytest.mark.parametrize(
    "data", [Shortened(), DataLoader(Items(StopIteration()), 4)], ids=["iterable", "DataLoader"]
)
def test_fewer_batches_than_announced_are_an_error(data: Any) -> None:
    """This holds for training, evaluation and prediction."""
    trainer = Trainer(build_mlp(4, [], 2), progress=False)
    calls: list[Callable[[], Any]] = [
        lambda: trainer.fit(data, epochs=1),
        lambda: trainer.evaluate(data),
        lambda: trainer.predict(data),
    ]
    for call in calls:
        with pytest.raises(DataError, match="announced 3 batches"):
            call()
    assert trainer.fit(data, max_steps=1)["step"][-1] >= 1


class Frame:
    """A data frame like those of pandas and polars."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)

    def to_numpy(self, dtype: str | None = None) -> Any:
        return np.zeros((3, 4), dtype or "float64")


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("pictures", "torchvision.datasets.ImageFolder"),
        (Frame(), "to_numpy"),
        ((Frame(), Frame()), '`(inputs.to_numpy("float32"), targets.to_numpy("int64"))`'),
        ((torch.zeros(3, 4), Frame()), '`(inputs, targets.to_numpy("int64"))`'),
        (([[1.0]], [0]), "torch.tensor"),
    ],
    ids=["folder", "frame", "frames", "tensor and frame", "lists"],
)
def test_data_of_another_type_is_refused_with_the_line_to_write(data: Any, advice: str) -> None:
    """The message contains the code that the user probably needs."""
    with pytest.raises(InvalidTypeError) as caught:
        Trainer(build_mlp(4, [], 2), progress=False).fit(data, epochs=1)
    assert advice in str(caught.value)
