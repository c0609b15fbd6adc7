"""Trying a model with its new head in a dry run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetunelib._forward.dry_run import DryRun, dry_run, real_run
from finetunelib._forward.guess import OutputKindError
from finetunelib._forward.inputs import Inputs
from finetunelib.errors import HeadError, InvalidInputError
from finetunelib.finetuning._heads.head import Head
from finetunelib.finetuning._heads.request import HeadRequest


def try_new_head(
    model: nn.Module, new: nn.Module, before: DryRun | None, old: Head, request: HeadRequest
) -> DryRun | None:
    """Run a model with its new head, if it ran with the old one.

    Args:
        model: The unwrapped model, with the new head in place.
        new: The new head.
        before: The dry run with the old head; `None` if the model did not run.
        old: The old head.
        request: What the user asked for.

    Returns:
        The dry run with the new head; `None` if the model did not run with the old one.

    Raises:
        HeadError: If the model does not run, or its outputs do not have the new width.
    """
    if before is None:
        return None
    taken: list[tuple[Tensor, ...]] = []
    handle = new.register_forward_pre_hook(lambda _, args: taken.append(args))
    try:
        after = dry_run(model, before.example)
        reference = next(old.module.parameters(), None)
        if request.head is not None and after.on_meta and taken and reference is not None:
            _run_alone(new, taken[-1], reference.device)
    except InvalidInputError as error:
        place = f"at `{old.name}`" if old.name else "in its place"
        raise HeadError(
            f"The model does not run with the new head {place}: {error.__cause__}. "
            f"The head's input has {old.in_features} features."
        ) from error
    finally:
        handle.remove()
    if request.at is None and request.num_classes is not None:
        _check_width(before, after, old, request.num_classes)
    return after


def new_width(old: Head, before: DryRun, after: DryRun) -> int:
    """Return the size in the new outputs of the axis that had the old head's width."""
    shape = before.outputs.shape
    axis = 1 if shape[1] == old.out_features or after.outputs.dim() != len(shape) else -1
    return after.outputs.shape[axis]


def _run_alone(head: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> None:
    """Run a new head on real tensors: a run on meta tensors misses a wrong dtype or device."""
    if device.type == "meta":
        return
    try:
        real_run(head, Inputs(inputs, {}), device)
    except InvalidInputError as error:
        if not isinstance(error.__cause__, OutputKindError):  # The model turns it into a batch.
            raise


def _check_width(before: DryRun, after: DryRun, old: Head, num_classes: int) -> None:
    """Raise if the outputs do not have the new number of classes."""
    shape, new_shape = tuple(before.outputs.shape), tuple(after.outputs.shape)
    axes = [axis for axis, size in enumerate(shape) if size == old.out_features]
    if new_shape not in [(*shape[:axis], num_classes, *shape[axis + 1 :]) for axis in axes]:
        raise HeadError(
            f"With a new head of {num_classes} features at `{old.name}` the outputs have the "
            f"shape {new_shape}; before, they had {shape}. The model also stores its number of "
            "classes elsewhere. Set it there first."
        )
