"""Batches: from tensors in memory, from datasets and from whatever already yields batches."""

from finetunelib.data._tensors import TensorBatches

__all__ = ["TensorBatches"]

TensorBatches.__module__ = __name__
