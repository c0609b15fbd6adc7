"""Tests of the datasets that contain their samples as tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, default_collate
from torchvision import datasets, transforms

from finetunelib import Trainer, build_mlp
from finetunelib.data._cache.open_tensors import open_tensors
from finetunelib.data._cache.rows import same_batches


def digits(kind: Any = datasets.MNIST) -> Any:
    """Return images as the classes of torchvision hold them, without files."""
    dataset = kind.__new__(kind)
    generator = torch.Generator().manual_seed(0)
    dataset.data = torch.randint(0, 256, (40, 5, 5), generator=generator, dtype=torch.uint8)
    dataset.targets = torch.arange(40) % 3
    dataset.transform, dataset.target_transform = transforms.ToTensor(), None
    return dataset


@pytest.mark.parametrize("kind", [datasets.MNIST, datasets.FashionMNIST, datasets.EMNIST])
@pytest.mark.parametrize("part", [None, [3, 3, 39, 0]])
def test_batches_have_the_bits_of_a_loader(kind: Any, part: list[int] | None) -> None:
    """Those of the dataset, and of a subset."""
    data: Dataset[Any] = digits(kind) if part is None else Subset(digits(kind), part)
    rows = open_tensors(data)
    assert rows is not None
    chosen = [2, 0, 3, 3]
    batch = default_collate([data[index] for index in chosen])
    assert same_batches(rows.take(torch.tensor(chosen)), batch)


class Inverted(datasets.MNIST):  # type: ignore[misc]  # torchvision has no types
    """A subclass, which may return anything."""


def changed(**attributes: Any) -> Any:
    """Return a dataset with other attributes."""
    dataset = digits()
    vars(dataset).update(attributes)
    return dataset


@pytest.mark.parametrize(
    "dataset",
    [
        digits(Inverted),
        digits(datasets.QMNIST),
        changed(transform=transforms.Compose([transforms.ToTensor()])),
        changed(transform=None),
        changed(target_transform=float),
        changed(data=torch.zeros(40, 5, 5)),
        changed(targets=list(range(40))),
        Subset(changed(transform=None), [0]),
        Subset(digits(), [-1]),
    ],
    ids=[
        "subclass",
        "QMNIST",
        "Compose",
        "transform",
        "targets",
        "floats",
        "list",
        "subset",
        "negative",
    ],
)
def test_other_datasets_are_read_sample_by_sample(dataset: Any) -> None:
    """Only what is known for certain is read from its tensors."""
    assert open_tensors(dataset) is None


def test_training_reads_no_sample_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for the checks; the bits are those without a cache."""
    reads = []

    def counted(dataset: Any, index: int) -> Any:
        reads.append(index)
        return original(dataset, index)

    original = datasets.MNIST.__getitem__
    weights = []
    for cache in ("auto", False):
        model = nn.Sequential(nn.Flatten(), build_mlp(25, [8], 3, seed=0))
        trainer = Trainer(model, batch_size=16, progress=False, cache_data=cache)
        with monkeypatch.context() as patch:
            patch.setattr(datasets.MNIST, "__getitem__", counted)
            history = trainer.fit(digits(), digits(), epochs=4)
        assert history.cached_data is (cache == "auto")
        weights.append([*model.state_dict().values(), torch.tensor(history["val_loss"][:])])
        # Each of both is read twice by 16 samples, and 16 more before each epoch after the check.
        assert (len(reads) < 2 * 40 * 4) is (cache == "auto")
        reads.clear()
    assert all(map(torch.equal, *weights))
