"""A batch of one sample, from which BatchNorm cannot compute statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetunelib._forward.batch import arguments_of, inputs_of
from finetunelib._preserve import untouched
from finetunelib._typing import Batch
from finetunelib.data._batch import to_device
from finetunelib.data._batches import Batches
from finetunelib.errors import InvalidArgumentError


def check_last_batch(
    model: nn.Module, first: Batch, batches: Batches, device: torch.device, name: str = "train"
) -> None:
    """Raise if an epoch has a batch of one sample that the model cannot be trained on.

    Only if the sizes say that there is one, the first sample is passed through the model in the
    modes of training, with copies of its parameters and buffers.

    Args:
        model: The model, in the modes of training.
        first: The first batch.
        batches: The training data.
        device: Where the model is.
        name: The name of the data, for messages.

    Raises:
        InvalidArgumentError: If a BatchNorm needs more than one sample.
    """
    if batches.last_batch_size != 1 or not _trains_batch_norm(model):
        return
    if _trains_on_one(model, to_device(first, device)):
        return
    size = batches.batch_size
    if size is None:
        raise InvalidArgumentError(
            f"The last batch of `{name}` has one sample, from which BatchNorm cannot compute "
            "statistics in training. Pass `drop_last=True` to the DataLoader, or another "
            "`batch_size`."
        )
    what = f"{batches.samples} samples in batches of {size} leave a last batch of one sample"
    if size == 1:
        what = "Each batch has one sample (`batch_size=1`)"
    raise InvalidArgumentError(
        f"{what}, from which BatchNorm cannot compute statistics in training. Pass "
        f"`batch_size={_better_size(batches.samples or 0, size)}`, or a DataLoader with "
        "`drop_last=True`."
    )


def _better_size(samples: int, size: int) -> int:
    """Return the next larger batch size whose last batch has several samples."""
    return next(
        (larger for larger in range(size + 1, samples + 1) if samples % larger != 1), samples
    )


def _trains_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def _trains_on_one(model: nn.Module, first: Batch) -> bool:
    """Return whether the model accepts one sample in the modes of training."""
    inputs = arguments_of(_first_row(inputs_of(first)))
    copies = {
        name: tensor.detach().clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    with untouched(model), torch.no_grad():
        try:
            torch.func.functional_call(model, copies, inputs.args, inputs.kwargs)
        except ValueError as error:
            return "more than 1 value per channel" not in str(error)
        # Anything else is not about the number of samples: training itself will show it.
        except Exception:  # noqa: BLE001
            return True
    return True


def _first_row(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _first_row(part) for name, part in value.items()}
    return value[:1] if isinstance(value, torch.Tensor) and value.dim() else value
