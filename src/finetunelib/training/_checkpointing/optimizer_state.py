"""Checks the state of an optimizer in a checkpoint before it is loaded."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib.training._checkpointing.contents import Contents, is_dict, is_finite
from finetunelib.training._optimization.coverage import parameters_of

#: The parameters, and options that choose how an update is computed: not the form of its state.
_NOT_OPTIONS = ("params", "foreach", "fused", "capturable", "differentiable")

#: The state of a new optimizer before and after a first update.
_Fresh = tuple[Mapping[str, Any], Mapping[str, Any]]


def check_optimizer(
    contents: Contents, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    """Raise if an optimizer could not train on with a saved state.

    For the classes of `torch.optim`, names and shapes are compared with the state of a new
    optimizer that has taken one step on the meta device. Other classes may keep any values for a
    parameter; of them, only the options of the parameter groups are checked.

    Args:
        contents: The checkpoint.
        saved: The saved state. It has the parameter groups of `optimizer`.
        optimizer: The optimizer of this run.

    Raises:
        CheckpointError: If a value has another type or shape, or is outside its range.
    """
    states = saved["state"]
    parameters = parameters_of(optimizer)
    contents.check(is_dict(states), "optimizer.state", "a dict")
    known = all(type(index) is int and 0 <= index < len(parameters) for index in states)
    contents.check(known, "optimizer.state", "a dict with the numbers of parameters as keys")
    start = 0
    for number, (group, own) in enumerate(
        zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ):
        where = f"optimizer.param_groups[{number}]"
        _check_options(contents, group, own, where)
        fresh: dict[tuple[Any, ...], _Fresh | None] = {}
        for index, parameter in enumerate(own["params"], start=start):
            if index not in states:
                continue
            place = f"optimizer.state[{index}]"
            contents.check(is_dict(states[index]), place, "a dict")
            form = (parameter.shape, parameter.dtype)
            if form not in fresh:
                fresh[form] = _fresh_state(contents, type(optimizer), parameter, group, own, where)
            _check_state(contents, states[index], fresh[form], place)
        start += len(own["params"])


def check_groups(contents: Contents, saved: Mapping[str, Any]) -> None:
    """Raise if the parameter groups of a saved optimizer have another form.

    Raises:
        CheckpointError: If they are not a list of dicts that number the parameters.
    """
    complete = {"state", "param_groups"} <= set(saved)
    contents.check(complete, "optimizer", "a dict with the keys `state` and `param_groups`")
    groups, where = saved["param_groups"], "optimizer.param_groups"
    contents.check(isinstance(groups, list) and all(map(is_dict, groups)), where, "a list of dicts")
    lists = [group.get("params") for group in groups]
    contents.check(all(isinstance(part, list) for part in lists), where, "dicts with `params`")
    numbers = list(itertools.chain.from_iterable(lists))
    in_order = numbers == list(range(len(numbers))) and all(type(n) is int for n in numbers)
    contents.check(in_order, f"{where}.params", "the numbers of the parameters in order")


def _check_options(
    contents: Contents, saved: Mapping[str, Any], own: Mapping[str, Any], where: str
) -> None:
    for name in saved.keys() & own.keys() - {"params"}:
        if isinstance(own[name], bool | None):
            plain = isinstance(saved[name], bool | None)
            contents.check(plain, f"{where}.{name}", "True, False or None")
        else:
            contents.check_like(saved[name], own[name], f"{where}.{name}")
    for name in ("lr", "initial_lr"):
        if name in own:
            contents.check(is_finite(saved.get(name)), f"{where}.{name}", "a finite number")


def _fresh_state(
    contents: Contents,
    kind: type[torch.optim.Optimizer],
    parameter: Tensor,
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    where: str,
) -> _Fresh | None:
    """Return the state of a new optimizer with saved options, or `None` if it is not known."""
    if not f"{kind.__module__}.".startswith("torch.optim."):
        return None
    names = [n for n in inspect.signature(kind).parameters if n not in _NOT_OPTIONS]
    try:
        _first_states(kind, parameter, {n: own[n] for n in names if n in own})
    except Exception:  # noqa: BLE001 - not on the meta device, or not without a closure
        return None
    missing = [n for n in names if n in own and n not in saved]
    contents.check(not missing, where, f"a dict with the option {', '.join(missing)}")
    try:
        return _first_states(kind, parameter, {n: saved[n] for n in names if n in saved})
    except Exception:  # Each class has its own way to refuse an option.
        contents.check(False, where, f"a dict of options that {kind.__name__} accepts")
        raise


def _first_states(
    kind: type[torch.optim.Optimizer], parameter: Tensor, options: dict[str, Any]
) -> _Fresh:
    copy = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=True)
    copy.grad = torch.empty_like(copy)
    # The learning rate may be a tensor, which only some implementations accept.
    options |= {n: v.item() for n, v in options.items() if isinstance(v, Tensor) and v.ndim == 0}
    optimizer = kind([copy], **options)
    before = dict(optimizer.state.get(copy, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer.step()
        except Exception:  # Some read numbers of the update, which has none here.
            if not optimizer.state:
                raise
    return before, dict(optimizer.state.get(copy, {}))


def _check_state(
    contents: Contents, saved: Mapping[str, Any], fresh: _Fresh | None, where: str
) -> None:
    if "step" in saved:
        positive = is_finite(saved["step"]) and float(saved["step"]) >= 0
        contents.check(positive, f"{where}.step", "a number from 0")
    if fresh is None or (not saved and not fresh[0]):
        return
    for name, expected in fresh[1].items():
        contents.check(name in saved, where, f"a dict with the key `{name}`")
        value, place = saved[name], f"{where}.{name}"
        if isinstance(expected, Tensor) and expected.ndim:
            if value is None and name == "momentum_buffer":
                continue  # SGD before its first update.
            shape = list(expected.shape)
            same = (
                isinstance(value, Tensor)
                and list(value.shape) == shape
                and value.layout is torch.strided
                and not value.is_quantized
                and value.is_floating_point() == expected.is_floating_point()
            )
            contents.check(same, place, f"a tensor of the shape {shape}")
        elif expected is not None:
            contents.check_like(value, expected, place)


def undo_casts(optimizer: torch.optim.Optimizer, saved: Mapping[int, Mapping[str, Any]]) -> None:
    """Restore the dtypes of an optimizer's tensors, which PyTorch casts when it loads a state."""
    parameters = parameters_of(optimizer)
    for index, values in saved.items():
        loaded = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)
