"""Datasets that contain their samples as tensors, which are read without a loop over samples."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from finetunelib._typing import Batch
from finetunelib.data._cache.rows import Rows

#: The classes of torchvision whose samples are an image of bytes and a class.
_MNIST = ("MNIST", "FashionMNIST", "KMNIST", "EMNIST")


@dataclass(frozen=True, slots=True)
class _Images:
    """Images of bytes with classes, converted as `ToTensor` does.

    The tensors are looked up for each batch, so what is changed in them counts.
    """

    dataset: Any  # Any: torchvision is not imported.
    dtype: torch.dtype

    def take(self, rows: Tensor) -> Batch:
        """Return a batch of images and classes, as a DataLoader does: a list of both."""
        images = self.dataset.data.index_select(0, rows).unsqueeze(1)
        classes = self.dataset.targets.index_select(0, rows)
        return [images.to(self.dtype).div_(255), classes.to(torch.int64)]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Some of the samples of a dataset."""

    rows: Rows
    indices: Tensor

    def take(self, rows: Tensor) -> Batch:
        """Return a batch of them."""
        return self.rows.take(self.indices.index_select(0, rows))


def open_tensors(dataset: Any) -> Rows | None:
    """Return the samples of a dataset whose tensors are known to be its samples, or `None`.

    These are the datasets of the MNIST family of torchvision with exactly `ToTensor()` as their
    transform, and subsets of them.

    Args:
        dataset: The dataset.
    """
    if type(dataset) is Subset:
        rows = open_tensors(dataset.dataset)
        if rows is None or not all(type(index) is int for index in dataset.indices):
            return None
        indices = torch.tensor(dataset.indices, dtype=torch.int64)
        samples = len(dataset.dataset)  # type: ignore[arg-type]  # of the MNIST family
        inside = bool(((indices >= 0) & (indices < samples)).all())
        return _Chosen(rows, indices) if inside else None
    # Looked up and not imported: the dataset would have imported it.
    datasets = sys.modules.get("torchvision.datasets")
    transforms = sys.modules.get("torchvision.transforms")
    if datasets is None or transforms is None:
        return None
    if type(dataset) not in (getattr(datasets, name, None) for name in _MNIST):
        return None
    if type(dataset.transform) is not transforms.ToTensor or dataset.target_transform is not None:
        return None
    return _Images(dataset, torch.get_default_dtype()) if _are_plain(dataset) else None


def _are_plain(dataset: Any) -> bool:
    images, classes = dataset.data, dataset.targets
    if not (type(images) is Tensor and type(classes) is Tensor):
        return False
    return (
        images.dtype is torch.uint8
        and classes.dtype is torch.int64
        and images.dim() == 3
        and classes.shape == images.shape[:1]
        and images.device.type == classes.device.type == "cpu"
    )
