"""Which token a target belongs to: what the class of a model says, and what labels show."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._forward.batch import arguments_of
from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidArgumentError, InvalidTargetError
from finetunelib.training._tasks.class_targets import IGNORED

#: What the logits at a position are compared with: the next token, or the label of that position.
Kind: TypeAlias = Literal["causal", "aligned", "encoder-decoder"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_ALIGNED = ("ForTokenClassification", "ForMaskedLM")

#: Arguments of an encoder-decoder that replace the labels.
_DECODER_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds")


def kind_of(model: nn.Module) -> Kind | None:
    """Return what the name of a model's class or its configuration says, or `None`."""
    names = [kind.__name__ for kind in type(model).__mro__]
    if any(name.endswith(_ALIGNED) for name in names):
        return "aligned"
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) is True:
        return "encoder-decoder"
    return "causal" if any(name.endswith(_CAUSAL) for name in names) else None


def next_tokens(targets: Tensor, ignored: int) -> Tensor:
    """Return the target of the next position at each one, and the ignored index at the last."""
    return nn.functional.pad(targets[:, 1:], (0, 1), value=ignored)


def arguments_for(model: nn.Module, inputs: Any, targets: Tensor | None, ignored: int) -> Inputs:
    """Return the arguments of the model; an encoder-decoder also gets what it decodes.

    Args:
        model: The model.
        inputs: The inputs of a batch.
        targets: Its targets, `(batch, tokens)`, if there are any.
        ignored: The index of the targets that do not count.
    """
    arguments = arguments_of(inputs)
    if targets is None or kind_of(model) != "encoder-decoder":
        return arguments
    if any(name in arguments.kwargs for name in _DECODER_INPUTS):
        return arguments
    labels = targets if ignored == IGNORED else targets.masked_fill(targets == ignored, IGNORED)
    # The models compute a loss too if they get the labels themselves.
    shifted: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    name, given = ("labels", labels) if shifted is None else (_DECODER_INPUTS[0], shifted(labels))
    return Inputs(arguments.args, {**arguments.kwargs, name: given})


def check_kind(model: nn.Module, *, shift: bool) -> None:
    """Check that a model whose class says what its logits are compared with is used so.

    Raises:
        InvalidArgumentError: If the targets must not be shifted.
    """
    kind = kind_of(model)
    if not shift or kind in (None, "causal"):
        return
    why = (
        "is an encoder-decoder, which shifts the labels itself to decode them"
        if kind == "encoder-decoder"
        else "predicts the label of each position, not of the next one"
    )
    raise InvalidArgumentError(
        f"`TokenTask(shift=True)` does not fit {type(model).__name__}, which {why}. Pass "
        "`TokenTask()`."
    )


def check_shift(
    model: nn.Module, inputs: Any, targets: Tensor, name: str, *, shift: bool, ignored: int
) -> None:
    """Compare targets with the input tokens, which shows whether they must be shifted.

    Args:
        model: The model.
        inputs: The inputs of the first batch.
        targets: Its targets, `(batch, tokens)`.
        name: The name of the data, for messages.
        shift: Whether the task shifts the targets.
        ignored: The index of the targets that do not count.

    Raises:
        InvalidTargetError: If they would not be shifted at all, or twice.
    """
    kind = kind_of(model)
    tokens = _tokens_of(inputs, kind)
    if tokens is None or tokens.shape != targets.shape:
        return
    counted = targets != ignored
    same = _equal(tokens, targets, counted)
    ahead = _equal(tokens[:, 1:], targets[:, :-1], counted[:, :-1])
    if same == ahead:
        return  # Neither, or tokens that repeat: they show nothing.
    if shift and ahead:
        raise InvalidTargetError(
            f"The targets of `{name}` are the next tokens of the inputs already, so "
            "`TokenTask(shift=True)` would shift them twice. Pass `TokenTask()`, or the tokens "
            "themselves as targets."
        )
    if shift or not same or kind == "aligned":
        return
    text = f"The targets of `{name}` are the input tokens themselves"
    if kind == "encoder-decoder":
        raise InvalidTargetError(
            f"{text}, `decoder_input_ids`: the model would see what it must predict. Leave "
            "`decoder_input_ids` out; they are made from the targets."
        )
    if kind == "causal":
        raise InvalidTargetError(
            f"{text}, and {type(model).__name__} predicts the next token. Pass "
            "`TokenTask(shift=True)`, which compares each position with the next target."
        )
    warnings.warn(
        f"{text}. For a model that predicts the next token, pass `TokenTask(shift=True)`; a model "
        "that sees each token learns to copy it.",
        stacklevel=2,
    )


def suggested_task(model: nn.Module, inputs: Any, targets: Tensor) -> str:
    """Return the task that fits a batch of tokens, as an expression."""
    kind = kind_of(model)
    tokens = _tokens_of(inputs, kind)
    if kind in ("aligned", "encoder-decoder") or tokens is None or tokens.shape != targets.shape:
        return "TokenTask()"
    same = _equal(tokens, targets, targets != IGNORED)
    return "TokenTask(shift=True)" if same else "TokenTask()"


def _tokens_of(inputs: Any, kind: Kind | None) -> Tensor | None:
    """Return the token indices that the logits belong to, if the inputs contain them."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("decoder_input_ids" if kind == "encoder-decoder" else "input_ids")
    tokens = isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.dim() == 2
    return inputs if tokens else None


def _equal(tokens: Tensor, targets: Tensor, counted: Tensor) -> bool:
    """Return whether all counted targets are these tokens, and there is one."""
    return bool(counted.any()) and torch.equal(tokens[counted], targets[counted].to(tokens.dtype))
