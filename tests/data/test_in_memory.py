"""Datasets read into memory: dtypes, transforms and errors."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.datasets import MNIST, FakeData
from torchvision.transforms import ToTensor, v2

from finetunelib.data import InMemoryDataset, in_memory
from finetunelib.errors import DataError, EmptyDataError, InvalidTypeError


class Samples:
    """A dataset of given samples that counts how often each one is read."""

    def __init__(self, *samples: Any) -> None:
        self.samples = samples
        self.reads = [0] * len(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        return self.samples[index]


class Made:
    """A dataset whose samples are computed from their index."""

    def __init__(self, samples: int, make: Callable[[int], Any]) -> None:
        self.samples, self.make = samples, make

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def read(dataset: Any, **options: Any) -> InMemoryDataset:
    """Read a dataset without progress output."""
    return in_memory(dataset, progress=False, **options)


def scaled(images: Tensor) -> Tensor:
    """Convert bytes to numbers in [0, 1]."""
    return images.float() / 255


# Reading


def test_samples_are_rows_of_tensors_in_their_order() -> None:
    """Each part of a sample becomes a tensor with one row per sample."""
    inputs, targets = torch.randn(5, 2, 3), torch.arange(5)
    data = read(TensorDataset(inputs, targets))
    assert torch.equal(data.tensors[0], inputs)
    assert torch.equal(data.tensors[1], targets)
    assert len(data) == 5


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64, torch.bool],
    ids=str,
)
def test_dtypes_stay(dtype: torch.dtype) -> None:
    """Bytes stay bytes, and float64 stays float64."""
    data = read(TensorDataset(torch.ones(3, 2).to(dtype), torch.zeros(3, dtype=dtype)))
    assert [tensor.dtype for tensor in data.tensors] == [dtype, dtype]


@pytest.mark.parametrize(
    ("part", "dtype"),
    [
        (3, torch.int64),
        (0.5, torch.float32),
        (True, torch.bool),
        (np.int64(3), torch.int64),
        (np.float32(0.5), torch.float32),
        (np.uint8(7), torch.uint8),
        (np.ones(2, np.float64), torch.float64),
        (np.ones((2, 2), np.uint8), torch.uint8),
        (torch.tensor(1.5), torch.float32),
    ],
    ids=lambda value: (
        f"{type(value).__name__}" if not isinstance(value, torch.dtype) else str(value)
    ),
)
def test_numbers_and_arrays_become_tensors_of_their_dtype(part: Any, dtype: torch.dtype) -> None:
    """This holds for Python and numpy numbers, arrays and tensors."""
    (column,) = read(Samples(part, part)).tensors
    assert column.dtype == dtype
    assert column.tolist() == [np.asarray(part).tolist()] * 2


@pytest.mark.parametrize("make", [tuple, list], ids=["tuple", "list"])
def test_samples_may_have_any_number_of_parts(make: Any) -> None:
    """Samples with three parts, as tuples or lists, give three tensors."""
    data = read(Samples(make([1, 2.0, torch.zeros(2)]), make([3, 4.0, torch.ones(2)])))
    assert [tensor.tolist() for tensor in data.tensors] == [
        [1, 3],
        [2.0, 4.0],
        [[0.0, 0.0], [1.0, 1.0]],
    ]


def test_samples_may_be_single_values() -> None:
    """Inputs without targets are one tensor."""
    data = read(Samples(torch.zeros(2), torch.ones(2)))
    assert torch.equal(data.tensors[0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert len(data.tensors) == 1


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_images_become_bytes_with_the_channels_first(mode: str, channels: int) -> None:
    """A PIL image becomes `(channels, height, width)` of uint8, pixel for pixel."""
    shape = (5, 4) if channels == 1 else (5, 4, channels)
    pixels = np.arange(20 * channels, dtype=np.uint8).reshape(shape)
    data = read(Samples((Image.fromarray(pixels, mode), 1)))
    images, targets = data.tensors
    assert images.dtype == torch.uint8
    assert images.shape == (1, channels, 5, 4)
    expected = torch.from_numpy(pixels.reshape(5, 4, channels)).permute(2, 0, 1)
    assert torch.equal(images[0], expected)
    assert targets.tolist() == [1]


def test_images_of_torchvision_are_read() -> None:
    """A torchvision dataset without a transform can be read."""
    data = read(FakeData(6, (3, 8, 8), num_classes=4))
    assert data.tensors[0].shape == (6, 3, 8, 8)
    assert data.tensors[0].dtype == torch.uint8
    assert data.tensors[1].shape == (6,)


def test_deterministic_transform_is_applied_once() -> None:
    """The transformed samples are stored."""
    bytes_, floats = FakeData(4, (1, 6, 6)), FakeData(4, (1, 6, 6), transform=ToTensor())
    assert torch.equal(read(floats).tensors[0], scaled(read(bytes_).tensors[0]))


def test_reading_leaves_no_graph() -> None:
    """Tensors that require gradients are stored without their graph."""
    weight = torch.ones(2, requires_grad=True)
    data = read(Samples(weight * 2, weight * 3))
    assert not data.tensors[0].requires_grad


def test_samples_of_a_buffer_that_is_reused_are_kept_apart() -> None:
    """A dataset that reuses one array is copied at each read."""
    buffer = np.zeros(2, np.float32)

    def fill(index: int) -> Any:
        buffer[:] = index
        return buffer

    assert read(Made(3, fill)).tensors[0].tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_each_sample_is_read_a_few_times_at_most() -> None:
    """Only the samples that are checked are read more than once."""
    dataset = Samples(*range(200))
    read(dataset)
    assert dataset.reads.count(1) >= 184
    assert max(dataset.reads) <= 4


def test_data_in_memory_can_be_read_again() -> None:
    """The result of `in_memory` is itself a dataset that can be read."""
    data = read(TensorDataset(torch.randn(4, 2), torch.arange(4)))
    again = read(data)
    assert all(map(torch.equal, data.tensors, again.tensors))


# batch_transform


def test_transform_is_applied_when_a_sample_is_used() -> None:
    """Memory contains bytes, and a sample is transformed like a batch of one."""
    images = torch.arange(12, dtype=torch.uint8).view(3, 4)
    data = read(TensorDataset(images, torch.arange(3)), batch_transform=scaled)
    assert torch.equal(data.tensors[0], images)
    image, target = data[1]
    assert torch.equal(image, images[1].float() / 255)
    assert int(target) == 1
    assert data.batch_transform is scaled


def test_transform_is_applied_by_a_loader() -> None:
    """A user's DataLoader yields the same values as the Trainer."""
    images = torch.arange(12, dtype=torch.uint8).view(3, 4)
    data = read(TensorDataset(images, torch.arange(3)), batch_transform=scaled)
    ((rows, targets),) = DataLoader(data, batch_size=3)
    assert torch.equal(rows, images.float() / 255)
    assert targets.tolist() == [0, 1, 2]


def test_transform_is_not_applied_to_targets() -> None:
    """Only the first part of a sample is transformed."""
    data = read(TensorDataset(torch.ones(2, 1), torch.ones(2)), batch_transform=lambda x: x * 7)
    assert [part.tolist() for part in data[0]] == [[7.0], 1.0]


def test_without_a_transform_samples_are_rows() -> None:
    """The samples are returned unchanged."""
    data = read(TensorDataset(torch.arange(4), torch.arange(4)))
    assert data.batch_transform is None
    assert [int(part) for part in data[2]] == [2, 2]


def test_data_in_memory_can_be_pickled() -> None:
    """It can be saved to a file, and sent to the workers of a loader."""
    data = read(TensorDataset(torch.arange(4), torch.arange(4)), batch_transform=scaled)
    copy: InMemoryDataset = pickle.loads(pickle.dumps(data))
    assert all(map(torch.equal, copy.tensors, data.tensors))
    assert copy.batch_transform is scaled


# Errors


def test_random_transform_is_an_error_that_names_the_sample() -> None:
    """The message contains the index of the sample that differs."""
    dataset = FakeData(20, (1, 8, 8), transform=v2.Compose([v2.ToImage(), v2.RandomErasing(1.0)]))
    with pytest.raises(DataError, match="sample 0"):
        read(dataset)


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_random_transform_of_every_generator_is_an_error(source: str) -> None:
    """Randomness from any of the global generators is found."""
    draws: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.rand(2),
        "numpy": lambda: np.random.rand(2),  # noqa: NPY002
        "python": random.random,
    }
    with pytest.raises(DataError, match="sample 0"):
        read(Made(4, lambda index: draws[source]()))


def test_random_transform_of_some_samples_is_an_error_that_names_the_first() -> None:
    """A transform that changes only the second half is found."""
    generator = torch.Generator().manual_seed(0)
    dataset = Made(
        32, lambda index: torch.rand(2, generator=generator) if index >= 16 else torch.zeros(2)
    )
    with pytest.raises(DataError, match="sample 16"):
        read(dataset)


def test_random_flip_of_every_second_reading_is_found() -> None:
    """A random flip repeats on some samples, but not on all of them."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(4)
    dataset = Made(
        64, lambda index: row.flip(0) if torch.rand((), generator=generator) < 0.5 else row
    )
    with pytest.raises(DataError, match="sample"):
        read(dataset)


def test_random_shape_is_an_error_of_the_library() -> None:
    """A random crop without resizing gives a different shape at each read."""
    sizes: Iterator[int] = iter(range(1, 10**6))
    with pytest.raises(DataError):
        read(Made(4, lambda index: torch.zeros(next(sizes))))


def test_values_that_are_not_finite_compare_equal() -> None:
    """In the comparison, nan equals nan."""
    data = read(TensorDataset(torch.full((2, 2), float("nan"))))
    assert bool(data.tensors[0].isnan().all())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (torch.zeros(3), "[3]"),
        (torch.zeros(2, dtype=torch.float64), "float64"),
        ((torch.zeros(2), 1), "int64"),
    ],
    ids=["shape", "dtype", "parts"],
)
def test_samples_that_differ_are_an_error_that_shows_both(other: Any, told: str) -> None:
    """The message describes the sample and the first one."""
    samples = [torch.zeros(2)] * 20
    samples[7] = other
    with pytest.raises(DataError) as caught:
        read(Samples(*samples))
    assert "Sample 7" in str(caught.value)
    assert told in str(caught.value)
    assert "torch.float32[2]" in str(caught.value)


def test_images_of_different_sizes_are_an_error_that_names_the_sample() -> None:
    """Photos of different sizes must be resized first."""
    with pytest.raises(DataError) as caught:
        read(Samples(Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))))
    assert "Sample 1" in str(caught.value)
    assert "[3, 4, 5]" in str(caught.value)


@pytest.mark.parametrize(
    "dataset", [Samples(), TensorDataset(torch.zeros(0, 2))], ids=["own", "tensors"]
)
def test_empty_dataset_is_an_error_that_names_its_type(dataset: Any) -> None:
    """An empty dataset raises an error."""
    with pytest.raises(EmptyDataError, match=type(dataset).__name__):
        read(dataset)


class Stream(IterableDataset[Any]):
    """An iterable without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([torch.zeros(2)])


@pytest.mark.parametrize(
    "dataset",
    [Stream(), iter([1]), DataLoader(TensorDataset(torch.zeros(2))), 3, None],
    ids=["stream", "iterator", "loader", "number", "None"],
)
def test_stream_is_an_error_that_names_its_type(dataset: Any) -> None:
    """Data without a length or items cannot be read into memory."""
    with pytest.raises(InvalidTypeError, match=type(dataset).__name__):
        read(dataset)


@pytest.mark.parametrize(
    "part", ["a cat", None, {torch.zeros(2)}, object()], ids=["text", "None", "set", "o"]
)
def test_sample_of_text_is_an_error_that_names_its_type(part: Any) -> None:
    """Texts cannot be stored as tensors."""
    with pytest.raises(InvalidTypeError) as caught:
        read(Samples((torch.zeros(2), part)))
    assert "Sample 0" in str(caught.value)
    assert type(part).__name__ in str(caught.value)


def test_array_of_a_dtype_that_torch_lacks_is_an_error_that_names_the_sample() -> None:
    """Arrays of text raise the library's error."""
    with pytest.raises(InvalidTypeError, match="Sample 0"):
        read(Samples(np.array(["a", "b"])))


# Memory


def memory_of(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Make the system report a number of free bytes."""
    answers = {"SC_AVPHYS_PAGES": free, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__)


def test_dataset_larger_than_the_free_memory_is_an_error_that_names_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is raised after only the first sample has been read."""
    memory_of(monkeypatch, 1_500_000)
    dataset = Samples(*[torch.zeros(250_000)] * 2)
    with pytest.raises(DataError) as caught:
        read(dataset)
    for value in ("2 samples", "2.0 MB", "1.5 MB"):
        assert value in str(caught.value)
    assert dataset.reads == [1, 0]


def test_dataset_that_just_fits_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is the number of bytes of the tensors."""
    memory_of(monkeypatch, 16)
    assert len(read(TensorDataset(torch.zeros(2, 2)))) == 2


def test_memory_is_estimated_by_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes take a quarter of the memory of floats."""
    memory_of(monkeypatch, 8)
    assert len(read(TensorDataset(torch.zeros(2, 4, dtype=torch.uint8)))) == 2
    with pytest.raises(DataError):
        read(TensorDataset(torch.zeros(2, 4)))


@pytest.mark.parametrize("error", [ValueError("unrecognized name"), OSError("not here")], ids=repr)
def test_unknown_free_memory_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """If the free memory is unknown, the dataset is read."""

    def refuse(name: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", refuse)
    assert len(read(TensorDataset(torch.zeros(2, 2)))) == 2


def test_system_without_sysconf_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no `os.sysconf`."""
    monkeypatch.delattr(os, "sysconf")
    assert len(read(TensorDataset(torch.zeros(2, 2)))) == 2


# Progress and random states


def test_report_is_a_line_with_samples_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the report is one line on stderr."""
    in_memory(TensorDataset(torch.zeros(1250, 200)))
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "1,250 samples" in line
    assert "1.0 MB" in line


def test_report_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    """`progress=False` writes nothing."""
    in_memory(TensorDataset(torch.zeros(4, 2)), progress=False)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_report_on_a_terminal_shows_the_memory_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The progress bar shows the estimate from the start."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    in_memory(TensorDataset(torch.zeros(1250, 200)))
    first, _, _ = terminal.getvalue().partition("0/1250")
    assert "1.0 MB" in first


def test_bar_is_removed_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No partial progress bar precedes the traceback."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    samples = [torch.zeros(2)] * 20
    samples[7] = torch.zeros(3)
    with pytest.raises(DataError):
        in_memory(Samples(*samples))
    assert terminal.getvalue().endswith(" \r")


def draw_everywhere() -> tuple[list[float], float, float]:
    """Draw from the global generators of torch, numpy and Python."""
    return torch.rand(3).tolist(), float(np.random.rand()), random.random()  # noqa: NPY002


class Drawing(Samples):
    """Draws from every global generator at each read, without using the numbers."""

    def __getitem__(self, index: int) -> Any:
        draw_everywhere()
        return super().__getitem__(index)


@pytest.mark.parametrize("fails", [False, True], ids=["success", "error"])
def test_random_states_are_restored(fails: bool) -> None:
    """The global generators are unchanged, whatever the dataset draws."""
    dataset = Drawing(torch.zeros(2), torch.zeros(3 if fails else 2))

    def seeded() -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)

    seeded()
    expected = draw_everywhere()
    seeded()
    if fails:
        with pytest.raises(DataError):
            read(dataset)
    else:
        read(dataset)
    assert draw_everywhere() == expected


# The dataset


def test_repr_is_one_line_with_the_shape_of_a_sample() -> None:
    """The data itself is not printed."""
    dataset = TensorDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    assert repr(in_memory(dataset, progress=False)) == (
        "InMemoryDataset(4 samples of torch.uint8[1, 2, 2], torch.int64[])"
    )


# MNIST


@pytest.mark.slow
@pytest.mark.mnist
def test_mnist_in_memory_equals_its_transform(mnist_folder: Path) -> None:
    """Bytes that are scaled per batch equal the values of ToTensor, bit for bit."""
    data = read(MNIST(mnist_folder, train=False), batch_transform=scaled)
    reference = MNIST(mnist_folder, train=False, transform=ToTensor())
    assert data.tensors[0].dtype == torch.uint8
    assert data.tensors[0].shape == (10_000, 1, 28, 28)
    assert torch.equal(data.tensors[1], reference.targets)
    for index in range(0, 10_000, 97):
        image, target = data[index]
        expected_image, expected_target = reference[index]
        assert torch.equal(image, expected_image)
        assert int(target) == expected_target


def test_sample_that_raises_is_named() -> None:
    """The error has its index, its cause and the original text."""

    class Broken:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Tensor:
            if index == 3:
                raise FileNotFoundError("x.png")
            return torch.zeros(2)

    with pytest.raises(DataError, match=r"Sample 3 .*x\.png") as caught:
        in_memory(Broken(), progress=False)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
