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
from finetunelib._forward.state_tensors import same_bits
from finetunelib._messages import quoted
from finetunelib._preserve import (
    attributes_preserved,
    random_state_preserved,
    raw_random_states,
    reseed,
    set_raw_random_states,
    unchanged,
)
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._frozen_hook import keep_in_eval_mode

#: The values that are compared at all positions of a batch, if there are as many, and at least.
_ENOUGH_VALUES, _FEWEST_VALUES = 256, 64

#: The batches that are run for that, at most.
_ATTEMPTS = 128

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

    def features(self, inputs: Inputs, *, gradients: bool = False) -> Tensor:
        """Run the model up to its head, and return what the head receives.

        Args:
            inputs: The inputs of a batch.
            gradients: Whether to record on which parameters it depends.

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
            with torch.set_grad_enabled(gradients), contextlib.suppress(_HeadReachedError):
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
        # The dicts of the modules, because this runs after every step of a run with callbacks.
        return sum(
            tensor._version  # noqa: SLF001 - torch's own counter
            for module in self.skipped
            for tensors in (module._parameters, module._buffers)  # noqa: SLF001
            for tensor in tensors.values()
            if tensor is not None
        )

    def why_broken(self) -> str | None:
        """Return why the features are no longer what the head would receive, or `None`.

        Only what a callback usually changes is looked at: what is trained, and hooks.
        """
        for module in self.skipped:
            for name, parameter in module._parameters.items():  # noqa: SLF001 - as above
                if parameter is not None and parameter.requires_grad:
                    return f"`{name}` of a {type(module).__name__} is trained too"
        return _foreign_hook(self)


@dataclass(slots=True)
class _Calls:
    """The calls of a module in one forward pass.

    Attributes:
        name: The name of the module.
        module: The module.
        features: For each call the tensor that was its only argument, or `None`.
        outputs: Its outputs.
    """

    name: str
    module: nn.Module
    features: list[Tensor | None] = field(default_factory=list)
    outputs: list[object] = field(default_factory=list)

    def why_not_head(self, output: object) -> str | None:
        """Return why the module does not compute the output of its model, or `None`."""
        if len(self.features) != 1 or self.features[0] is None:
            return f"`{self.name}` is not called once with one tensor"
        if logits_of(output) is not self.outputs[0]:
            return f"the model changes the outputs of `{self.name}`"
        return None


def find_split(model: nn.Module, inputs: Inputs) -> Split:
    """Return the head that is trained, after checking that all that comes before it is fixed.

    The model runs in its present modes on a batch, and on the same samples in another batch with
    other random numbers. It must compute the same features for each sample, bit for bit, without
    drawing random numbers or changing a buffer, and the head must compute the model's outputs from
    them. The model is left as it was.

    Args:
        model: The model, in the modes of training.
        inputs: The inputs of a batch.

    Raises:
        NotCacheableError: If it has no such head; the message says why.
    """
    candidates = _candidates(model)
    with _without_effects(model, candidates[-1].module):
        reseed(0)
        state = raw_random_states()
        output = _run(model, inputs, candidates)
        reasons = []
        for calls in candidates:
            split = Split(model, calls.name, calls.module)
            reason = calls.why_not_head(output) or _foreign_hook(split)
            if reason is None and calls.features[0] is not None:
                features = calls.features[0]
                reason = _why_features_vary(split, inputs, features)
                set_raw_random_states(state)
                reason = reason or _why_outputs_differ(split, features, output)
            if reason is None:
                return split
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


def _repeated(tensor: Tensor, row: int) -> Tensor:
    """Return a batch that consists of one of its samples."""
    return tensor[row].expand_as(tensor).clone(memory_format=torch.contiguous_format)


def _varied(tensor: Tensor, row: int, generator: torch.Generator) -> Tensor:
    """Return a batch that consists of a sample near one of its samples."""
    if not tensor.is_floating_point():
        return _repeated(tensor, row)
    scale = 0.5 + torch.rand(tensor.shape[1:], generator=generator)
    sample = tensor[row] * scale.to(device=tensor.device, dtype=tensor.dtype)
    return sample.expand_as(tensor).clone(memory_format=torch.contiguous_format)


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
            only = _only_tensor([(args, kwargs)])
            # A copy, since the head may write to it.
            to.features.append(None if only is None else only.clone())

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


def _why_features_vary(split: Split, inputs: Inputs, features: Tensor) -> str | None:
    """Return why the features are not the same for each sample in every batch, or `None`."""
    rows = [len(tensor) for tensor in inputs.tensors]
    if features.dim() == 0 or [len(features)] * len(rows) != rows:
        return f"what `{split.name}` receives does not have one row for each sample"
    inside = set(map(id, split.head.buffers()))
    buffers = {
        name: (buffer, buffer.clone())
        for name, buffer in split.model.named_buffers()
        if id(buffer) not in inside and not buffer.is_meta
    }
    reseed(1)
    state = torch.get_rng_state()
    # The last sample, at all positions.
    others = split.features(inputs.map(partial(_repeated, row=-1)), gradients=True)
    if others.requires_grad:
        return f"what `{split.name}` receives depends on a parameter that is trained, as a tied one"
    if not torch.equal(torch.get_rng_state(), state):
        return f"random numbers are drawn before `{split.name}`, as by a dropout"
    for name, (buffer, value) in buffers.items():
        if not same_bits(buffer, value):
            return f"a forward pass changes the buffer `{name}`"
    return _why_positions_matter(split, inputs, features, others)


def _why_positions_matter(
    split: Split, inputs: Inputs, features: Tensor, first: Tensor
) -> str | None:
    """Return why the bits of a sample's features are not the same in all batches, or `None`.

    A matrix product may add up the values of some rows in another order than those of others. A
    batch of one sample, repeated, shows whether two positions differ, but rounding can give the
    same bits by chance. So further samples are tried until they have enough values.

    Args:
        split: The model and its head.
        inputs: The inputs of a batch.
        features: Its features.
        first: The features of a batch that repeats the last sample.
    """
    samples = len(features)
    values = 0
    generator = torch.Generator().manual_seed(0)
    for attempt in range(_ATTEMPTS):
        if attempt == 0:
            found, expected = first, features[-1:]
        elif attempt < samples:
            found = split.features(inputs.map(partial(_repeated, row=attempt - 1)))
            expected = features[attempt - 1 : attempt]
        elif not any(tensor.is_floating_point() for tensor in inputs.tensors):
            break
        else:  # A batch of few samples: others that are similar to these.
            row = attempt % samples
            found = split.features(inputs.map(partial(_varied, row=row, generator=generator)))
            expected = found[:1]
        if not same_bits(found, expected.expand_as(found)):
            return "the bits of a sample's features depend on the other samples in its batch"
        values += int(torch.count_nonzero(expected))
        if values >= _ENOUGH_VALUES or samples == 1:
            return None
    if values >= _FEWEST_VALUES:
        return None
    return "the features are almost all zero, which shows nothing about their bits"


def _why_outputs_differ(split: Split, features: Tensor, output: object) -> str | None:
    with torch.no_grad():
        again = logits_of(split.head(features))
    outputs = logits_of(output)
    if outputs is None or again is None or not same_bits(outputs, again):
        return f"`{split.name}` does not compute the model's outputs from its features alone"
    return None


def _foreign_hook(split: Split) -> str | None:
    """Return a text that names a hook outside the head that is not one of freezing, or `None`."""
    for module in split.skipped:
        before = module._forward_pre_hooks.values()  # noqa: SLF001 - no public way
        if module._forward_hooks or any(hook is not keep_in_eval_mode for hook in before):  # noqa: SLF001
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
                    if not same_bits(buffer, value):
                        buffer.copy_(value)


def _only_tensor(calls: list[Call]) -> Tensor | None:
    """Return the tensor that the only call had as its only argument, or `None`."""
    if len(calls) != 1 or calls[0][1] or len(calls[0][0]) != 1:
        return None
    argument = calls[0][0][0]
    return argument if type(argument) is Tensor else None
