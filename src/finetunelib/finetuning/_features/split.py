"""A model as a frozen backbone and the head that is trained, and the proof that it is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import logits_of
from finetunelib._messages import quoted
from finetunelib._preserve import (
    attributes_preserved,
    random_state_preserved,
    random_states,
    reseed,
    set_random_states,
    unchanged,
)
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

#: The positional and named arguments of a module.
Call: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


class NotCacheableError(InvalidArgumentError):
    """The features of a model cannot be computed once and used in every epoch."""


class _HeadReachedError(BaseException):
    """Ends a forward pass where the head is called. Not an `Exception`, which a model may catch."""


@dataclass(frozen=True, slots=True)
class Split:
    """A model whose trainable parameters all belong to the module that computes its outputs.

    Attributes:
        model: The model.
        name: The name of the head in it.
        head: The head.
    """

    model: nn.Module
    name: str
    head: nn.Module

    def features(self, inputs: Inputs) -> Tensor:
        """Run the model up to its head, and return what the head receives.

        Raises:
            NotCacheableError: If the head is not called with one tensor.
        """
        taken: list[Call] = []

        def stop(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            taken.append((args, kwargs))
            raise _HeadReachedError  # The head itself could draw random numbers or change buffers.

        # First, since the head's own hooks will run when it is trained.
        handle = self.head.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
        try:
            with torch.no_grad(), contextlib.suppress(_HeadReachedError):
                inputs.call(self.model)
        finally:
            handle.remove()
        features = _only_tensor(taken)
        if features is None:
            raise NotCacheableError(f"`{self.name}` is not called once with one tensor.")
        return features

    @property
    def skipped(self) -> list[nn.Module]:
        """The modules outside the head."""
        inside = set(self.head.modules())
        return [module for module in self.model.modules() if module not in inside]

    def versions(self) -> int:
        """Return a number that grows when a parameter or buffer outside the head is written."""
        return sum(
            tensor._version  # noqa: SLF001 - torch's own counter
            for module in self.skipped
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )

    def why_broken(self) -> str | None:
        """Return why the features are no longer what the head would receive, or `None`.

        Only what a callback usually changes is looked at: what is trained, and hooks.
        """
        inside = set(map(id, self.head.parameters()))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in inside:
                return f"`{name}` is trained too"
        return _foreign_hook(self)


@dataclass(slots=True)
class _Calls:
    """The calls of a module in one forward pass."""

    name: str
    module: nn.Module
    arguments: list[Call] = field(default_factory=list)
    outputs: list[object] = field(default_factory=list)

    def why_not_head(self, output: object) -> str | None:
        """Return why the module does not compute the output of its model, or `None`."""
        if _only_tensor(self.arguments) is None:
            return f"`{self.name}` is not called once with one tensor"
        if logits_of(output) is not self.outputs[0]:
            return f"the model changes the outputs of `{self.name}`"
        return None


def find_split(model: nn.Module, inputs: Inputs) -> Split:
    """Return the head that is trained, after proving that all that comes before it is fixed.

    The model runs in its present modes on a batch. It must compute the same features again with
    other random numbers, without drawing any and without changing a buffer, and the head must
    compute the model's outputs from them bit for bit. The model is left as it was.

    Args:
        model: The model, in the modes of training.
        inputs: The inputs of a batch.

    Raises:
        NotCacheableError: If it has no such head; the message says why.
    """
    candidates = _candidates(model)
    with _without_effects(model, candidates[-1].module):
        output = _run(model, inputs, candidates)
        reasons = []
        for calls in candidates:
            reason = calls.why_not_head(output) or _why_not_fixed(
                Split(model, calls.name, calls.module), inputs
            )
            if reason is None:
                return Split(model, calls.name, calls.module)
            reasons.append(reason)
    raise NotCacheableError(f"The features cannot be cached: {reasons[0]}.")


def may_have_split(model: nn.Module) -> bool:
    """Return whether some parameters are frozen and all others belong to one inner module."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return False
    try:
        return bool(_candidates(model))
    except NotCacheableError:
        return False


def check_rows(split: Split, inputs: Inputs, features: Tensor) -> None:
    """Raise if the features of a sample depend on the other samples in its batch.

    Args:
        split: The model and its head.
        inputs: The inputs of a batch.
        features: The features of this batch, which are compared with those in other orders.

    Raises:
        NotCacheableError: If they differ in one bit.
    """
    rows = len(features)
    half = torch.arange(rows) // 2
    for chosen in (torch.arange(rows - 1, -1, -1), half, half + rows // 2):
        order = chosen.clamp(max=rows - 1)
        part = inputs.map(partial(_taken, order))
        if not _same_bits(split.features(part), _taken(order, features)):
            raise NotCacheableError(
                "The features cannot be cached: the bits of a sample's features depend on the "
                "other samples in its batch."
            )


def _taken(order: Tensor, tensor: Tensor) -> Tensor:
    return tensor[order.to(tensor.device)]


def _candidates(model: nn.Module) -> list[_Calls]:
    """Return the modules that contain all trainable parameters, the innermost first.

    Raises:
        NotCacheableError: If there is none besides the model itself.
    """
    trainable = {n: id(p) for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise NotCacheableError("The features cannot be cached: no parameter is trained.")
    found = [
        _Calls(name, module)
        for name, module in model.named_modules()
        if name and set(trainable.values()) <= set(map(id, module.parameters()))
    ]
    if not found:
        outside = [name for name in trainable if "." in name] or list(trainable)
        raise NotCacheableError(
            "The features cannot be cached: the trained parameters are not all in one module at "
            f"the end of the model; they are {quoted([outside[0], outside[-1]])}, among others."
        )
    return found[::-1]


def _run(model: nn.Module, inputs: Inputs, candidates: list[_Calls]) -> object:
    handles = []
    for calls in candidates:

        def before(
            _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], to: _Calls = calls
        ) -> None:
            to.arguments.append((args, kwargs))

        def after(_: nn.Module, __: object, output: object, to: _Calls = calls) -> None:
            to.outputs.append(output)

        handles += [
            calls.module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            calls.module.register_forward_hook(after),
        ]
    try:
        with torch.no_grad():
            return inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()


def _why_not_fixed(split: Split, inputs: Inputs) -> str | None:
    """Return why the features or the outputs are not the same each time, or `None`."""
    return (
        _foreign_hook(split)
        or _why_features_vary(split, inputs)
        or _why_outputs_differ(split, inputs)
    )


def _why_features_vary(split: Split, inputs: Inputs) -> str | None:
    inside = set(map(id, split.head.buffers()))
    buffers = {
        name: (buffer, buffer.clone())
        for name, buffer in split.model.named_buffers()
        if id(buffer) not in inside and not buffer.is_meta
    }
    reseed(1)
    features = split.features(inputs)
    reseed(2)
    if not _same_bits(split.features(inputs), features):
        return f"what `{split.name}` receives is random, as after a dropout"
    if _draws_random_numbers(split, inputs):
        return f"random numbers are drawn before `{split.name}`"
    for name, (buffer, value) in buffers.items():
        if not _same_bits(buffer, value):
            return f"a forward pass changes the buffer `{name}`"
    rows = [len(tensor) for tensor in inputs.tensors if tensor.dim()]
    if features.dim() == 0 or len(features) not in rows:
        return f"what `{split.name}` receives does not have one row for each sample"
    return None


def _why_outputs_differ(split: Split, inputs: Inputs) -> str | None:
    reseed(0)
    state = random_states()
    with torch.no_grad():
        outputs = logits_of(inputs.call(split.model))
        features = split.features(inputs)
        set_random_states(state)
        again = logits_of(split.head(features))
    if outputs is None or again is None or not _same_bits(outputs, again):
        return f"`{split.name}` does not compute the model's outputs from its features alone"
    return None


def _draws_random_numbers(split: Split, inputs: Inputs) -> bool:
    """Return whether the model draws random numbers before its head is called."""
    drawn: list[bool] = []
    reseed(0)
    state = torch.get_rng_state()

    def compare(_: nn.Module, __: object) -> None:
        drawn.append(not torch.equal(torch.get_rng_state(), state))

    handle = split.head.register_forward_pre_hook(compare, prepend=True)
    try:
        with torch.no_grad():
            inputs.call(split.model)
    finally:
        handle.remove()
    return any(drawn)


def _foreign_hook(split: Split) -> str | None:
    """Return a text that names a hook outside the head that is not one of freezing, or `None`."""
    for module in split.skipped:
        hooks = {
            *module._forward_pre_hooks.values(),  # noqa: SLF001 - no public way
            *module._forward_hooks.values(),  # noqa: SLF001
        }
        if hooks - {keep_in_eval_mode}:
            return f"a hook of a {type(module).__name__} would not run"
    return None


@contextlib.contextmanager
def _without_effects(model: nn.Module, head: nn.Module) -> Iterator[None]:
    """Run the block, and restore buffers, attributes, the head and random states."""
    inside = set(head.modules())
    saved = [
        (buffer, buffer.clone())
        for module in model.modules()
        if module not in inside
        for buffer in module.buffers(recurse=False)
        if not buffer.is_meta
    ]
    with unchanged(head), attributes_preserved(model), random_state_preserved():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    if not _same_bits(buffer, value):
                        buffer.copy_(value)


def _only_tensor(calls: list[Call]) -> Tensor | None:
    """Return the tensor that the only call had as its only argument, or `None`."""
    if len(calls) != 1 or calls[0][1] or len(calls[0][0]) != 1:
        return None
    argument = calls[0][0][0]
    return argument if type(argument) is Tensor else None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(_bits(one), _bits(other)))


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor as integers, since nan is not equal to itself and -0.0 is equal to 0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
