"""The weights of samples: how much each counts in the loss and the metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from finetunelib.data._parts import as_tensor
from finetunelib.errors import DataError, InvalidArgumentError


def as_sample_weight(value: object, samples: int, parts: int) -> Tensor | None:
    """Return the weights of samples as float32, or `None` if there are none.

    Args:
        value: The weights, a tensor or array `(samples,)`, or `None`.
        samples: The number of samples.
        parts: The number of tensors or mappings that the data consists of.

    Raises:
        InvalidTypeError: If they are neither a tensor nor an array.
        DataError: If there is not one weight for each sample.
        InvalidArgumentError: If the data is not (inputs, targets), or a weight is negative or not
            finite, or all are 0.
    """
    if value is None:
        return None
    if parts != 2:
        raise InvalidArgumentError(
            f"`sample_weight` needs inputs and targets, got data of {parts} parts. Pass "
            "TensorBatches(inputs, targets, sample_weight=...)."
        )
    weight = as_tensor(value)
    if weight.shape != (samples,):
        raise DataError(
            f"`sample_weight` must have one weight for each sample, the shape ({samples},), got "
            f"{tuple(weight.shape)}."
        )
    if weight.is_complex():
        raise InvalidArgumentError(
            "`sample_weight` must consist of real numbers, got complex ones."
        )
    weight = weight.to(torch.float32)
    wrong = ~(weight.isfinite() & (weight >= 0))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InvalidArgumentError(
            "`sample_weight` must consist of finite numbers of at least 0, got "
            f"{float(weight[row])} for sample {row}."
        )
    if not bool(weight.any()):
        raise InvalidArgumentError(
            "`sample_weight` must contain a weight above 0, got only zeros: nothing would count."
        )
    return weight
