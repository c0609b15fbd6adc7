"""The values of tensors as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def to_array(tensor: Tensor) -> Array:
    """Return the values of a tensor; bfloat16, which numpy does not have, as float32."""
    tensor = tensor.detach().cpu()
    return tensor.to(torch.float32).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
