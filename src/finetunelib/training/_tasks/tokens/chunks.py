"""The cross-entropy of tokens in chunks, whose logits are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetunelib.training._tasks.tokens.loss import summed_loss


def chunked_loss(
    states: Tensor, targets: Tensor, head: nn.Module | None, ignored: int, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies of tokens, and the predicted class of each token.

    The logits of one chunk exist at a time, in the forward and in the backward pass.

    Source: "activation checkpointing" of Chen et al., "Training deep nets with sublinear memory
    cost", 2016, implemented by `torch.utils.checkpoint`.

    Args:
        states: What the head gets, `(batch, tokens, width)`, or the logits if there is no head.
        targets: The target of each token, `(batch, tokens)`.
        head: The layer that makes logits of hidden states, or `None`.
        ignored: The index of the targets that do not count.
        chunk_size: The number of tokens in a chunk.
    """

    def part(chunk: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = chunk if head is None else head(chunk)
        loss = summed_loss(logits, wanted, ignored)
        return loss, logits.detach().argmax(-1)

    rows, wanted = states.flatten(0, 1), targets.flatten()
    one = len(rows) <= chunk_size  # One chunk is computed as it is without chunks.
    run = part if one or not torch.is_grad_enabled() else _recomputed(part, head)
    parts = [
        run(chunk, some)
        for chunk, some in zip(
            torch.split(rows, chunk_size), torch.split(wanted, chunk_size), strict=True
        )
    ]
    total = parts[0][0]
    for loss, _ in parts[1:]:
        total = total + loss
    return total, torch.cat([predicted for _, predicted in parts]).view(targets.shape)


def _recomputed(
    part: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], head: nn.Module | None
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function that keeps its inputs only, and is run again in the backward pass."""
    from torch.utils.checkpoint import checkpoint  # Needed for chunks only.

    # A head of another type may contain dropout.
    random = head is not None and type(head) is not nn.Linear

    def run(chunk: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = checkpoint(
            part, chunk, wanted, use_reentrant=False, preserve_rng_state=random
        )
        return result

    return run
