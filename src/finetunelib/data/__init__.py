"""Batches of tensors in memory, and datasets that are read into memory."""

from finetunelib.data._in_memory import InMemoryDataset, in_memory
from finetunelib.data._tensors import TensorBatches

__all__ = ["InMemoryDataset", "TensorBatches", "in_memory"]


def __dir__() -> list[str]:
    return __all__
