"""The task of one class for each token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_at_least, check_whole
from finetunelib._forward.batch import inputs_of, outputs_of
from finetunelib._forward.inputs import Inputs
from finetunelib._forward.run import INPUT_ERRORS
from finetunelib._preserve import random_state_preserved, unchanged
from finetunelib._public import public
from finetunelib._typing import Batch
from finetunelib.errors import InvalidInputError, InvalidTypeError
from finetunelib.training._tasks.class_targets import IGNORED, count_targets
from finetunelib.training._tasks.convention import Convention
from finetunelib.training._tasks.task import StepOutput, Task
from finetunelib.training._tasks.tokens.alignment import arguments_for, kind_of, next_tokens
from finetunelib.training._tasks.tokens.chunks import chunked_loss
from finetunelib.training._tasks.tokens.head import (
    first_row,
    head_of,
    hidden_states,
    is_compiled,
    submodule,
)
from finetunelib.training._tasks.tokens.loss import check_shapes, mean_over, summed_loss
from finetunelib.training._tasks.tokens.rows import cut_rows, targets_in, targets_of


@public("finetunelib.training")
class TokenTask(Task):
    """Predicts one class for each token: token classification and language models.

    A batch is a pair (inputs, targets), or a mapping with the targets under `labels`, as the data
    collators of transformers make them. Targets are class indices `(batch, tokens)`, int64, and the
    model returns logits `(batch, tokens, classes)`, or an object with `.logits`. Targets of
    `ignore_index` do not count: those of padding, of a prompt, of special tokens.

    The loss is the mean cross-entropy over the counted targets. `StepOutput.weight` is their
    number, so accumulated micro-batches and the means of an epoch weight each token equally,
    however long the rows are. A batch without a counted target has the loss 0 and no gradient.

    If the Trainer gets no `metrics`, it measures `accuracy`, the fraction of counted targets that
    are predicted, and `perplexity`, the exponential of the mean loss over all counted targets.

    Args:
        shift: Whether the logits at a position are compared with the target of the next position.
            Pass `True` for a causal language model (GPT-2, Llama) whose targets are its input
            tokens, as `DataCollatorForLanguageModeling(mlm=False)` makes them. Pass `False` if each
            target belongs to the token at its position, if your data is shifted already, and for an
            encoder-decoder (T5, BART), whose decoder gets the shifted targets as its inputs. A
            choice that the model's class or the first batch contradicts is refused.
        ignore_index: The target that does not count.
        chunk_size: The number of tokens whose logits exist at the same time, such as 1024. The
            logits of a large vocabulary can take more memory than the rest of a step. If the last
            operation of the model is a linear layer, it is called for one chunk after the other,
            and again in the backward pass, so the logits as a whole never exist; in a compiled
            model, or if the model changes its logits after that layer, only the loss is computed in
            chunks. The loss and the gradients are the same up to rounding, and the same bits if
            there is one chunk. Metrics get the predicted classes `(batch, tokens)` instead of
            logits. `None` computes all logits at once.
        pad_predictions: Whether `Trainer.predict` returns the logits as the model does,
            `(batch, tokens, classes)`. By default it returns a list with one tensor
            `(length, classes)` for each row: without the positions that `attention_mask` excludes,
            or if there is none, without ignored targets at the end.

    Raises:
        InvalidTypeError: If `shift` or `pad_predictions` is not a bool, or `ignore_index` or
            `chunk_size` is not a whole number.
        InvalidArgumentError: If `chunk_size` is below 1.

    Example:
        A language model that predicts the next of 10 tokens from one token:

        >>> import torch
        >>> from torch import nn
        >>> from finetunelib import Trainer
        >>> from finetunelib.training import TokenTask
        >>> tokens = torch.arange(10).repeat(16, 1)
        >>> model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
        >>> trainer = Trainer(model, task=TokenTask(shift=True), lr=1.0, progress=False)
        >>> history = trainer.fit((tokens, tokens), epochs=30)
        >>> history["train_perplexity"][-1] < 2
        True
    """

    counts_tokens = True

    def __init__(
        self,
        *,
        shift: bool = False,
        ignore_index: int = IGNORED,
        chunk_size: int | None = None,
        pad_predictions: bool = False,
    ) -> None:
        for name, value in (("shift", shift), ("pad_predictions", pad_predictions)):
            if not isinstance(value, bool):
                raise InvalidTypeError(f"`{name}` must be True or False, got {value!r}.")
        check_whole(ignore_index=ignore_index)
        if chunk_size is not None:
            check_at_least(1, chunk_size=chunk_size)
        self.shift: bool = shift
        self.ignore_index: int = ignore_index
        self.chunk_size: int | None = chunk_size
        self.pad_predictions: bool = pad_predictions
        # The layer that makes the logits: unknown (""), or none that is known (None).
        self._head: str | None = ""

    def __repr__(self) -> str:
        chunks = "" if self.chunk_size is None else f", chunk_size={self.chunk_size}"
        return f"TokenTask(shift={self.shift}, ignore_index={self.ignore_index}{chunks})"

    @property
    def convention(self) -> Convention:
        """What outputs and targets mean, for metrics."""
        return Convention("classes", None, self.ignore_index, of_tokens=True)

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the model on a batch and compare its logits with the targets.

        Args:
            model: The model to call.
            batch: A pair (inputs, targets) or a mapping with `labels`.

        Returns:
            The loss, the logits `(batch, tokens, classes)` (with `chunk_size` the predicted
            classes), the targets of each position (shifted with `shift`), and the number of counted
            targets.

        Raises:
            InvalidTypeError: If the batch has no targets, or the output is not a tensor.
            InvalidArgumentError: If the batch has `sample_weight`.
            InvalidTargetError: If a target is not the index of a class, or the shapes do not fit.
        """
        inputs, targets = targets_of(batch)
        arguments = arguments_for(model, inputs, targets, self.ignore_index)
        if self.chunk_size is None:
            return self._compare(outputs_of(arguments.call(model)), targets)
        head = self._head_in(model, arguments, len(targets))
        if head is None:
            return self._compare(outputs_of(arguments.call(model)), targets)
        return self._compare(hidden_states(model, head, arguments), targets, head)

    def _compare(
        self, states: Tensor, targets: Tensor, head: nn.Module | None = None
    ) -> StepOutput:
        """Compare logits, or what a head makes logits of, with targets that are not yet shifted."""
        check_shapes(states, targets)
        if self.shift:
            targets = next_tokens(targets, self.ignore_index)
        counted = count_targets(targets, self.ignore_index)
        if self.chunk_size is None:
            total = summed_loss(states.flatten(0, 1), targets.flatten(), self.ignore_index)
            outputs = states
        else:
            total, outputs = chunked_loss(states, targets, head, self.ignore_index, self.chunk_size)
        return StepOutput(mean_over(total, counted), outputs, targets, counted)

    def _find_head(self, model: nn.Module, run: Callable[[], object]) -> Tensor:
        """Find the layer that makes the logits in a run of the model, and return the logits."""
        self._head, logits = head_of(model, run)
        return logits

    def _head_in(self, model: nn.Module, arguments: Inputs, rows: int) -> nn.Module | None:
        """Return the layer that makes the logits, which is found with one row if it is unknown."""
        if "labels" in arguments.kwargs:
            return None  # The model compares its logits with them.
        if self._head == "" and not is_compiled(model):
            with torch.no_grad(), random_state_preserved(), unchanged(model):
                try:
                    self._find_head(model, lambda: first_row(arguments, rows).call(model))
                except INPUT_ERRORS:  # An argument may not have rows.
                    self._head = None
        return submodule(model, self._head)

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor] | Tensor:
        """Run the model on a batch, with or without targets, and return its logits.

        Args:
            model: The model to call.
            batch: Inputs, or a batch as `step` gets it. An encoder-decoder needs the targets.

        Returns:
            A list with the logits of each row, `(length, classes)`, or all of them,
            `(batch, tokens, classes)`, with `pad_predictions`.

        Raises:
            InvalidInputError: If an encoder-decoder gets no targets.
        """
        inputs, targets = inputs_of(batch), targets_in(batch)
        arguments = arguments_for(model, inputs, targets, self.ignore_index)
        decoder = kind_of(model) == "encoder-decoder"
        if decoder and not any(name in arguments.kwargs for name in _DECODED):
            raise InvalidInputError(
                f"{type(model).__name__} is an encoder-decoder: its logits depend on the tokens "
                "that it decodes. Pass the targets too, or write new text with `model.generate`."
            )
        logits = outputs_of(arguments.call(model))
        if self.pad_predictions:
            return logits
        return cut_rows(logits, inputs, targets, self.ignore_index, decoder=decoder)


#: What a decoder reads: one of these.
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
