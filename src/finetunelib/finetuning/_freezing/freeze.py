"""Freezing and unfreezing parts of a model."""

from __future__ import annotations

import warnings

from torch import nn

from finetunelib._arguments import check_model
from finetunelib._messages import quoted
from finetunelib._public import public
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._freezing.fingerprint import fingerprint
from finetunelib.finetuning._freezing.hold import held_in_eval_mode
from finetunelib.finetuning._freezing.initial_values import warn_about_initial_values
from finetunelib.finetuning._freezing.plan import plan_freeze
from finetunelib.finetuning._freezing.selection import (
    Parts,
    Selection,
    select,
    select_last,
    subtree,
)
from finetunelib.finetuning._freezing.train_outputs import check_train_outputs


@public("finetunelib.finetuning")
def freeze(
    model: nn.Module,
    parts: Parts | None = None,
    *,
    except_: Parts | None = None,
    except_last: int | None = None,
) -> dict[str, str]:
    """Freeze a model or parts of it: parameters and buffers stay bit for bit, in any loop.

    The parameters of a frozen module do not require gradients, and their current gradients are
    dropped. The module and all of its submodules stay in eval mode also after `model.train()` and
    whichever of their methods is called: BatchNorm uses its running statistics and dropout is off,
    functional dropout included. Copies and pickles of the model are frozen as well; a state dict
    is not.

    `freeze(model, parts)` freezes exactly the named parts. The modules around them follow
    `train()` and `eval()`. If the model as a whole is named (without `parts`, also with `except_`
    or `except_last`), the modules around an excepted part are held in eval mode too, since their
    own forward is part of what is frozen.

    A part is named by

    - a module of the model, or a slice of one of its containers (`model.layers[:6]`);
    - a dotted name, such as `"layer4"`;
    - a pattern over the dotted names of modules and parameters, in which `*` matches any
      characters including dots, `?` matches one, and `[12]` one of these: `"layer[12].*"`,
      `"*bn?"`.

    A parameter that is named by itself (`"*.bias"`) only stops requiring a gradient; the mode of
    its module does not change.

    Args:
        model: The model, changed in place. Names are those inside `torch.compile` or DataParallel.
        parts: The parts to freeze, or `None` for everything.
        except_: The parts within `parts` that are not frozen. What `freeze` fixed in them earlier
            becomes trainable again.
        except_last: In place of `parts` and `except_`: freeze everything except the head and this
            number of blocks before it, in the order in which the model registers them. 0 keeps
            only the head trainable. A block is a child of the model; containers, children with
            more than half of the parameters, and children that are mostly a list of layers, are
            split into their own children. A ResNet has `layer4.1`, `layer4.0`, `layer3.1`, ...
            before its head.

    Returns:
        The digest of each frozen tensor by name, as `fingerprint` computes it.

    Raises:
        InvalidArgumentError: If a name or pattern matches nothing, a module is not in the model,
            nothing is left to freeze, or the arguments cannot be combined.
        InvalidTypeError: If `model` is not an `nn.Module`, or a part is neither a module nor a
            string.
        FreezeError: If the head is not found (for `except_last`); if a tensor or module would be
            frozen under one name and trainable under another; if a module cannot be frozen (a
            BatchNorm without running statistics, a lazy module without values, a ScriptModule);
            or if a model that returns something else in train mode, such as a detector, would be
            held in eval mode around a trainable part. The model is left unchanged.

    Warns:
        UserWarning: If an excepted part has no trainable parameter, because its parameters did
            not require gradients before; or if frozen tensors have their initial values, because
            the file of `load_weights` did not contain them.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import freeze, is_frozen
        >>> model = build_mlp(4, [8, 8], 3)
        >>> _ = freeze(model, except_last=1)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['backbone.3.weight', 'backbone.3.bias', 'head.weight', 'head.bias']
        >>> is_frozen(model, "backbone.1")
        True
    """
    own = unwrapped(check_model(model))
    if except_last is not None and (parts is not None or except_ is not None):
        raise InvalidArgumentError(
            "`except_last` counts over the whole model and cannot be combined with `parts` or "
            f"`except_`, got `except_last={except_last!r}` together with one of them."
        )
    frozen = subtree(own) if parts is None else select(own, parts)
    freed = Selection()
    if except_last is not None:
        freed = select_last(own, except_last, "except_last")
    elif except_ is not None:
        freed = select(own, except_, "except_")
    _check_something_left(own, frozen, freed)
    plan = plan_freeze(own, frozen, freed)
    check_train_outputs(own, plan.holds)
    plan.apply()
    _warn_if_not_trainable(own, freed, "except_")
    warn_about_initial_values(own, plan, stacklevel=2)
    return fingerprint(model)


@public("finetunelib.finetuning")
def unfreeze(model: nn.Module, parts: Parts | None = None, *, last: int | None = None) -> None:
    """Make a model or parts of it trainable: the reverse of `freeze`.

    Parameters that `freeze` fixed require gradients again. A parameter that did not require one
    before `freeze` stays so, unless it is named by itself (`"0.bias"`). The modules of the parts
    are no longer held in eval mode and are in train mode; call `model.eval()` before inference.
    The modules around them are released if nothing in them is frozen any more.

    Args:
        model: The model, changed in place.
        parts: The parts to make trainable, named as for `freeze`; `None` for everything.
        last: In place of `parts`: the head and this number of blocks before it, counted as for
            `freeze`. Other trainable parts stay trainable.

    Raises:
        InvalidArgumentError: If a name or pattern matches nothing, a module is not in the model,
            or both `parts` and `last` are given.
        InvalidTypeError: If `model` is not an `nn.Module`, or a part is neither a module nor a
            string.
        FreezeError: If the head is not found (for `last`); if a tensor or module would be frozen
            under one name and trainable under another; or if a model that returns something else
            in train mode, such as a detector, would be held in eval mode around the parts. The
            model is left unchanged.

    Warns:
        UserWarning: If the parts have no trainable parameter afterwards, because their parameters
            did not require gradients before `freeze`.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import freeze, is_frozen, unfreeze
        >>> model = build_mlp(4, [8, 8], 3)
        >>> _ = freeze(model)
        >>> unfreeze(model, last=1)
        >>> is_frozen(model, "backbone.1"), is_frozen(model, "backbone.3")
        (True, False)
    """
    own = unwrapped(check_model(model))
    if last is not None and parts is not None:
        raise InvalidArgumentError(
            "`last` counts over the whole model and cannot be combined with `parts`, got "
            f"`last={last!r}` together with `parts`."
        )
    if last is not None:
        freed = select_last(own, last, "last")
    else:
        freed = subtree(own) if parts is None else select(own, parts)
    plan = plan_freeze(own, Selection(), freed)
    check_train_outputs(own, plan.holds)
    plan.apply()
    _warn_if_not_trainable(own, freed, "parts")


@public("finetunelib.finetuning")
def is_frozen(model: nn.Module, part: Parts | None = None) -> bool:
    """Return whether a model, or a part of it, is frozen entirely.

    A part is frozen if none of its parameters requires a gradient and `freeze` holds all of its
    modules in eval mode. That includes modules without parameters, such as dropout. A model whose
    parameters merely have `requires_grad=False` is not frozen: its BatchNorm would change. The
    current value of `module.training` is ignored.

    Args:
        model: The model.
        part: The part, named as for `freeze`; `None` for the whole model. Of several parts, all
            must be frozen. A parameter that is named by itself is frozen if it does not require a
            gradient.

    Raises:
        InvalidArgumentError: If a name or pattern matches nothing, or a module is not in the model.
        InvalidTypeError: If `model` is not an `nn.Module`, or `part` is neither a module nor a
            string.

    Example:
        >>> from finetunelib import build_mlp, freeze_and_replace_head
        >>> from finetunelib.finetuning import is_frozen
        >>> model = freeze_and_replace_head(build_mlp(4, [8], 3), num_classes=5)
        >>> is_frozen(model), is_frozen(model, "backbone"), is_frozen(model, "head")
        (False, True, False)
    """
    own = unwrapped(check_model(model))
    selected = subtree(own) if part is None else select(own, part, "part")
    names = selected.parameter_names(own)
    return all(map(held_in_eval_mode, selected.modules)) and not any(
        parameter.requires_grad and name in names
        for name, parameter in own.named_parameters(remove_duplicate=False)
    )


def _check_something_left(model: nn.Module, frozen: Selection, freed: Selection) -> None:
    left = frozen.modules - freed.modules
    # A module that only contains others is nothing by itself: "*" names all except the root.
    has_leaf = any(not list(module.children()) for module in left)
    if not has_leaf and frozen.parameter_names(model) <= freed.parameter_names(model):
        raise InvalidArgumentError(
            "`except_` contains everything that would be frozen, so nothing is left to freeze. "
            "Name less in `except_`."
        )


def _warn_if_not_trainable(model: nn.Module, freed: Selection, argument: str) -> None:
    """Warn if a part that was to be trainable is fixed entirely, by other code than `freeze`."""
    names = freed.parameter_names(model)
    fixed = {
        own_name(name): parameter.requires_grad
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in names and (parameter.is_floating_point() or parameter.is_complex())
    }
    if fixed and not any(fixed.values()):
        first = next(iter(fixed))
        warnings.warn(
            f"None of the parameters named by `{argument}` is trainable: {quoted(list(fixed))}. "
            "They did not require gradients before `freeze`, so they stay that way. Name them by "
            f'themselves to train them, such as `unfreeze(model, "{first}")`.',
            UserWarning,
            stacklevel=3,
        )
