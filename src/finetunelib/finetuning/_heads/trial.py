"""Trying a model with its new head in a dry run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._forward.dry_run import DryRun, dry_run, real_run
from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import logits_of
from finetunelib.errors import HeadError, InvalidInputError
from finetunelib.finetuning._heads.head import Head
from finetunelib.finetuning._heads.request import HeadRequest
from finetunelib.finetuning._heads.structure import structure_of, tensors_by_name, text_of


@dataclass(frozen=True, slots=True)
class Trial:
    """Dry runs of a model with its old head and with its new one.

    Attributes:
        old: The old head.
        before: The run with the old head.
        after: The run with the new head.
    """

    old: Head
    before: DryRun
    after: DryRun

    def new_width(self) -> int | None:
        """Return the size in the new outputs of the axis that had the old head's width, if any."""
        old, new = logits_of(self.before.output), logits_of(self.after.output)
        if old is None or new is None or old.dim() < 2 or new.dim() < 2:
            return None
        axis = 1 if old.shape[1] == self.old.out_features or new.dim() != old.dim() else -1
        return new.shape[axis]


def try_new_head(
    model: nn.Module, new: nn.Module, old: Head, before: DryRun, request: HeadRequest
) -> Trial:
    """Run a model with its new head.

    Args:
        model: The unwrapped model, with the new head in place.
        new: The new head.
        old: The old head.
        before: The dry run with the old head.
        request: What the user asked for.

    Raises:
        HeadError: If the model does not run, or returns outputs of another structure, or outputs
            that do not have the new width.
    """
    taken: list[Inputs] = []
    handle = new.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append(Inputs(args, kwargs)), with_kwargs=True
    )
    try:
        after = dry_run(model, before.example)
        reference = next(old.module.parameters(), None)
        if request.head is not None and after.on_meta and taken and reference is not None:
            _run_alone(new, taken[-1], reference.device)
    except InvalidInputError as error:
        width = f" The head's input has {old.in_features} features." if old.in_features else ""
        raise HeadError(
            f"The model does not run with the new head {_place(old)}: {error.__cause__}.{width}"
        ) from error
    finally:
        handle.remove()
    trial = Trial(old, before, after)
    _check_structure(trial, request)
    if request.num_classes is not None:
        _check_width(trial, request.num_classes, found=request.at is None)
    return trial


def _run_alone(head: nn.Module, inputs: Inputs, device: torch.device) -> None:
    """Run a new head on real tensors: a run on meta tensors misses a wrong dtype or device."""
    if device.type != "meta":
        real_run(head, inputs, device)


def _check_structure(trial: Trial, request: HeadRequest) -> None:
    """Raise if the output has another structure.

    A head that the user passes may return tensors with another number of dimensions.
    """
    before, after = trial.before.output, trial.after.output
    dimensions = request.num_classes is not None
    if structure_of(before, dimensions=dimensions) != structure_of(after, dimensions=dimensions):
        raise HeadError(
            f"With the new head {_place(trial.old)} the model returns {text_of(after)} instead of "
            f"{text_of(before)}. Name a single layer with `at=`, or pass a head with the same "
            "kind of output with `head=`."
        )


def _check_width(trial: Trial, num_classes: int, *, found: bool) -> None:
    """Raise if the outputs do not have the new number of classes.

    If the head was named with `at=`, its outputs need not be those of the model, but an axis that
    has changed and had the old width must have the new one.
    """
    old = trial.old
    for (name, before), (_, after) in zip(
        tensors_by_name(trial.before.output), tensors_by_name(trial.after.output), strict=False
    ):
        shape, new_shape = tuple(before.shape), tuple(after.shape)
        if len(shape) != len(new_shape):  # Lists of other lengths.
            continue
        axes = [axis for axis, size in enumerate(shape) if size == old.out_features]
        expected = [(*shape[:axis], num_classes, *shape[axis + 1 :]) for axis in axes]
        if found:
            wrong = name in ("", "logits") and new_shape not in expected
        else:
            changed = [axis for axis, size in enumerate(shape) if size != new_shape[axis]]
            wrong = any(axis in axes and axis > 0 for axis in changed) and new_shape not in expected
        if wrong:
            raise HeadError(
                f"With a new head of {num_classes} features {_place(old)} the outputs have the "
                f"shape {new_shape}; before, they had {shape}. The model also stores its number "
                "of classes elsewhere. Set it there first."
            )


def _place(old: Head) -> str:
    return f"at `{old.name}`" if old.name else "in its place"
