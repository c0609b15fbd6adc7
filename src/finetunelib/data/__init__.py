"""Batches: from tensors in memory, from datasets and from whatever already yields batches."""

from finetunelib.data._in_memory import InMemoryDataset, in_memory
from finetunelib.data._tensors import TensorBatches

__all__ = ["InMemoryDataset", "TensorBatches", "in_memory"]
